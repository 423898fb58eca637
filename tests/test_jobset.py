"""The manifest for GKE: valid for Kubernetes, and its run fits the slices that it asks for."""

import math
from pathlib import Path

import pytest
import yaml

from spirit_jax import config as config_lib
from spirit_jax.training.lm.config import LmRunConfig

kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[1]
# The fields of jobset.x-k8s.io/v1alpha2 that the manifest may use, by the definition of JobSet.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"failurePolicy", "network", "replicatedJobs", "startupPolicy", "successPolicy"},
    "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "replicatedJobs": {"name", "replicas", "template", "dependsOn"},
}


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load((ROOT / "tpu" / "jobset.yaml").read_text())


def test_it_is_valid(manifest):
    spec = manifest["spec"]
    (jobs,) = spec["replicatedJobs"]
    parts = {"": manifest, "spec": spec, "failurePolicy": spec["failurePolicy"]}
    for name, part in (parts | {"replicatedJobs": jobs}).items():
        assert set(part) <= FIELDS[name]
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    job |= {"spec": jobs["template"]["spec"]}
    kubernetes_validate.validate(job, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {"pods": 1}}, "1.33", strict=True)


def test_its_run_fits_the_slices(manifest):
    (jobs,) = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    config, *overrides = container["args"]
    run = config_lib.read(LmRunConfig, ROOT / config.removeprefix("--config="), overrides)
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    hosts, chips_of_host = job["parallelism"], container["resources"]["limits"]["google.com/tpu"]
    assert chips == hosts * chips_of_host and job["completions"] == hosts
    assert run.topology == f"v5e:{pod['nodeSelector']['cloud.google.com/gke-tpu-topology']}"
    devices = jobs["replicas"] * chips
    assert run.mesh.data * run.mesh.fsdp * run.mesh.tensor == devices
    assert run.mesh.data % jobs["replicas"] == 0 and run.data.batch_rows % devices == 0
    assert run.run_dir.startswith("gs://")  # all hosts see it
