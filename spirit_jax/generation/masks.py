"""Which tokens a request may generate, by its modality or by the markers that it generates.

Axes: m masks, v vocabulary.
"""

from collections.abc import Sequence

import jax
import numpy as np
from flax import struct

from spirit_jax.vocab import Modality, Vocab


@struct.dataclass
class Masks:
    """Sets of tokens, and which set applies after each token.

    Attributes:
      allowed_mv: bool, the tokens that may be generated.
      next_mv: int32, the index of the mask for the token after a generated token; None if the mask
        of a request never changes.
    """

    allowed_mv: jax.Array
    next_mv: jax.Array | None = None


# Masks of `make_masks`, after those of the modalities.
AT_START, IN_TEXT, IN_SPEECH = range(len(Modality), len(Modality) + 3)


def make_masks(vocab: Vocab) -> Masks:
    """A mask for each modality, in the order of `Modality`, and those of a request with steering.

    With steering, text tokens are followed by text tokens or a marker, and units by units or a
    marker; after `[Text]` come text tokens, after `[Speech]` units. EOS may come at any time.

    Returns:
      Masks of numpy arrays.
    """
    ids = np.arange(vocab.padded_size)
    markers = np.isin(ids, (vocab.text_marker, vocab.speech_marker))
    text, speech, any_token = (vocab.allowed(modality) for modality in Modality)
    allowed_mv = np.stack([text, speech, any_token, any_token, text | markers, speech | markers])
    next_mv = np.repeat(np.arange(len(allowed_mv), dtype=np.int32)[:, None], len(ids), axis=1)
    next_mv[AT_START:] = np.where(vocab.is_speech(ids), IN_SPEECH, IN_TEXT)
    return Masks(allowed_mv, next_mv)


def steering_mask(vocab: Vocab, prompt: Sequence[int]) -> int:
    """The mask of the first token after a prompt, for a request with steering.

    Args:
      vocab: of the prompt.
      prompt: token ids.
    """
    if prompt[-1] == vocab.bos:
        return AT_START
    return IN_SPEECH if vocab.is_speech(prompt[-1]) else IN_TEXT
