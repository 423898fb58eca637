"""Settings of generation. This module imports no JAX."""

import dataclasses
from typing import Any

from spirit_jax import limits
from spirit_jax.errors import InputError

MAX_STOPS = 64  # stop strings
# What of a language model is rounded to int8: (weights, cache).
QUANTIZATIONS = {"int8": (True, True), "int8_weights": (True, False), "int8_cache": (False, True)}
FOR_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


def int8_parts(quantization: str | None, option: str = "quantization") -> tuple[bool, bool]:
    """Whether weights and whether the cache are rounded to int8.

    Args:
      quantization: a name in `QUANTIZATIONS`; None for neither.
      option: the name of the option, for the message.

    Raises:
      InputError: the name is unknown.
    """
    if quantization is None:
        return False, False
    if quantization not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise InputError(f"{option} is {quantization!r}; expected one of {known}.")
    return QUANTIZATIONS[quantization]


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Settings of generation.

    Attributes:
      max_new_tokens: the most tokens to generate.
      do_sample: sample tokens; otherwise take the likeliest token (greedy decoding).
      temperature: logits are divided by it before sampling; 1e-6 to 1e6, below 1 is less random.
      top_p: sample among the likeliest tokens that together have this probability.
      top_k: sample among this many likeliest tokens; 0 for all.
      min_p: sample among tokens that are at least this times as likely as the likeliest.
      repetition_penalty: positive logits of tokens of the prompt and output are divided by it,
        negative ones multiplied; 1e-6 to 1e6.
      seed: random seed of sampling, 0 to 2**32 - 1. The samples of a row do not depend on the
        other rows of a batch.
      stop: the output ends before the first of these strings in generated text. The string may be
        spread over tokens, but not over a unit or marker. The generated ids end with the token that
        completes it.
      max_speech_seconds: the output ends after this much generated speech; None for no limit. The
        length of speech is that of the vocoder's durations.
      follow_markers: with arbitrary output, only text follows `[Text]` and text, and only units
        follow `[Speech]` and units; otherwise, as in the release, any token may follow any other.

    Raises:
      InputError: a value has the wrong type or is out of range, or a sampling setting is not
        the default without `do_sample`.
    """

    max_new_tokens: int = 200
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    max_speech_seconds: float | None = None
    follow_markers: bool = False

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
            min_p=(0.0, 1.0),
            seed=limits.SEED,
            max_speech_seconds=(0.001, 1e6),
        )
        object.__setattr__(self, "stop", _check_stop(self.stop))
        idle = [name for name in FOR_SAMPLING if getattr(self, name) != _default(self, name)]
        if idle and not self.do_sample:
            raise InputError(
                f"{' and '.join(idle)} would change nothing without do_sample=True; give it too, "
                "or leave out the sampling options."
            )


def _check_stop(stop: Any) -> tuple[str, ...]:
    """Stop strings as a tuple; one string is a tuple of one."""
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, tuple | list) or len(stops) > MAX_STOPS:
        raise InputError(f"stop is {str(stop)[:40]!r}; expected at most {MAX_STOPS} strings.")
    for string in stops:
        if not isinstance(string, str) or not string:
            raise InputError(
                f"A stop string is {str(string)[:40]!r}; expected text that is not empty."
            )
    return tuple(stops)


def _default(config: Any, name: str) -> Any:
    return type(config).__dataclass_fields__[name].default
