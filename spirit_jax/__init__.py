"""Spirit LM in JAX and Flax: one language model of text tokens and speech tokens.

Public names are imported when they are first used, so `import spirit_jax` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spirit_jax.errors import InputError
    from spirit_jax.generation.config import GenerationConfig
    from spirit_jax.generation.outputs import Output
    from spirit_jax.speech_tokenizer import SpeechTokenizer
    from spirit_jax.spiritlm import SpiritLM
    from spirit_jax.units import Units
    from spirit_jax.vocab import Modality

    __version__: str

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
    "GenerationConfig": "spirit_jax.generation.config",
    "InputError": "spirit_jax.errors",
    "Modality": "spirit_jax.vocab",
    "Output": "spirit_jax.generation.outputs",
    "SpeechTokenizer": "spirit_jax.speech_tokenizer",
    "SpiritLM": "spirit_jax.spiritlm",
    "Units": "spirit_jax.units",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _read_version()
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'spirit_jax' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _read_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("spirit-jax")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
