"""What devices can do, and what the vendors' data sheets say of them, by the prefix of their name.

A GPU of compute capability below 8, such as a T4 (7.5), has no bfloat16 units and no cuDNN
attention. Its float16 units reach 65,504: enough for Llama's activations, since norms, softmax and
logits are computed in float32.
"""

import functools
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax.errors import InputWarning

DEVICE_FILES = {  # of accelerators: what to install for JAX to use them
    "nvidia0": "jax[cuda12]",
    "accel0": "jax[tpu]",
    "vfio/0": "jax[tpu]",
}

# bfloat16 operations a second.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p; other v5 chips match a name above
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
# Bytes a second of the memory.
BANDWIDTH = {
    "TPU v4": 1.2e12,
    "TPU v5 lite": 0.82e12,
    "TPU v5e": 0.82e12,
    "TPU v5": 2.77e12,
    "TPU v6": 1.64e12,
    "NVIDIA A100-SXM4-80GB": 2.04e12,
    "NVIDIA A100": 1.56e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H100": 3.35e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA L4": 0.3e12,
    "Tesla T4": 0.32e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak bfloat16 FLOP/s of a device; None for a device that is not listed."""
    return _look_up(PEAK_FLOPS, device)


def bandwidth(device: jax.Device) -> float | None:
    """Nominal memory bandwidth of a device in bytes/s; None for a device that is not listed."""
    return _look_up(BANDWIDTH, device)


def _look_up(table: dict[str, float], device: jax.Device) -> float | None:
    kind = device.device_kind
    return next((value for name, value in table.items() if kind.startswith(name)), None)


def is_modern_gpu(device: jax.Device | None = None) -> bool:
    """Whether a device is a GPU of compute capability 8 or newer; by default JAX's first device."""
    device = device or jax.devices()[0]
    if device.platform != "gpu":
        return False
    return float(getattr(device, "compute_capability", None) or 0) >= 8


def default_dtype(device: jax.Device | None = None) -> Any:
    """The dtype in which a device generates: float32 on a CPU, else the fast one of 16 bits.

    Args:
      device: by default JAX's first device.

    Returns:
      float32, or bfloat16, or float16 for a GPU without bfloat16 units.
    """
    device = device or jax.devices()[0]
    if device.platform == "cpu":
        return jnp.float32
    return jnp.float16 if device.platform == "gpu" and not is_modern_gpu(device) else jnp.bfloat16


@functools.cache
def warn_of_idle(folder: Path = Path("/dev")) -> None:
    """Warns once if JAX uses the CPU of a machine that has an accelerator.

    Not if the CPU was chosen, by JAX_PLATFORMS.

    Args:
      folder: of the device files.
    """
    if jax.default_backend() != "cpu" or "cpu" in (jax.config.jax_platforms or ""):
        return
    for name, package in DEVICE_FILES.items():
        if (folder / name).exists():
            message = (
                f"JAX uses the CPU, though this machine has an accelerator ({folder / name}): "
                f"install {package}, or set JAX_PLATFORMS=cpu if the CPU is meant."
            )
            warnings.warn(message, InputWarning, stacklevel=3)
            return
