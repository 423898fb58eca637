"""The training of the pitch VQ-VAE."""
