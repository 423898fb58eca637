"""The loss of a language model, in chunks that never hold all logits at once.

Letters: n tokens (rows and positions together), c tokens of a chunk, d model width, v vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import struct

from spirit_jax.vocab import Vocab


@struct.dataclass
class LossSums:
    """Sums over predicted tokens, to be added over chunks, micro-batches and hosts.

    Attributes:
      loss: of cross entropies in nats, and the z-loss.
      count: of weights.
      text, speech: (3,) sums of cross entropy, hits and weights, of text tokens and units.
    """

    loss: jax.Array
    count: jax.Array
    text: jax.Array
    speech: jax.Array

    @classmethod
    def zeros(cls) -> "LossSums":
        """Nothing summed yet."""
        return cls(jnp.zeros(()), jnp.zeros(()), jnp.zeros(3), jnp.zeros(3))


def next_tokens(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Targets (b, t) and their weights: the token after each, where it is of the same segment."""
    tokens, segments = batch["tokens"], batch["segments"]
    targets_bt = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    same_bt = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (0, 1)))
    weights_bt = jnp.pad(batch["weights"][:, 1:], ((0, 0), (0, 1)))
    return targets_bt, jnp.where(same_bt, weights_bt, 0)


def token_losses(
    x_nd: jax.Array,
    head_dv: jax.Array,
    targets_n: jax.Array,
    weights_n: jax.Array,
    vocab: Vocab,
    z_loss: float = 0.0,
) -> LossSums:
    """Sums over tokens, all logits at once; padding rows of the vocabulary count as impossible.

    Args:
      x_nd: features of the last layer, of any float dtype.
      head_dv: the head, of the same.
      targets_n: int32, the tokens to predict.
      weights_n: float32, 0 where there is none.
      vocab: says which rows exist and which tokens are units.
      z_loss: times the squared log of the softmax's denominator, added to the loss.
    """
    logits_nv = jnp.einsum("nd,dv->nv", x_nd, head_dv, preferred_element_type=jnp.float32)
    exists_v = jnp.arange(logits_nv.shape[-1]) < vocab.size
    logits_nv = jnp.where(exists_v, logits_nv, -jnp.inf)
    normaliser_n = jax.nn.logsumexp(logits_nv, axis=-1)
    target_n = jnp.take_along_axis(logits_nv, targets_n[:, None], axis=-1)[:, 0]
    entropy_n = normaliser_n - target_n
    hits_n = (jnp.argmax(logits_nv, axis=-1) == targets_n).astype(jnp.float32)
    loss_n = entropy_n + z_loss * jnp.square(normaliser_n)

    def sums(chosen_n):
        kept_n = jnp.where(chosen_n, weights_n, 0)
        return jnp.stack([kept_n @ entropy_n, kept_n @ hits_n, kept_n.sum()])

    is_unit_n = targets_n >= vocab.first_unit
    return LossSums(weights_n @ loss_n, weights_n.sum(), sums(~is_unit_n), sums(is_unit_n))


def chunked_losses(
    x_nd: jax.Array,
    head_dv: jax.Array,
    targets_n: jax.Array,
    weights_n: jax.Array,
    vocab: Vocab,
    z_loss: float,
    chunk: int,
) -> LossSums:
    """`token_losses` of `chunk` tokens at a time; a gradient computes each chunk's logits again."""
    rest = -len(targets_n) % chunk

    def in_chunks(array):
        padded = jnp.pad(array, ((0, rest),) + ((0, 0),) * (array.ndim - 1))
        return padded.reshape(-1, chunk, *array.shape[1:])

    @jax.checkpoint
    def add(sums, part):
        x_cd, targets_c, weights_c = part
        more = token_losses(x_cd, head_dv, targets_c, weights_c, vocab, z_loss)
        return jax.tree.map(jnp.add, sums, more), None

    parts = (in_chunks(x_nd), in_chunks(targets_n), in_chunks(weights_n))
    return jax.lax.scan(add, LossSums.zeros(), parts)[0]
