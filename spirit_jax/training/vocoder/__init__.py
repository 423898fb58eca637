"""The training of the unit vocoder."""
