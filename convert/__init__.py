"""Scripts that turn PyTorch checkpoints into model folders, and back."""

from spirit_jax.cli.running import require

require()
