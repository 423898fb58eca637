"""What the vendors' data sheets say of devices, by the prefix of a device's name in JAX."""

import jax

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
