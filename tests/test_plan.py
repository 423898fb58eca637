"""The plan of a pod run: an estimate from a compiled program, and a real compilation."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from spirit_jax.errors import InputError
from tpu.decode import Decoding
from tpu.estimate import CHIPS, DCN, estimate
from tpu.plan import get_devices, main
from tpu.traffic import bytes_read

CHECKOUT = Path(__file__).parents[1]
SMALL = """
run_dir: runs/small
model: models/none
random_init: true
topology: v5e:2x4
compute_dtype: bfloat16
remat: save_dots
attention: splash
sizes:
  vocab_size: 1024
  hidden_size: 512
  intermediate_size: 1024
  num_layers: 3
  num_heads: 4
  num_kv_heads: 4
  head_dim: 128
data: {seq_len: 512, batch_rows: 16, shards: 16}
"""

# A shortened program of the TPU compiler: a loop of three iterations with a matmul, a kernel, a
# reduction and an overlapped gather, and a gather before the loop.
HLO = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[8,32] {
  %input = bf16[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = bf16[64,32]{1,0} all-reduce(%input), to_apply=%add
  ROOT %dynamic-slice.1 = bf16[8,32]{1,0} dynamic-slice(%all-reduce.9)
}

%hidden (p: bf16[8,32]) -> bf16[64,32] {
  %p = bf16[8,32]{1,0} parameter(0)
  ROOT %all-gather.7 = bf16[64,32]{1,0} all-gather(%p), dimensions={0}
}

%body (state: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %matmul = bf16[64,32]{1,0} fusion(%x), calls=%fused, x={"estimated_cycles":"1000"}
  %kernel = bf16[64,32]{1,0} custom-call(%matmul), custom_call_target="tpu_custom_call", x={y={
}}
  %scatter = bf16[8,32]{1,0} fusion(%kernel), kind=kCustom, calls=%all-reduce-scatter.1
  %async-collective-start.1 = (bf16[9,9]) fusion(%y), calls=%hidden, "estimated_cycles":"500"
  %all-reduce.2 = f32[16]{0} all-reduce(%z), to_apply=%add
}

%condition (state: (s32[], bf16[64,32])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(3)
  ROOT %compare = pred[] compare(%i, %constant.5), direction=LT
}

ENTRY %main (weights: bf16[3,8,32]) -> f32[] {
  %all-gather.1 = bf16[3,64,32]{2,1,0} all-gather(%weights), dimensions={1}
  %while.1 = (s32[], bf16[64,32]) while(%start), condition=%condition, body=%body
  ROOT %last = f32[] fusion(%while.1), calls=%fused, x={"estimated_cycles":"7"}
}
"""


def test_an_estimate_multiplies_by_loop_counts():
    chip = CHIPS["v5e"]
    result = estimate(HLO, chip, kernel_flops=chip.peak_flops, layers=3)
    assert result.cycle_seconds == pytest.approx((3 * 1500 + 7) / chip.hertz)
    assert result.kernel_seconds == pytest.approx(2)  # half of the peak
    assert result.kernel_calls == 3
    moved = {
        kind: (collective.calls, collective.bytes)
        for kind, collective in result.collectives.items()
    }
    assert moved == {
        "all-gather": (1, 3 * 64 * 32 * 2),
        "all-gather-start": (3, 3 * 64 * 32 * 2),
        "all-reduce": (3, 3 * 64),
        "reduce-scatter": (3, 3 * 64 * 32 * 2),
    }
    # An all-reduce counts twice, and overlapped gathers do not count.
    waited = 2 * 3 * 64 * 32 * 2 + 2 * 3 * 64
    assert result.collective_seconds == pytest.approx(waited / chip.ici_bytes)
    assert result.stacked_gathers == 1
    assert estimate(HLO, chip, 0.0, layers=5).stacked_gathers == 0


# A shortened step: a matrix is copied into the chip's own memory and used there, two matrices are
# read where they are, an embedding and a cache in part, and the cache is updated in place.
STEP = """HloModule jit_step

%gather (table: bf16[1000,64], ids: s32[8]) -> bf16[8,64] {
  %table = bf16[1000,64]{1,0} parameter(0)
  %view = bf16[1000,64]{1,0} bitcast(%table)
  %ids = s32[8]{0:S(1)} parameter(1)
  ROOT %rows = bf16[8,64]{1,0} gather(%view, %ids), slice_sizes={1,64}
}

%view (whole: s8[64,64]) -> s8[64,64] {
  %whole = s8[64,64]{1,0} parameter(0)
  ROOT %seen = s8[64,64]{1,0} bitcast(%whole)
}

%product (x: bf16[8,64], kernel: s8[64,64]) -> bf16[8,64] {
  %x = bf16[8,64]{1,0} parameter(0)
  %kernel = s8[64,64]{1,0} parameter(1)
  %inner = s8[64,64]{1,0} fusion(%kernel), kind=kLoop, calls=%view
  ROOT %y = bf16[8,64]{1,0} convolution(%x, %inner)
}

ENTRY %main (embedding: bf16[1000,64], first: s8[64,64], second: s8[64,64]) -> bf16[8,100,64] {
  %embedding = bf16[1000,64]{1,0} parameter(0)
  %first = s8[64,64]{1,0} parameter(1)
  %second = s8[64,64]{1,0} parameter(2)
  %cache = bf16[8,100,64]{2,1,0} parameter(3)
  %ids = s32[8]{0:S(1)} parameter(4)
  %start = (s8[64,64]{1,0}, s8[64,64]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%first)
  %x = bf16[8,64]{1,0:S(1)} fusion(%embedding, %ids), calls=%gather
  %near = s8[64,64]{1,0:S(1)} copy-done(%start)
  %kernel = bf16[8,100,64]{2,1,0} custom-call(%ids, %cache), KERNEL
  %y = bf16[8,64]{1,0:S(1)} fusion(%x, %near), calls=%product
  %z = bf16[8,1,64]{2,1,0} fusion(%y, %second), calls=%product
  ROOT %written = bf16[8,100,64]{2,1,0} dynamic-update-slice(%kernel, %z, %ids)
}
"""


# In one line, as the compiler prints it.
KERNEL = (
    'custom_call_target="tpu_custom_call", output_to_operand_aliasing={{}: (1, {})}, '
    'backend_config={"cost_estimate":{"flops":"0","transcendentals":"0","bytes_accessed":"640"}}'
)
STEP = STEP.replace("KERNEL", KERNEL)


SENT = """HloModule jit_step

ENTRY %main (sum: bf16[64,8]) -> bf16[64,8] {
  %send.1 = (bf16[64,8]{1,0:T(8,128)}, u32[], token[]) send(%sum, %after-all.1), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %send.2 = (bf16[64,8]{1,0}, u32[], token[]) send(%sum, %after-all.2), channel_id=3
}
"""


@pytest.mark.parametrize(("slices", "times"), [(2, 1), (4, 1.5)])
def test_sums_over_slices_take_the_time_of_the_data_centre_network(slices, times):
    result = estimate(SENT, CHIPS["v5e"], 0.0, layers=3, slices=slices)
    assert vars(result.collectives[DCN]) == {"calls": 1, "bytes": 2 * 64 * 8}
    assert result.seconds == result.dcn_seconds == times * 2 * 64 * 8 / 3.125e9


def test_bytes_read_are_those_that_leave_the_memory():
    rows, matrix = 2 * 8 * 64, 64 * 64
    read_by_kernel = 640 // 2  # of the bytes that it declares
    assert bytes_read(STEP) == rows + 2 * matrix + rows + read_by_kernel
    result = estimate(STEP, CHIPS["v5e"], 0.0, layers=3)
    assert result.copied_bytes == 640 and result.kernel_calls == 1


def plan(tmp_path, *arguments):
    (tmp_path / "small.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "tpu.plan", "--config", str(tmp_path / "small.yaml")]
    # The TPU's compiler optimises little, which takes half of the time.
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_OPTIMIZATION_LEVEL": "O0",
    }
    return subprocess.run(
        [*command, *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_small_training_step_compiles_for_slices(tmp_path, slices):
    process = plan(tmp_path, "--json", "--slices", str(slices))
    assert process.returncode == 0, process.stderr[-2000:]
    report = json.loads(process.stdout)
    parameters = 3 * (4 * 512 * 512 + 3 * 512 * 1024 + 2 * 512) + 2 * 1024 * 512 + 512
    state = 3 * 4 * parameters / 8  # weights and two moments in float32, on eight devices
    assert report["fits"] and report["devices"] == 8 * slices
    assert state < report["resident_bytes"] < 1.2 * state
    assert report["peak_bytes"] < 100e6
    # One call forward and two backward a layer: remat does not repeat the forward call.
    assert report["kernel_calls"] == 3 * 3
    assert report["gathers_of_stacked_layers"] == 0
    collectives = report["collectives"]
    # Each device sends its part of the gradients, in bfloat16, to the other slice.
    sent = collectives.pop(DCN, {"bytes": 0})["bytes"]
    assert sent == 0 if slices == 1 else 1 < sent / (2 * parameters / 8) < 1.1
    assert report["dcn_seconds"] == pytest.approx(sent / CHIPS["v5e"].dcn_bytes)
    waited = sum(
        collective["bytes"] for kind, collective in collectives.items() if "-start" not in kind
    )
    hidden = sum(
        collective["bytes"] for kind, collective in collectives.items() if "-start" in kind
    )
    # Parameters are gathered and their gradients scattered in pieces that overlap with matmuls, but
    # the compiler overlaps nothing of this small step on several slices.
    assert slices > 1 or waited < 2 * parameters < hidden < 6 * parameters
    assert 0 < report["mfu"] < 1 and report["step_seconds"] > 0


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_small_decoding_step_reads_weights_and_cache_once(tmp_path):
    process = plan(
        tmp_path,
        *("--decode", "--topology", "v5e:1x1", "--json"),
        *("--rows", "8", "--slots", "1024", "--quantization", "int8"),
    )
    assert process.returncode == 0, process.stderr[-2000:]
    report = json.loads(process.stdout)
    matrices = 3 * (4 * 512 * 512 + 3 * 512 * 1024) + 1024 * 512
    cache = 3 * 2 * 8 * 4 * 1024 * (128 + 4)  # int8, and a float32 scale for each head of a token
    assert matrices < report["weight_bytes"] < 1.03 * matrices
    assert report["cache_bytes"] == cache
    assert report["fits"] and report["resident_bytes"] < 1.2 * (matrices + cache)
    assert report["temporary_bytes"] < cache / 4  # the cache is updated in place
    # Activations are a larger part than in a 7B model, which reads 1.00 of the floor; a copy of the
    # matrices or of the cache would add more than this.
    assert 0.9 < report["bytes_read_to_floor"] < 1.2
    assert 0 < report["floor_seconds"] < report["step_seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decode", "--rows", "0"], "--rows is 0; expected 1 to 4096."),
        (["--rows", "4"], "--rows, --slots, --quantization and --data need --decode."),
        (["--decode", "--search"], "--search plans training steps; leave out --decode."),
    ],
)
def test_options_of_decoding_are_checked(arguments, message):
    command = typer.Typer()
    command.command()(main)
    with pytest.raises(InputError, match=re.escape(message)):
        command(arguments, standalone_mode=False)


@pytest.mark.parametrize(
    "topology",
    ["v9:2x4", "v5e", "v5e:", "v5e:0x1", "v5e:-1x1", "v5e:ax1", "v5e:4096x4096", "v5e:²x2"],
)
def test_an_unknown_topology_is_rejected(topology):
    with pytest.raises(InputError, match=f"'{topology}'; expected one like v5e:16x16"):
        get_devices(topology)


@pytest.mark.parametrize("name", ["rows", "slots", "data"])
@pytest.mark.parametrize("value", [-1, 0, 1 << 31])
def test_a_decoding_step_of_impossible_size_is_refused(name, value):
    with pytest.raises(InputError, match=f"--{name} is {value}; expected 1 to "):
        Decoding(**{name: value})


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_an_unknown_compiler_option_is_rejected(tmp_path):
    process = plan(tmp_path, "compiler_options.xla_no_such_flag=1")
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1, process.stderr[-800:]
    assert len(lines) == 1 and "xla_no_such_flag" in lines[0], process.stderr[-800:]


def test_a_missing_compiler_is_reported_first():
    start = "import runpy, sys; sys.modules['libtpu'] = None; "
    start += "runpy.run_module('tpu.plan', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", start, "--config", "missing.yaml"]
    process = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.startswith("error: libtpu cannot be imported")
    assert len(process.stderr.splitlines()) == 1 and "'spirit-jax[tpu]'" in process.stderr


@pytest.mark.parametrize(
    ("package", "needed", "extra"),
    [
        ("corpora", "pyworld", "corpora"),
        ("evaluators", "sklearn", "corpora"),
    ],
)
def test_packages_name_the_missing_extra(package, needed, extra):
    start = f"import sys; sys.modules['{needed}'] = None; sys.argv = ['-m']; import {package}"
    process = subprocess.run(
        [sys.executable, "-c", start], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert process.returncode == 1 and len(process.stderr.splitlines()) == 1
    assert needed in process.stderr and f"'.[{extra}]'" in process.stderr
