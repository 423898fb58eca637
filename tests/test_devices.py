"""What is chosen for a device, by devices that say what they are."""

import types
import warnings

import jax
import jax.numpy as jnp
import pytest

from spirit_jax import devices
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.models import linear
from spirit_jax.models.attention import LayerCache
from spirit_jax.models.attention_backends import choose_backend, has_length_kernel

pytestmark = pytest.mark.compat
CHOICES = {  # device: (platform, compute capability, dtype, attention)
    "Tesla T4": ("gpu", "7.5", jnp.float16, "reference"),
    "Tesla V100": ("gpu", "7.0", jnp.float16, "reference"),
    "NVIDIA L4": ("gpu", "8.9", jnp.bfloat16, "cudnn"),
    "NVIDIA H100": ("gpu", "9.0", jnp.bfloat16, "cudnn"),
    "NVIDIA B200": ("gpu", "10.0", jnp.bfloat16, "cudnn"),
    "AMD of unknown kind": ("gpu", None, jnp.float16, "reference"),
    "TPU v5e": ("tpu", None, jnp.bfloat16, "splash"),
    "cpu": ("cpu", None, jnp.float32, "reference"),
}


@pytest.fixture
def be(monkeypatch):
    """Makes JAX's first device one of `CHOICES`."""

    def be(kind):
        platform, capability, *_ = CHOICES[kind]
        device = types.SimpleNamespace(platform=platform, device_kind=kind)
        if capability:
            device.compute_capability = capability
        monkeypatch.setattr(jax, "devices", lambda *_: [device])
        monkeypatch.setattr(jax, "default_backend", lambda: platform)

    return be


@pytest.mark.parametrize("kind", CHOICES)
def test_dtype_and_attention_follow_the_device(be, kind):
    be(kind)
    _, capability, dtype, attention = CHOICES[kind]
    assert devices.default_dtype() == dtype
    assert choose_backend("auto", jnp.bfloat16, 64, 256) == attention
    assert choose_backend("auto", jnp.float16, 64, 256) == attention
    is_modern = attention == "cudnn"
    cache = LayerCache(*(jnp.zeros((1, 2, 8, 64), jnp.float16) for _ in range(2)))
    assert has_length_kernel(cache) == is_modern
    assert linear.has_row_kernel(jnp.zeros((256, 256), jnp.int8), 1) == is_modern


def test_cudnn_is_refused_on_an_old_gpu(be):
    be("Tesla T4")
    with pytest.raises(InputError, match="compute capability 8"):
        choose_backend("cudnn", jnp.float16, 64, 256)


def test_an_idle_accelerator_is_named_once(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    before = jax.config.jax_platforms
    try:
        for platforms, name, warned in (
            (None, None, ""),
            ("cpu", "nvidia0", ""),
            (None, "nvidia0", "install jax[cuda12]"),
            (None, "accel0", "install jax[tpu]"),
        ):
            jax.config.update("jax_platforms", platforms)
            folder = tmp_path / f"{platforms}-{name}"
            folder.mkdir()
            if name:
                (folder / name).touch()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                devices.warn_of_idle(folder)
                devices.warn_of_idle(folder)
            messages = [str(w.message) for w in caught if w.category is InputWarning]
            assert len(messages) == bool(warned) and all(warned in text for text in messages)
    finally:
        jax.config.update("jax_platforms", before)
