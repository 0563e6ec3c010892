"""Scaled dot-product attention and its key-value cache.

Legend: B batch, T query time, S key time, N heads, H head width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from models.layers import MASKED, dropout, product
from models.spec import Place, nowhere


def causal_mask(
    query: Int[Array, "#b t"],
    key: Int[Array, "#b s"],
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]] | None = None,
) -> Bool[Array, "_ t s"]:
    """Which key each query sees: positions query [B T], key [B S] -> [B T S], also same-segment where given."""
    seen = key[:, None, :] <= query[:, :, None]
    if segments is not None:
        seen = seen & (segments[0][:, :, None] == segments[1][:, None, :])
    return seen


def attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "_ t s"],
    *,
    scale: float | Float[Array, ""],
    rate: float = 0.0,
    keys: Key[Array, "b"] | None = None,
    place: Place = nowhere,
) -> Float[Array, "b t n h"]:
    """Softmax attention, the softmax in float32: q [B T N H], k v [B S N H], mask [B or 1, T S] -> [B T N H].

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; dropout on the weights as in its section 5.4.
    """
    over = place("batch heads query key")
    scores = product("btnh,bsnh->bnts", q, k, over).astype(jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), -1).astype(q.dtype)
    weights = dropout(weights, keys, rate, "attention", over)
    return product("bnts,bsnh->btnh", weights, v, place("batch seq heads head_dim"))


def write_cache(
    store: Float[Array, "b s n h"], fresh: Float[Array, "b t n h"], start: Int[Array, ""]
) -> Float[Array, "b s n h"]:
    """Put fresh [B T N H] into store [B S N H] from time `start` on -> [B S N H].

    A start that leaves too little room is clamped by XLA: the caller checks lengths on the host.
    """
    zero: Any = jnp.zeros((), jnp.int32)
    return jax.lax.dynamic_update_slice(store, fresh.astype(store.dtype), (zero, start, zero, zero))
