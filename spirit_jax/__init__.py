"""Spirit LM in JAX and Flax: reads, hears, writes and speaks in one stream of tokens."""

from spirit_jax.errors import InputError
from spirit_jax.generation.sampling import GenerationConfig
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.spiritlm import Output, SpiritLM
from spirit_jax.units import Units
from spirit_jax.vocab import Modality

__all__ = [
    "GenerationConfig",
    "InputError",
    "Modality",
    "Output",
    "SpeechTokenizer",
    "SpiritLM",
    "Units",
]
