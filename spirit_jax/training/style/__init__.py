"""The training of the style encoder."""
