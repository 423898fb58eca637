"""The training of a quantizer that is robust to speaker, tempo and noise."""
