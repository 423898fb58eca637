"""Attention of training over whole rows: the plain reference and, beside it, accelerators' kernels.

Letters: b batch, t positions, h query heads, g key-value heads, k head width.

Every backend honours segments: a token sees itself and earlier tokens of its own segment. A result
is named `RESIDUALS`, and so is what a kernel's backward pass needs, so that a remat policy can keep
them instead of running the kernel again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)

from spirit_jax import sharding
from spirit_jax.errors import InputError
from spirit_jax.models.attention import causal_mask

BACKENDS = ("auto", "reference", "splash", "splash_interpret", "cudnn")
RESIDUALS = "attention"
NEVER = -1e30  # a score; of padding, which sees nothing, all are this
LANES = 128  # a TPU kernel's blocks are multiples of this


def choose_backend(name: str, dtype: Any, head_dim: int, length: int) -> str:
    """The backend that "auto" stands for here; a name that cannot be used is an error.

    Raises:
      InputError: an unknown name, or a shape or dtype that the backend does not take.
    """
    if name not in BACKENDS:
        raise InputError(f"attention is '{name}', expected one of {', '.join(BACKENDS)}.")
    fits_splash = length % LANES == 0
    fits_cudnn = jnp.dtype(dtype) != jnp.float32 and head_dim % 8 == 0 and head_dim <= 128
    if name == "auto":
        platform = jax.default_backend()
        if platform == "tpu" and fits_splash:
            return "splash"
        return "cudnn" if platform == "gpu" and fits_cudnn else "reference"
    if name.startswith("splash") and not fits_splash:
        raise InputError(f"splash attention takes rows of a multiple of {LANES}, not {length}.")
    if name == "cudnn" and not fits_cudnn:
        raise InputError("cuDNN attention takes bfloat16 or float16, and heads of 8 to 128.")
    return name


def attend_segments(
    q_bthk: jax.Array,
    k_btgk: jax.Array,
    v_btgk: jax.Array,
    segments_bt: jax.Array,
    backend: str,
) -> jax.Array:
    """Causal grouped-query attention within segments: (b, t, h, k), softmax in float32.

    Args:
      q_bthk, k_btgk, v_btgk: of one dtype; queries are not yet scaled.
      segments_bt: int32; what padding (segment 0) gets is of no meaning.
      backend: what `choose_backend` gives; "splash_interpret" is the TPU's kernel on any device,
        slowly, for tests.
    """
    if backend == "cudnn":
        return checkpoint_name(_cudnn(q_bthk, k_btgk, v_btgk, segments_bt), RESIDUALS)
    on_device = _reference
    if backend.startswith("splash"):
        on_device = functools.partial(_splash, interpret=backend == "splash_interpret")
    heads, kv_heads = q_bthk.shape[2], k_btgk.shape[2]
    if sharding.parts_of("heads", heads) != sharding.parts_of("kv_heads", kv_heads):
        # A device with some query heads must have their keys and values.
        k_btgk, v_btgk = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k_btgk, v_btgk))
    by_head = ("batch", None, "heads", None)
    return sharding.per_device(
        on_device,
        (q_bthk, k_btgk, v_btgk, segments_bt),
        (by_head, by_head, by_head, by_head[:2]),
        by_head,
    )


def _reference(q_bthk, k_btgk, v_btgk, segments_bt) -> jax.Array:
    """The softmax written out, head by head; the backward pass computes it again."""
    b, t, heads, width = q_bthk.shape
    repeats = heads // k_btgk.shape[2]
    arrays = (q_bthk, jnp.repeat(k_btgk, repeats, axis=2), jnp.repeat(v_btgk, repeats, axis=2))
    by_head = [array.swapaxes(1, 2).reshape(b * heads, t, width) for array in arrays]
    rows = jnp.repeat(jnp.arange(b), heads)
    mask_bts = causal_mask(segments_bt)
    block = -(-t // 4)

    @jax.checkpoint
    def one_head(args):
        q_tk, k_sk, v_sk, row = args
        blocks = []
        for start in range(0, t, block):  # no query sees keys after those of its own block
            own, seen = slice(start, start + block), slice(0, start + block)
            scores_ts = jnp.matmul(q_tk[own], k_sk[seen].T, preferred_element_type=jnp.float32)
            scores_ts = jnp.where(mask_bts[row, own, seen], scores_ts * width**-0.5, NEVER)
            weights_ts = jax.nn.softmax(scores_ts, axis=-1)
            blocks.append(weights_ts.astype(v_sk.dtype) @ v_sk[seen])
        return jnp.concatenate(blocks)

    # A CPU is quickest with a few heads at a time, which stay in its cache.
    on_cpu = jax.default_backend() == "cpu"
    args = (*by_head, rows)
    y_ntk = jax.lax.map(one_head, args, batch_size=4) if on_cpu else jax.vmap(one_head)(args)
    y_bthk = y_ntk.reshape(b, heads, t, width).swapaxes(1, 2)
    return checkpoint_name(y_bthk, RESIDUALS)


def _cudnn(q_bthk, k_btgk, v_btgk, segments_bt) -> jax.Array:
    mask_bts = causal_mask(segments_bt)
    # Padding sees itself: a row without any key would be NaN.
    mask_bts = mask_bts | jnp.eye(mask_bts.shape[-1], dtype=bool)
    return jax.nn.dot_product_attention(
        q_bthk, k_btgk, v_btgk, mask=mask_bts[:, None], is_causal=True, implementation="cudnn"
    )


def _splash(q_bthk, k_btgk, v_btgk, segments_bt, interpret: bool) -> jax.Array:
    kernel = _splash_kernel(q_bthk.shape[2], q_bthk.shape[1], interpret)

    def one_row(q_thk, k_tgk, v_tgk, segments_t):
        by_head = (array.swapaxes(0, 1) for array in (q_thk, k_tgk, v_tgk))
        y_htk = kernel(*by_head, splash.SegmentIds(segments_t, segments_t))
        return y_htk.swapaxes(0, 1)

    scaled_bthk = q_bthk * q_bthk.shape[-1] ** -0.5
    return jax.vmap(one_row)(scaled_bthk, k_btgk, v_btgk, segments_bt)


def _splash_kernel(heads: int, length: int, interpret: bool):
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length))] * heads)

    block = next(size for size in (1024, 512, 256, LANES) if length % size == 0)
    inner = min(block, 512)
    # The queries' gradient has a kernel of its own: one for all leaves a part for each block of
    # keys, and adding those up costs more than is saved.
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=inner,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=inner,
        block_q_dq=block,
        block_kv_dq=block,
    )
    make = functools.partial(splash.make_splash_mha, head_shards=1, q_seq_shards=1)
    return make(mask, block_sizes=sizes, residual_checkpoint_name=RESIDUALS, interpret=interpret)
