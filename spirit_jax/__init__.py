"""Spirit LM in JAX and Flax: reads, hears, writes and speaks in one stream of tokens.

Public names are imported when they are first used, so `import spirit_jax` takes no time.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    "__version__",
]

_MODULES = {
    "GenerationConfig": "spirit_jax.generation.sampling",
    "InputError": "spirit_jax.errors",
    "Modality": "spirit_jax.vocab",
    "Output": "spirit_jax.spiritlm",
    "SpeechTokenizer": "spirit_jax.speech_tokenizer",
    "SpiritLM": "spirit_jax.spiritlm",
    "Units": "spirit_jax.units",
}

try:
    __version__ = version("spirit-jax")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spirit_jax' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
