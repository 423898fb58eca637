"""Scripts that turn PyTorch checkpoints into model folders, and back."""
