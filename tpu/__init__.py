"""Estimates memory and time of training and decoding on TPUs, without a TPU."""

from spirit_jax.cli.running import require

require()
