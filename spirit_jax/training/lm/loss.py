"""Next-token cross-entropy, computed in chunks so that not all logits are in memory at once.

Letters: b batch, t time, n tokens (rows and positions together), c tokens of a chunk, d model
width, v vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from spirit_jax import sharding
from spirit_jax.models.llama import Llama
from spirit_jax.training.configs import StepConfig
from spirit_jax.training.step import Gradients, TrainState, merge
from spirit_jax.vocab import Vocab


@struct.dataclass
class LossSums:
    """Sums over predicted tokens; sums of chunks, micro-batches and devices may be added.

    Attributes:
      loss: weighted sum of cross-entropy in nats, and z-loss.
      count: sum of weights.
      parts: (s, 2, 3) sums of cross-entropy, correct predictions and weights, by data source and
        modality: text tokens (with markers), then units.
    """

    loss: jax.Array
    count: jax.Array
    parts: jax.Array

    @classmethod
    def zeros(cls, sources: int) -> "LossSums":
        """Sums of no tokens."""
        return cls(jnp.zeros(()), jnp.zeros(()), jnp.zeros((sources, 2, 3)))


@struct.dataclass
class Targets:
    """Targets of next-token prediction, arrays (b, t) or (n,).

    Attributes:
      tokens: int32, the tokens to predict.
      weights: float32, 0 where there is no target.
      sources: int32, index of the data source of each token.
    """

    tokens: jax.Array
    weights: jax.Array
    sources: jax.Array


def next_tokens(batch: dict[str, jax.Array]) -> Targets:
    """The next token of each position, if it is of the same segment."""

    def shift(array_bt):
        return jnp.pad(array_bt[:, 1:], ((0, 0), (0, 1)))

    segments_bt = batch["segments"]
    same_bt = shift(segments_bt) == segments_bt
    weights_bt = jnp.where(same_bt, shift(batch["weights"]), 0)
    return Targets(shift(batch["tokens"]), weights_bt, shift(batch["sources"]))


def token_losses(
    x_nd: jax.Array,
    head_dv: jax.Array,
    targets: Targets,
    vocab: Vocab,
    sources: int = 1,
    z_loss: float = 0.0,
) -> LossSums:
    """Cross-entropy of tokens, with all logits in memory; padding rows have probability 0.

    Args:
      x_nd: features of the last layer, of any float dtype.
      head_dv: output projection, of the same dtype.
      targets: arrays (n,).
      vocab: its size and first unit are used.
      sources: number of data sources.
      z_loss: weight of the squared log of the softmax's denominator (PaLM, arXiv 2204.02311).

    Returns:
      Sums over the tokens.
    """
    return _losses_of(_logits(x_nd, head_dv), targets, vocab, sources, z_loss)


def _logits(x_nd: jax.Array, head_dv: jax.Array) -> jax.Array:
    return jnp.einsum("nd,dv->nv", x_nd, head_dv, preferred_element_type=jnp.float32)


def _losses_of(
    logits_nv: jax.Array, targets: Targets, vocab: Vocab, sources: int, z_loss: float
) -> LossSums:
    """See `token_losses`."""
    targets_n, weights_n = targets.tokens, targets.weights
    exists_v = jnp.arange(logits_nv.shape[-1]) < vocab.size
    logits_nv = jnp.where(exists_v, logits_nv, -jnp.inf)
    normaliser_n = jax.nn.logsumexp(logits_nv, axis=-1)
    target_n = jnp.take_along_axis(logits_nv, targets_n[:, None], axis=-1)[:, 0]
    entropy_n = normaliser_n - target_n
    hits_n = (jnp.argmax(logits_nv, axis=-1) == targets_n).astype(jnp.float32)
    loss_n = entropy_n + z_loss * jnp.square(normaliser_n)

    metrics_n3 = jnp.stack([entropy_n, hits_n, jnp.ones_like(hits_n)], axis=-1)

    def sums(selected_n):
        return jnp.where(selected_n, weights_n, 0) @ metrics_n3

    is_unit_n = vocab.is_unit(targets_n)
    of_source_sn = targets.sources == jnp.arange(sources)[:, None]
    parts = [[sums(mask_n & ~is_unit_n), sums(mask_n & is_unit_n)] for mask_n in of_source_sn]
    return LossSums(weights_n @ loss_n, weights_n.sum(), jnp.array(parts))


def chunked_losses(
    x_nd: jax.Array,
    head_dv: jax.Array,
    master_dv: jax.Array,
    targets: Targets,
    vocab: Vocab,
    sources: int,
    z_loss: float,
    chunk: int,
) -> LossSums:
    """`token_losses` of `chunk` tokens at a time.

    The forward pass computes the gradient of each chunk together with its loss, so that logits are
    computed once; the backward pass only scales it. Only the sum `loss` has a gradient. That of
    the head is summed in float32: in bfloat16, the sum over many chunks would lose whole percents.

    Args:
      x_nd, head_dv, targets, vocab, sources, z_loss: see `token_losses`.
      master_dv: float32, the parameter of which `head_dv` is a copy. It gets the gradient, and its
        values are not used.
      chunk: tokens of a chunk.

    Returns:
      Sums over the tokens.
    """

    @jax.custom_vjp
    def losses(x_ncd, head_dv, master_dv, targets):
        def add(sums, part):
            of_chunk = token_losses(part[0], head_dv, part[1], vocab, sources, z_loss)
            return jax.tree.map(jnp.add, sums, of_chunk), None

        return jax.lax.scan(add, LossSums.zeros(sources), (x_ncd, targets))[0]

    def forward(x_ncd, head_dv, master_dv, targets):
        def add(carry, part):
            sums, dx_cd, dhead_dv = _loss_gradients(
                part[0], head_dv, part[1], vocab, sources, z_loss
            )
            return jax.tree.map(jnp.add, carry, (sums, dhead_dv)), dx_cd

        zeros = (LossSums.zeros(sources), jnp.zeros(head_dv.shape))
        (sums, dhead_dv), dx_ncd = jax.lax.scan(add, zeros, (x_ncd, targets))
        return sums, (dx_ncd, dhead_dv)

    def backward(gradients, cotangents):
        dx_ncd, dhead_dv = gradients
        scale = cotangents.loss
        return (scale * dx_ncd).astype(dx_ncd.dtype), None, scale * dhead_dv, None

    losses.defvjp(forward, backward)
    x_ncd, targets = jax.tree.map(lambda array: _in_chunks(array, chunk), (x_nd, targets))
    return losses(x_ncd, head_dv, master_dv, targets)


def _in_chunks(array: jax.Array, chunk: int) -> jax.Array:
    """An array (n, ...) as chunks (n, c, ...); the last is padded with zeros."""
    padding = -len(array) % chunk
    padded = jnp.pad(array, ((0, padding),) + ((0, 0),) * (array.ndim - 1))
    return padded.reshape(-1, chunk, *array.shape[1:])


def _loss_gradients(
    x_cd: jax.Array, head_dv: jax.Array, targets: Targets, vocab: Vocab, sources: int, z_loss: float
) -> tuple[LossSums, jax.Array, jax.Array]:
    """(the sums of `token_losses`, the gradients of their loss for features and head)."""

    def loss_of(logits_cv):
        sums = _losses_of(logits_cv, targets, vocab, sources, z_loss)
        return sums.loss, sums

    dlogits_cv, sums = jax.grad(loss_of, has_aux=True)(_logits(x_cd, head_dv))
    dlogits_cv = dlogits_cv.astype(x_cd.dtype)
    dx_cd = jnp.einsum("cv,dv->cd", dlogits_cv, head_dv)
    dhead_dv = jnp.einsum("cd,cv->dv", x_cd, dlogits_cv, preferred_element_type=jnp.float32)
    return sums, dx_cd, dhead_dv


@dataclasses.dataclass(frozen=True)
class Objective:
    """Next-token cross-entropy of a model on packed batches, its gradients and metrics.

    Attributes:
      model: its `dtype` is that of the computation; parameters are cast to it.
      vocab: of the model.
      config: how the loss is computed.
      sources: names of the data sources, for metrics.
    """

    model: Llama
    vocab: Vocab
    config: StepConfig = StepConfig()
    sources: tuple[str, ...] = ("data",)

    def losses(self, params: Any, batch: dict[str, jax.Array]) -> LossSums:
        """Loss sums of a batch.

        Args:
          params: all parameters of the model.
          batch: arrays (b, t) from `data.pipeline.Stream`.
        """
        x_btd, _ = self.model.apply(
            {"params": params},
            batch["tokens"],
            batch["segments"],
            batch["positions"],
            method="features",
        )
        tied = self.model.config.tie_embeddings
        master_dv = params["embed"]["embedding"].T if tied else params["head"]
        head_dv = master_dv.astype(x_btd.dtype)  # before it is gathered from its shards
        chunk = self.config.loss_chunk

        def sums_of(x_btd, targets, heads):
            x_nd = x_btd.reshape(-1, x_btd.shape[-1])
            inputs = jax.tree.map(jnp.ravel, targets), self.vocab, len(self.sources)
            if chunk:
                return chunked_losses(x_nd, *heads, *inputs, self.config.z_loss, chunk)
            return token_losses(x_nd, *heads, *inputs, self.config.z_loss)

        rows = (x_btd, next_tokens(batch))
        heads = (jax.lax.stop_gradient(head_dv), master_dv) if chunk else (head_dv,)
        return sharding.sum_over_rows(sums_of, rows, heads)

    def gradients(
        self, params: Any, batch: dict[str, jax.Array], frozen: Any = None
    ) -> tuple[Any, LossSums]:
        """Gradients of the mean loss over the predicted tokens of a batch.

        Micro-batches are weighted by their numbers of predicted tokens, so that accumulation does
        not change the result.

        Args:
          params: trained parameters.
          batch: arrays (b, t); b is a multiple of `config.accumulate`.
          frozen: frozen parameters, see `step.partition`; None if there are none.

        Returns:
          A tree like `params`, and the loss sums.
        """
        count = jnp.maximum(next_tokens(batch).weights.sum(), 1)

        def loss_of(params, part):
            sums = self.losses(merge(params, frozen), part)
            return sums.loss / count, sums

        gradient_of = jax.grad(loss_of, has_aux=True)
        if self.config.accumulate == 1:
            return gradient_of(params, batch)

        def split(array):
            parts = array.reshape(-1, self.config.accumulate, *array.shape[1:]).swapaxes(0, 1)
            return sharding.constrain(parts, None, "batch", *(None,) * (array.ndim - 1))

        def add(carry, part):
            return jax.tree.map(jnp.add, carry, gradient_of(params, part)), None

        zeros = (jax.tree.map(jnp.zeros_like, params), LossSums.zeros(len(self.sources)))
        return jax.lax.scan(add, zeros, jax.tree.map(split, batch))[0]

    def step_gradients(self, state: TrainState, batch: dict[str, jax.Array]) -> Gradients:
        """The gradient function for `train_step`; the state's `extra` has frozen parameters."""
        grads, sums = self.gradients(state.params, batch, state.extra)
        return Gradients(grads, self.metrics(sums), state.extra)

    def metrics(self, sums: LossSums) -> dict[str, jax.Array]:
        """Means of loss sums; metrics without tokens are NaN."""
        metrics = {"loss": sums.loss / sums.count, "tokens": sums.count}
        parts = dict(zip(("text", "speech"), sums.parts.sum(0), strict=True))
        if len(self.sources) > 1:
            for name, (text, speech) in zip(self.sources, sums.parts, strict=True):
                parts |= {name: text + speech, f"{name}_text": text, f"{name}_speech": speech}
        for name, (entropy, hits, count) in parts.items():
            metrics |= {f"loss_{name}": entropy / count, f"accuracy_{name}": hits / count}
        for name, part in zip(self.sources, sums.parts, strict=True):
            metrics[f"share_{name}"] = part[:, 2].sum() / sums.count
        return metrics
