"""Scaled dot-product attention, which keys a query sees, and the key-value cache.

Legend: B batch, T query time, S key time, N query heads, K key-value heads, H head width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import auto_axes
from jaxtyping import Array, Bool, Float, Int, Key

from models.layers import MASKED, dropout, product, resharded
from models.spec import Place, Spec, constant, nowhere, zeros

UNSEEN = -1  # the place of a key that is none: of padding, or of a cache's empty place


def in_order(position: Int[Array, "b t"], start: Int[Array, ""]) -> Int[Array, "b t"]:
    """The place of tokens in their row, from `start` on, UNSEEN where their position is below 0: [B T] -> [B T].

    Positions may begin anew within a row; what comes first does not change by that.
    """
    return jnp.where(position < 0, UNSEEN, start + jnp.arange(position.shape[1])[None])


def visible(
    query: Int[Array, "#b t"],
    key: Int[Array, "#b s"],
    *,
    causal: bool = True,
    window: int | None = None,
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]] | None = None,
) -> Bool[Array, "_ t s"]:
    """Which key each query sees: places in their row query [B T], key [B S] -> [B T S].

    A query sees itself and what is before it, or, not `causal`, everything; of what is before it the nearest `window`
    with itself; of its own segment. Padding is seen by padding alone, so that its softmax is one.
    """
    now, then = query[:, :, None], key[:, None, :]
    seen = (then >= 0) | (now < 0)
    if causal:
        seen = seen & (then <= now)
    if window is not None:
        seen = seen & (now - then < window)
    if segments is not None:
        seen = seen & (segments[0][:, :, None] == segments[1][:, None, :])
    return seen


def attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: Bool[Array, "_ t s"],
    *,
    scale: float | Float[Array, ""],
    rate: float = 0.0,
    keys: Key[Array, "b"] | None = None,
    place: Place = nowhere,
) -> Float[Array, "b t n h"]:
    """Softmax attention, the softmax in float32: q [B T N H], k v [B S K H], mask [B or 1, T S] -> [B T N H].

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; dropout on the weights as in its section 5.4; fewer key-value
    heads than queries as in Ainslie et al. 2023, arXiv:2305.13245.
    """
    over = place("batch heads query key")
    k, v = (spread(x, q.shape[2], place("batch key heads head_dim")) for x in (k, v))
    scores = product("btnh,bsnh->bnts", q, k, over).astype(jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), -1).astype(q.dtype)
    weights = dropout(weights, keys, rate, "attention", over)
    return product("bnts,bsnh->btnh", weights, v, place("batch seq heads head_dim"))


def spread(x: Float[Array, "b s k h"], heads: int, over: Any = None) -> Float[Array, "b s n h"]:
    """Each key-value head once for each query head of its group: x [B S K H] -> [B S N H]."""
    group = heads // x.shape[2]
    if group == 1:
        return x if over is None else resharded(x, over)
    if over is None:
        return jnp.repeat(x, group, 2)
    return auto_axes(lambda x: jnp.repeat(x, group, 2), out_sharding=over)(x)


def cache_specs(layers: int, batch: int, length: int, heads: int, width: int, dtype: str) -> dict[str, Spec]:
    """The table of what some layers keep of the newest `length` tokens: k v [L B S K H], position [B S]."""
    held = Spec((layers, batch, length, heads, width), "layers batch key kv_heads head_dim", zeros, dtype=dtype)
    return {"k": held, "v": held, "position": Spec((batch, length), "batch key", constant(UNSEEN), dtype="int32")}


def remember(held: Array, fresh: Array, start: Int[Array, ""] | None) -> tuple[Array, Array]:
    """What queries can see, and what is kept of it, along axis 1: held [B S ...], fresh [B T ...] -> two arrays.

    Written from place `start` on, both are [B S ...]; a start that leaves too little room is clamped by XLA, and the
    caller's to check. With None the fresh follow all held, [B S+T ...], and the newest S are kept.
    """
    fresh = fresh.astype(held.dtype)
    if start is None:
        seen = jnp.concatenate([held, fresh], 1)
        return seen, seen[:, fresh.shape[1] :]
    at = [jnp.zeros((), jnp.int32)] * held.ndim
    at[1] = start
    seen = jax.lax.dynamic_update_slice(held, fresh, at)
    return seen, seen
