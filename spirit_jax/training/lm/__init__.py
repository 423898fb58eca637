"""The training of the language model."""
