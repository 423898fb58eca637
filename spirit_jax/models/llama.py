"""The Llama decoder, in all sizes: the language model of Spirit LM.

Letters: b batch, t positions, d model width, f MLP width, h query heads, g key-value heads, k head
width, v vocabulary, l layers.

Follows Llama 2 and 3 (arXiv 2307.09288, 2407.21783): pre-norm blocks of grouped-query attention
with rotary positions (rotate-half layout) and a gated SiLU MLP. Qwen2 (arXiv 2407.10671) adds
biases of q, k and v; Qwen3 (arXiv 2505.09388) norms of query and key heads; SmolLM3 has layers
without rotary positions (arXiv 2305.19466).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.models.attention import (
    KVCache,
    LayerCache,
    NewTokens,
    apply_rope,
    attend_cache,
    rope_frequencies,
    rope_tables,
    write_cache,
)
from spirit_jax.models.attention_backends import (
    RESIDUALS,
    attend_newest,
    attend_segments,
    choose_backend,
    has_length_kernel,
)
from spirit_jax.models.linear import DecodingDense, multiply
from spirit_jax.models.llama_config import LlamaConfig

# Activations that are saved for a layer's backward pass, as names of `checkpoint_name`; the rest is
# recomputed.
REMAT_SAVES = {
    "none": None,  # everything
    "save_dots": ("q", "k", "v", RESIDUALS, "attended", "gate", "up"),
    "save_qkv": ("q", "k", "v", RESIDUALS, "attended"),
    "save_attention": (RESIDUALS,),
    "block": (),
    "offload": (RESIDUALS,),
}
OFFLOADED = ("block_input",)  # to the host's memory, under "offload"
HEAD_AXES = ("embed", "vocab")


class RMSNorm(nn.Module):
    """RMS norm (arXiv 1910.07467): x / rms(x) * scale, with the mean square in float32.

    The scale is not sharded: it has no logical axes.
    """

    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        scale_d = self.param("scale", nn.initializers.ones, (x_btd.shape[-1],), self.param_dtype)
        x32_btd = x_btd.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32_btd), axis=-1, keepdims=True)
        normed_btd = (x32_btd * jax.lax.rsqrt(mean_square + self.eps)).astype(x_btd.dtype)
        return scale_d.astype(x_btd.dtype) * normed_btd


class Block(nn.Module):
    """A pre-norm decoder layer: attention and a gated MLP, each with a residual connection."""

    config: LlamaConfig
    dtype: Any
    param_dtype: Any
    attention: str = "reference"
    outputs_first: bool = False

    @nn.compact
    def __call__(self, carry, rope, seen, is_rotated=None):
        """Applies the layer.

        Args:
          carry: (x_btd, LayerCache or None).
          rope: from `rope_tables`; None for a layer without rotary positions.
          seen: with a cache `NewTokens`; otherwise segments_bt.
          is_rotated: bool scalar, whether the layer has rotary positions, for layers that are
            scanned; None if all have.

        Returns:
          The new carry, and None (for `nn.scan`).
        """
        x_btd, cache = carry
        cfg = self.config
        x_btd = _saved(x_btd, "block_input", "batch", None, None)

        y_btd = RMSNorm(cfg.rms_norm_eps, self.param_dtype, name="attention_norm")(x_btd)
        head, kv_head = (cfg.num_heads, cfg.head_dim), (cfg.num_kv_heads, cfg.head_dim)
        bias = cfg.qkv_bias
        q_bthk = self._linear("q", ("embed",), head, ("heads", "head_dim"), bias)(y_btd)
        k_btgk = self._linear("k", ("embed",), kv_head, ("kv_heads", "head_dim"), bias)(y_btd)
        v_btgk = self._linear("v", ("embed",), kv_head, ("kv_heads", "head_dim"), bias)(y_btd)
        if cfg.qk_norm:
            q_bthk = RMSNorm(cfg.rms_norm_eps, self.param_dtype, name="q_norm")(q_bthk)
            k_btgk = RMSNorm(cfg.rms_norm_eps, self.param_dtype, name="k_norm")(k_btgk)
        if rope is not None and is_rotated is not None:  # an angle of 0 changes nothing
            rope = jnp.where(is_rotated, rope[0], 1.0), jnp.where(is_rotated, rope[1], 0.0)
        if rope is not None:
            q_bthk, k_btgk = apply_rope(q_bthk, rope), apply_rope(k_btgk, rope)
        q_bthk, k_btgk = checkpoint_name(q_bthk, "q"), checkpoint_name(k_btgk, "k")
        v_btgk = checkpoint_name(v_btgk, "v")
        q_bthk = sharding.constrain(q_bthk, "batch", None, "heads", None)
        if cache is None:
            name = "reference" if self.is_initializing() else self.attention
            backend = choose_backend(name, self.dtype, cfg.head_dim, x_btd.shape[1])
            y_bthk = attend_segments(q_bthk, k_btgk, v_btgk, seen, backend)
        else:
            cache = write_cache(cache, k_btgk, v_btgk, seen)
            if x_btd.shape[1] == 1 and seen.rows_b is None and has_length_kernel(cache):
                y_bthk = attend_newest(q_bthk, cache, seen.positions_bt)
            else:
                y_bthk = attend_cache(q_bthk, cache, seen)
        width, bias = (cfg.hidden_size,), cfg.attention_bias
        out = self._linear("o", ("heads", "head_dim"), width, ("embed",), bias)
        x_btd = sharding.constrain(x_btd + out(y_bthk), "batch", None, None)
        x_btd = _saved(x_btd, "attended", "batch", None, None)

        y_btd = RMSNorm(cfg.rms_norm_eps, self.param_dtype, name="mlp_norm")(x_btd)
        width, bias = (cfg.intermediate_size,), cfg.mlp_bias
        gate_btf = self._linear("gate", ("embed",), width, ("mlp",), bias)(y_btd)
        up_btf = self._linear("up", ("embed",), width, ("mlp",), bias)(y_btd)
        gate_btf = _saved(gate_btf, "gate", "batch", None, "mlp")
        up_btf = _saved(up_btf, "up", "batch", None, "mlp")
        y_btf = sharding.constrain(nn.silu(gate_btf) * up_btf, "batch", None, "mlp")
        down = self._linear("down", ("mlp",), (cfg.hidden_size,), ("embed",), bias)
        x_btd = sharding.constrain(x_btd + down(y_btf), "batch", None, None)
        return (x_btd, cache), None

    def _linear(self, name, in_axes, out_shape, out_axes, use_bias):
        axis = tuple(range(-len(in_axes), 0))
        int8 = self.config.int8_weights
        if int8 or self.outputs_first:
            return DecodingDense(
                out_shape,
                axis,
                self.dtype,
                self.param_dtype,
                in_axes + out_axes,
                use_bias,
                int8,
                self.outputs_first,
                name=name,
            )
        kernel_init = nn.initializers.normal(self.config.init_std)
        return nn.DenseGeneral(
            out_shape,
            axis=axis,
            use_bias=use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.with_logical_partitioning(kernel_init, in_axes + out_axes),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, out_axes),
            name=name,
        )


def _saved(x: jax.Array, name: str, *axes: str | None) -> jax.Array:
    """Names an activation for `REMAT_SAVES`, and fixes its row-major layout.

    Without the fixed layout, the TPU compiler saves activations transposed and copies them back.
    """
    row_major = Layout(tuple(range(x.ndim)))
    # Per device, since a constraint on the whole array would gather it.
    laid_out = sharding.per_device(
        lambda x: with_layout_constraint(x, row_major), (x,), (axes,), axes
    )
    return checkpoint_name(laid_out, name)


class Unrolled(nn.Module):
    """The layers without a scan; their parameters are named `0`, `1`, ..."""

    block: Any
    config: LlamaConfig
    dtype: Any
    param_dtype: Any
    attention: str = "reference"
    outputs_first: bool = False

    @nn.compact
    def __call__(self, carry, rope, seen, is_rotated=None):
        x_btd, caches = carry
        new_caches = []
        for i in range(self.config.num_layers):
            block = self.block(
                self.config,
                self.dtype,
                self.param_dtype,
                self.attention,
                self.outputs_first,
                name=str(i),
            )
            cache = None if caches is None else caches[i]
            tables = None if i in self.config.unrotated_layers else rope
            (x_btd, cache), _ = block((x_btd, cache), tables, seen)
            new_caches.append(cache)
        return (x_btd, None if caches is None else tuple(new_caches)), None


class Llama(nn.Module):
    """Token ids to logits.

    Attributes:
      config: the sizes.
      dtype: of the computation; norms, softmax, rotary angles and logits are always float32.
      param_dtype: of initialised parameters.
      scan_layers: scans one compiled layer over stacked parameters (fast compilation, for training
        and accelerators), or unrolls all layers (no slicing of parameters and cache, so decoding on
        a CPU is faster). The results are the same.
      remat: what the backward pass recomputes to save memory: "none", nothing; "save_dots", norms
        and activations; "save_qkv", the MLP's products too; "save_attention", all but attention;
        "block", the whole layer. "offload" is "save_attention" with the inputs of layers kept in
        host memory.
      attention: the backend for whole rows, one of `attention_backends.BACKENDS`; see
        `attention_backends.has_length_kernel` for attention over a cache.
      int8_cache: keys and values are rounded to int8 in the cache.
      outputs_first: the matrices of the layers and the head have their output channels first; see
        `llama_weights.lay_out_for_decoding`.
    """

    config: LlamaConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scan_layers: bool = False
    remat: str = "none"
    attention: str = "auto"
    int8_cache: bool = False
    outputs_first: bool = False

    def setup(self):
        cfg = self.config
        init = nn.initializers.normal(cfg.init_std)
        self.embed = nn.Embed(
            cfg.vocab_size,
            cfg.hidden_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=nn.with_logical_partitioning(init, ("vocab", "embed")),
        )
        block = self._remat(Block)
        stack = functools.partial(Unrolled, block)
        if self.scan_layers:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, 0),
                length=cfg.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
        self.layers = stack(cfg, self.dtype, self.param_dtype, self.attention, self.outputs_first)
        self.final_norm = RMSNorm(cfg.rms_norm_eps, self.param_dtype)
        if not cfg.tie_embeddings:
            zeros = nn.initializers.zeros
            order = slice(None, None, -1 if self.outputs_first else 1)
            self.head = self.param(
                "head",
                nn.with_logical_partitioning(zeros if cfg.int8_weights else init, HEAD_AXES[order]),
                (cfg.hidden_size, cfg.vocab_size)[order],
                jnp.int8 if cfg.int8_weights else self.param_dtype,
            )
            if cfg.int8_weights:
                self.head_scale = self.param(
                    "head_scale",
                    nn.with_logical_partitioning(nn.initializers.ones, HEAD_AXES[1:]),
                    (cfg.vocab_size,),
                    jnp.float32,
                )

    def _remat(self, block):
        if self.remat not in REMAT_SAVES:
            names = ", ".join(REMAT_SAVES)
            raise InputError(f"remat is '{self.remat}', expected one of {names}.")
        saves = REMAT_SAVES[self.remat]
        if saves is None:
            return block
        policy = jax.checkpoint_policies.save_only_these_names(*saves)
        if self.remat == "offload":
            policy = jax.checkpoint_policies.save_and_offload_only_these_names(
                names_which_can_be_saved=saves,
                names_which_can_be_offloaded=OFFLOADED,
                offload_src="device",
                offload_dst="pinned_host",
            )
        # In a scan, XLA cannot merge the recomputation with the forward pass anyway.
        return nn.remat(block, prevent_cse=not self.scan_layers, policy=policy)

    def __call__(
        self,
        tokens_bt: jax.Array,
        segments_bt: jax.Array,
        positions_bt: jax.Array,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Logits of the next token.

        Args:
          tokens_bt: int32 ids.
          segments_bt: int32, 0 for padding; a token attends to earlier tokens of its own segment.
            With a cache, all tokens of a row are one segment, and padding follows them.
          positions_bt: int32 rotary positions, counted from 0 in each segment; with a cache, from
            its `lengths_b`. With a cache a token attends to the slots up to its position.
          cache: of earlier tokens; None for whole rows. Only unrolled layers have caches.

        Returns:
          float32 logits_btv, and the cache with the new tokens (None without a cache).
        """
        x_btd, cache = self.features(tokens_bt, segments_bt, positions_bt, cache)
        return self.project(x_btd), cache

    def features(
        self,
        tokens_bt: jax.Array,
        segments_bt: jax.Array,
        positions_bt: jax.Array,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Features before the output projection, (b, t, d) in `dtype`, and the cache.

        Args:
          tokens_bt, segments_bt, positions_bt, cache: see `__call__`.
        """
        layer_caches, seen = None, segments_bt
        if cache is not None:
            layer_caches = cache.layers
            seen = NewTokens(positions_bt, cache.lengths_b, cache.rows_b, cache.window)
        x_btd = sharding.constrain(self.embed(tokens_bt), "batch", None, None)
        cfg = self.config
        frequencies = rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        factor = cfg.rope_scaling.attention_factor if cfg.rope_scaling else 1.0
        rope = rope_tables(positions_bt, frequencies, factor)
        is_rotated_l = None
        if cfg.unrotated_layers:
            is_rotated_l = jnp.array([i not in cfg.unrotated_layers for i in range(cfg.num_layers)])
        (x_btd, layer_caches), _ = self.layers((x_btd, layer_caches), rope, seen, is_rotated_l)
        if cache is not None:
            counts_b = jnp.sum(segments_bt > 0, axis=1)
            cache = cache.replace(layers=layer_caches, lengths_b=cache.lengths_b + counts_b)
        return self.final_norm(x_btd), cache

    def project(self, x_btd: jax.Array) -> jax.Array:
        """Features to float32 logits, (b, t, v)."""
        if self.config.tie_embeddings:
            head = self.embed.embedding if self.outputs_first else self.embed.embedding.T
        else:
            head = self.head
        if head.dtype == jnp.int8:
            logits_btv = multiply(x_btd, head, 1, self.outputs_first) * self.head_scale
        else:
            logits_btv = multiply(x_btd, head.astype(self.dtype), 1, self.outputs_first)
        return sharding.constrain(logits_btv, "batch", None, "vocab")


def init_cache(model: Llama, batch: int, slots: int) -> KVCache:
    """An empty cache, in the model's computation dtype or int8.

    Args:
      model: for its sizes.
      batch: number of rows.
      slots: tokens that fit in a row.
    """
    cfg = model.config
    shape = (batch, cfg.num_kv_heads, slots, cfg.head_dim)

    def zeros(shape, dtype) -> jax.Array:
        return sharding.constrain(jnp.zeros(shape, dtype), *sharding.CACHE_AXES[: len(shape)])

    def layer() -> LayerCache:
        if not model.int8_cache:
            return LayerCache(zeros(shape, model.dtype), zeros(shape, model.dtype))
        scales = (zeros(shape[:3], jnp.float32) for _ in range(2))
        return LayerCache(zeros(shape, jnp.int8), zeros(shape, jnp.int8), *scales)

    layers = tuple(layer() for _ in range(cfg.num_layers))
    return KVCache(layers, jnp.zeros(batch, jnp.int32))
