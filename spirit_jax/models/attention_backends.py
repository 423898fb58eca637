"""Attention by device: a reference implementation and accelerator kernels.

Letters: b batch, t positions, h query heads, g key-value heads, k head width.

In every backend a token attends to itself and to earlier tokens of its segment. The result and the
residuals of a kernel's backward pass have the checkpoint name `RESIDUALS`, so that a remat policy
can save them instead of running the kernel again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.ad_checkpoint import checkpoint_name

from spirit_jax import devices, sharding
from spirit_jax.errors import InputError
from spirit_jax.models.attention import LayerCache, causal_mask

BACKENDS = ("auto", "reference", "splash", "splash_interpret", "cudnn")
RESIDUALS = "attention"
MASKED = -1e30  # score of masked keys; finite, since all keys of padding are masked
LANES = 128  # blocks of a TPU kernel are multiples of this


def choose_backend(name: str, dtype: Any, head_dim: int, length: int) -> str:
    """Resolves "auto" for this device, and checks other names.

    Args:
      name: one of `BACKENDS`.
      dtype: of queries, keys and values.
      head_dim: width of a head.
      length: positions of a row.

    Returns:
      The name of a backend.

    Raises:
      InputError: the name is unknown, or the backend does not support the shape or dtype.
    """
    if name not in BACKENDS:
        raise InputError(f"attention is '{name}', expected one of {', '.join(BACKENDS)}.")
    fits_splash = length % LANES == 0
    fits_cudnn = jnp.dtype(dtype) != jnp.float32 and head_dim % 8 == 0 and head_dim <= 128
    if name == "auto":
        if jax.default_backend() == "tpu" and fits_splash:
            return "splash"
        return "cudnn" if devices.is_modern_gpu() and fits_cudnn else "reference"
    if name.startswith("splash") and not fits_splash:
        raise InputError(f"splash attention takes rows of a multiple of {LANES}, not {length}.")
    if name == "cudnn" and not fits_cudnn:
        raise InputError("cuDNN attention takes bfloat16 or float16, and heads of 8 to 128.")
    if name == "cudnn" and jax.default_backend() == "gpu" and not devices.is_modern_gpu():
        raise InputError(
            "cuDNN attention needs a GPU of compute capability 8 or newer; set attention=auto."
        )
    return name


def attend_segments(
    q_bthk: jax.Array,
    k_btgk: jax.Array,
    v_btgk: jax.Array,
    segments_bt: jax.Array,
    backend: str,
) -> jax.Array:
    """Causal grouped-query attention within segments, with softmax in float32.

    Args:
      q_bthk, k_btgk, v_btgk: of one dtype; queries are not scaled yet.
      segments_bt: int32; the result for padding (segment 0) is undefined.
      backend: from `choose_backend`; "splash_interpret" runs the TPU kernel on any device, slowly,
        for tests.

    Returns:
      (b, t, h, k), of the same dtype.
    """
    if backend == "cudnn":
        return checkpoint_name(_cudnn(q_bthk, k_btgk, v_btgk, segments_bt), RESIDUALS)
    on_device = _reference
    if backend.startswith("splash"):
        on_device = functools.partial(_splash, interpret=backend == "splash_interpret")
    heads, kv_heads = q_bthk.shape[2], k_btgk.shape[2]
    if sharding.parts_of("heads", heads) != sharding.parts_of("kv_heads", kv_heads):
        # Each device must have the keys and values of its query heads.
        k_btgk, v_btgk = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k_btgk, v_btgk))
    by_head = ("batch", None, "heads", None)
    return sharding.per_device(
        on_device,
        (q_bthk, k_btgk, v_btgk, segments_bt),
        (by_head, by_head, by_head, by_head[:2]),
        by_head,
    )


def reads_filled_slots(cache: LayerCache, decoding: bool = True) -> bool:
    """Whether attention on this device reads only the filled slots of a cache, where they are.

    Elsewhere it reads a whole window, which is a copy if the cache has more rows or slots.

    Args:
      cache: of one layer.
      decoding: of a single new token of each row, and not of several.
    """
    return jax.default_backend() == "cpu" or (decoding and has_length_kernel(cache))


def has_length_kernel(cache: LayerCache) -> bool:
    """Whether `attend_newest` works on this device: a GPU for which cuDNN has attention.

    On an H200 cuDNN attends to 64 rows of 512 tokens in 2,048 slots in 0.28 of the time of
    `attend_cache`, and to full rows in 0.96.
    """
    if not devices.is_modern_gpu():
        return False
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape.get("tensor", 1)
    return fits_length_kernel(cache, parts)


def fits_length_kernel(cache: LayerCache, parts: int) -> bool:
    """Whether `attend_newest` works with a cache on a modern GPU.

    Args:
      cache: of one layer, or its shapes.
      parts: number of devices over which heads are split.
    """
    kv_heads, width = cache.k.shape[1], cache.k.shape[-1]
    return (
        cache.k.dtype in (jnp.bfloat16, jnp.float16)
        and kv_heads % parts == 0  # else a device would not have the keys of its query heads
        and width % 8 == 0
        and width <= 128
    )


def attend_newest(q_b1hk: jax.Array, cache: LayerCache, positions_b1: jax.Array) -> jax.Array:
    """`attend_cache` of a single token of each row, by cuDNN, which reads only the filled slots.

    Args:
      q_b1hk: queries of the first rows.
      cache: of one layer, in bfloat16 or float16; it may have more rows.
      positions_b1: int32; a query attends to the slots up to its position.

    Returns:
      (b, 1, h, k), in the dtype of the queries; softmax is in float32.
    """
    b, rows, width = len(q_b1hk), len(cache.k), q_b1hk.shape[-1]
    # All rows, since a part of the cache would be copied; the rest attends to one slot.
    q_rh1k = jnp.pad(q_b1hk, ((0, rows - b),) + ((0, 0),) * 3).swapaxes(1, 2)
    lengths_r = jnp.pad(positions_b1[:, 0] + 1, (0, rows - b), constant_values=1)

    def attend(q_rh1k, k_rgsk, v_rgsk, lengths_r):
        # JAX's public function takes keys as (r, s, g, k) only.
        return cudnn.dot_product_attention(
            q_rh1k,
            k_rgsk,
            v_rgsk,
            q_seqlen=jnp.ones_like(lengths_r),
            kv_seqlen=lengths_r,
            scale=width**-0.5,
            mask_type=cudnn.MaskType.PADDING,
            qkv_layout="BNTH",
        )

    by_head = ("batch", "kv_heads", None, None)
    y_rh1k = sharding.per_device(
        attend, (q_rh1k, cache.k, cache.v, lengths_r), (by_head,) * 3 + (("batch",),), by_head
    )
    return y_rh1k.swapaxes(1, 2)[:b]


def _reference(q_bthk, k_btgk, v_btgk, segments_bt) -> jax.Array:
    """Plain attention, one head at a time; the backward pass recomputes it."""
    b, t, heads, width = q_bthk.shape
    repeats = heads // k_btgk.shape[2]
    arrays = (q_bthk, jnp.repeat(k_btgk, repeats, axis=2), jnp.repeat(v_btgk, repeats, axis=2))
    by_head = [array.swapaxes(1, 2).reshape(b * heads, t, width) for array in arrays]
    rows = jnp.repeat(jnp.arange(b), heads)
    mask_bts = causal_mask(segments_bt)
    block = -(-t // 4)

    @jax.checkpoint
    def attend_head(args):
        q_tk, k_sk, v_sk, row = args
        blocks = []
        for start in range(0, t, block):  # queries never see keys after their block
            queries, keys = slice(start, start + block), slice(0, start + block)
            scores_ts = jnp.matmul(q_tk[queries], k_sk[keys].T, preferred_element_type=jnp.float32)
            scores_ts = jnp.where(mask_bts[row, queries, keys], scores_ts * width**-0.5, MASKED)
            weights_ts = jax.nn.softmax(scores_ts, axis=-1)
            blocks.append(weights_ts.astype(v_sk.dtype) @ v_sk[keys])
        return jnp.concatenate(blocks)

    # A CPU is fastest with a few heads at a time, which fit in its cache.
    on_cpu = jax.default_backend() == "cpu"
    args = (*by_head, rows)
    y_ntk = jax.lax.map(attend_head, args, batch_size=4) if on_cpu else jax.vmap(attend_head)(args)
    y_bthk = y_ntk.reshape(b, heads, t, width).swapaxes(1, 2)
    return checkpoint_name(y_bthk, RESIDUALS)


def _cudnn(q_bthk, k_btgk, v_btgk, segments_bt) -> jax.Array:
    mask_bts = causal_mask(segments_bt)
    # Padding attends to itself, since a query without keys would be NaN.
    mask_bts = mask_bts | jnp.eye(mask_bts.shape[-1], dtype=bool)
    return jax.nn.dot_product_attention(
        q_bthk, k_btgk, v_btgk, mask=mask_bts[:, None], is_causal=True, implementation="cudnn"
    )


def _splash(q_bthk, k_btgk, v_btgk, segments_bt, interpret: bool) -> jax.Array:
    # Imports much of Pallas, which is slow.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    kernel = _splash_kernel(q_bthk.shape[2], q_bthk.shape[1], interpret)

    def attend_row(q_thk, k_tgk, v_tgk, segments_t):
        by_head = (array.swapaxes(0, 1) for array in (q_thk, k_tgk, v_tgk))
        y_htk = kernel(*by_head, splash.SegmentIds(segments_t, segments_t))
        return y_htk.swapaxes(0, 1)

    scaled_bthk = q_bthk * q_bthk.shape[-1] ** -0.5
    return jax.vmap(attend_row)(scaled_bthk, k_btgk, v_btgk, segments_bt)


def _splash_kernel(heads: int, length: int, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    block = next(size for size in (1024, 512, 256, LANES) if length % size == 0)
    inner = min(block, 512)
    # A separate kernel for the gradient of queries: the fused kernel writes a partial sum for each
    # block of keys, and adding these up takes longer.
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
