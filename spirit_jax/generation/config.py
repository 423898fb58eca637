"""How to generate. Importing this is cheap."""

import dataclasses

from spirit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How to generate.

    Attributes:
      max_new_tokens: the most tokens to add to a prompt.
      do_sample: draw tokens at random; otherwise take the likeliest each time.
      temperature: logits are divided by it before a draw; below 1 is more careful.
      top_p: draw among the likeliest tokens that together have this probability.
      top_k: draw among this many likeliest tokens; 0 for all.
      repetition_penalty: logits of tokens seen before are divided by it (multiplied, if negative).
      seed: the same seed draws the same tokens; a row's draws do not depend on the other rows.

    Raises:
      InputError: a value outside its range.
    """

    max_new_tokens: int = 200
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        limits = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature > 0, "above 0 (do_sample=False is greedy)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        for name, (holds, range_) in limits.items():
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {range_}.")
