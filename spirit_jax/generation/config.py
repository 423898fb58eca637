"""How to generate. Importing this is cheap."""

import dataclasses
from typing import Any

from spirit_jax import limits
from spirit_jax.errors import InputError

FOR_SAMPLING = ("temperature", "top_p", "top_k")


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How to generate.

    Attributes:
      max_new_tokens: the most tokens to add to a prompt.
      do_sample: draw tokens at random; otherwise take the likeliest each time.
      temperature: logits are divided by it before a draw; below 1 is more careful. 1e-6 to 1e6.
      top_p: draw among the likeliest tokens that together have this probability.
      top_k: draw among this many likeliest tokens; 0 for all.
      repetition_penalty: logits of tokens seen before are divided by it (multiplied, if negative).
        1e-6 to 1e6.
      seed: of the draws, 0 to 2**32 - 1. The same seed draws the same tokens; a row's draws do not
        depend on the other rows. Without `do_sample` nothing is drawn.

    Raises:
      InputError: a value of the wrong type or outside its range; a temperature, top_p or top_k
        other than the default without `do_sample`.
    """

    max_new_tokens: int = 200
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
                object.__setattr__(self, field.name, value.item())
        if self.temperature == 0:
            raise InputError(
                "temperature is 0, and logits cannot be divided by it. For the likeliest token "
                "each time use --greedy, or do_sample=False in Python."
            )
        limits.check_numbers(
            self,
            max_new_tokens=(1, 2**31 - 1),
            # Logits stay finite in float32.
            temperature=(1e-6, 1e6),
            repetition_penalty=(1e-6, 1e6),
            top_p=(1e-9, 1.0),
            top_k=(0, 2**31 - 1),
            seed=limits.SEED,
        )
        idle = [name for name in FOR_SAMPLING if getattr(self, name) != _default(self, name)]
        if idle and not self.do_sample:
            raise InputError(
                f"{' and '.join(idle)} would change nothing without do_sample=True: give that too, "
                "or leave out what is for sampling."
            )


def _default(config: Any, name: str) -> Any:
    return type(config).__dataclass_fields__[name].default
