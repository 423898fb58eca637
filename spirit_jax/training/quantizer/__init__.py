"""The training of a quantizer that is robust to voice, pace and noise."""
