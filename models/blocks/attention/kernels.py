"""Attention by the kernels of libraries, on the rows and heads of one device.

`models/blocks/attention/attention.py: BACKENDS` declares what each of them supports.

Legend: B batch, T query time, S key time, N query heads, K key-value heads, H head width.
"""

import jax
from jaxtyping import Array, Float

from errors import UsageError
from models.blocks.attention.mask import AttentionMask

LANES = 128  # vector lanes of a TPU: the blocks of splash attention are multiples of it


def xla(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: AttentionMask,
    *,
    scale: float,
) -> Float[Array, "b t n h"]:
    """jax.nn's attention in plain XLA operations: q [B T N H], k v [B S K H] -> [B T N H]."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask.array[:, None], scale=scale, implementation="xla")


def cudnn(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: AttentionMask,
    *,
    scale: float,
) -> Float[Array, "b t n h"]:
    """cuDNN's flash attention: q [B T N H], k v [B S K H] -> [B T N H].

    Raises UsageError for what this machine's cuDNN does not support.
    """
    near = None if mask.window is None else (mask.window - 1, 0)
    try:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=mask.causal, local_window_size=near, scale=scale, implementation="cudnn"
        )
    except NotImplementedError as error:
        raise UsageError(f"attention = 'cudnn': {error}") from error


def splash(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: AttentionMask,
    *,
    scale: float,
    logit_softcap: float | None = None,
    sinks: Float[Array, " n"] | None = None,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Splash attention, JAX's kernel for TPUs: q [B T N H], k v [B S K H] -> [B T N H].

    T and S must be multiples of LANES. `interpret` runs it on any machine, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library  # pallas takes a second to import

    shape = (q.shape[1], k.shape[1])
    near = None if mask.window is None else mask.window - 1
    library_mask: library.Mask = library.LocalMask(shape, (near, 0 if mask.causal else near), 0)
    if near is None:
        library_mask = library.CausalMask(shape) if mask.causal else library.FullMask(shape)
    rows, columns = map(_block_size, shape)
    blocks = library.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    kernel = library.make_splash_mha(
        library.MultiHeadMask([library_mask] * q.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
        attn_logits_soft_cap=logit_softcap,
        interpret=interpret,
    )
    q, k, v = (x.swapaxes(1, 2) for x in ((q * scale).astype(q.dtype), k, v))
    segments = None if mask.segments is None else library.SegmentIds(*mask.segments)
    return jax.vmap(kernel, (0, 0, 0, None if segments is None else 0, None))(q, k, v, segments, sinks).swapaxes(1, 2)


def _block_size(length: int) -> int:
    """The size of a kernel's blocks along time: the largest of a few that divides a length."""
    return next(n for n in (4 * LANES, 2 * LANES, LANES) if length % n == 0)
