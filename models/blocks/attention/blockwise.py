"""Attention by blocks of queries, each of which reads only the keys that its queries may attend to.

Legend: B batch, T query time, S key time, N query heads, K key-value heads, G = N/K, H head width, W value width;
t, s queries and keys of a block. Time is the last axis but one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.blocks.attention.mask import AttentionMask, make_mask
from models.core.gradients import with_gradient
from models.core.layers import MASK_VALUE, softcap

BLOCK = 128  # queries of a block
STAGES = 8  # at most so many stages, so that compile time does not grow with T


def blockwise(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k w"],
    mask: AttentionMask,
    *,
    scale: float,
    logit_softcap: float | None = None,
    sinks: Float[Array, " n"] | None = None,
) -> Float[Array, "b t n w"]:
    """Attention in memory linear in T and S: q [B T N H], k [B S K H], v [B S K W] -> [B T N W].

    The backward pass computes the weights of each block again, from the maximum and the sum of its softmax.
    Source: Rabe and Staats 2021, arXiv:2112.05682; the gradient as in Dao et al. 2022, arXiv:2205.14135, appendix B.4.
    Deviation: a block reads all its keys at once, so that no softmax is merged from parts.
    """
    heads_first = [x.swapaxes(1, 2) for x in (q, k, v)]
    grouped = heads_first[0].reshape(q.shape[0], k.shape[2], -1, q.shape[1], q.shape[3])
    if sinks is not None:
        sinks = sinks.astype(jnp.float32).reshape(1, k.shape[2], -1, 1, 1)
    out = _attend(grouped, *heads_first[1:], sinks, mask, _Scoring(scale, logit_softcap))
    return out.reshape(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).swapaxes(1, 2)


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks of `size` queries, the first at `start`, each of which reads `keys` keys."""

    start: int
    size: int
    blocks: int
    keys: int


def make_stages(T: int, S: int, mask: AttentionMask) -> list[Stage]:
    """Cut T queries into stages of blocks, so that a block reads few keys to which none of its queries attends."""
    whole, rest = divmod(T, BLOCK)
    blocks = max(1, -(-whole // STAGES))
    cuts = [(at * BLOCK, BLOCK, min(blocks, whole - at)) for at in range(0, whole, blocks)]
    cuts += [(whole * BLOCK, rest, 1)] if rest else []
    return [Stage(*cut, _count_keys(*cut, T, S, mask)) for cut in cuts]


def _count_keys(start: int, size: int, blocks: int, T: int, S: int, mask: AttentionMask) -> int:
    """How many keys each block of a stage reads: all, unless query i and key i are known to have the same index."""
    if not (mask.contiguous and T == S):
        return S
    reach = mask.window or S
    ahead = 0 if mask.causal else reach - 1
    starts = range(start, start + blocks * size, size)
    return max(min(S, at + size + ahead) - max(0, at + 1 - reach) for at in starts)


@dataclass(frozen=True)
class _Scoring:
    """How queries and keys give scores."""

    scale: float
    logit_softcap: float | None


@dataclass(frozen=True)
class _Block:
    """One block: its part of arrays over queries and over keys, and its scores."""

    stage: Stage
    first: Array | int  # its first query
    mask: AttentionMask
    scoring: _Scoring

    def queries(self, x: Array, axis: int = -2) -> Array:
        """The block's part of an array over queries: x [... T H] -> [... t H]."""
        return jax.lax.dynamic_slice_in_dim(x, self.first, self.stage.size, axis)

    def keys(self, x: Array, axis: int = -2) -> Array:
        """The block's part of an array over keys: x [... S H] -> [... s H]."""
        return jax.lax.dynamic_slice_in_dim(x, self._first_key(x.shape[axis]), self.stage.keys, axis)

    def add_to_keys(self, x: Array, part: Array) -> Array:
        """Add the block's part to an array over keys: x [... S H], part [... s H] -> [... S H]."""
        return jax.lax.dynamic_update_slice_in_dim(x, self.keys(x) + part, self._first_key(x.shape[-2]), -2)

    def _first_key(self, S: int) -> Array | int:
        if self.mask.window is None or self.stage.keys == S:
            return 0
        return jnp.clip(self.first + 1 - self.mask.window, 0, S - self.stage.keys)

    def scores(self, q: Array, k: Array) -> Array:
        """Masked scores, float32, of the block's queries and keys: q [B K G t H], k [B K s H] -> [B K G t s]."""
        scores = jnp.einsum("bkgth,bksh->bkgts", q, k).astype(jnp.float32) * self.scoring.scale
        if self.scoring.logit_softcap is not None:
            scores = softcap(scores, self.scoring.logit_softcap)
        m = self.mask
        segments = None if m.segments is None else (self.queries(m.segments[0], 1), self.keys(m.segments[1], 1))
        q_index, k_index = self.queries(m.q_index, 1), self.keys(m.k_index, 1)
        visible = make_mask(q_index, k_index, window=m.window, segments=segments, causal=m.causal)
        return jnp.where(visible[:, None, None], scores, MASK_VALUE)


def _weigh(weights: Array, v: Array) -> Array:
    """Sums of values by weights: weights [B K G t s], v [B K s W] -> [B K G t W]."""
    return jnp.einsum("bkgts,bksw->bkgtw", weights.astype(v.dtype), v)


def _scan(body: Callable[[Any, Array | int], tuple[Any, Any]], carry: Any, stage: Stage) -> tuple[Any, Any]:
    """Scan over the first queries of a stage's blocks, and join what they give along time; one block needs no loop."""
    if stage.blocks == 1:
        return body(carry, stage.start)
    carry, parts = jax.lax.scan(body, carry, stage.start + stage.size * jnp.arange(stage.blocks))

    def join(x: Array) -> Array:  # [blocks ... t H] -> [... blocks*t H]
        x = jnp.moveaxis(x, 0, -3)
        return x.reshape(*x.shape[:-3], -1, x.shape[-1])

    return carry, jax.tree.map(join, parts)


def _forward(
    q: Array, k: Array, v: Array, sinks: Array | None, mask: AttentionMask, scoring: _Scoring
) -> tuple[Array, tuple[Any, ...]]:
    """Attention, and what its gradient needs: q [B K G T H], k [B K S H], v [B K S W] -> [B K G T W]."""

    def body(stage: Stage, _: None, first: Array | int) -> tuple[None, tuple[Array, Array, Array]]:
        block = _Block(stage, first, mask, scoring)
        scores = block.scores(block.queries(q), block.keys(k))
        top = jnp.max(scores, -1, keepdims=True)
        top = top if sinks is None else jnp.maximum(top, sinks)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, -1, keepdims=True)
        total = total if sinks is None else total + jnp.exp(sinks - top)
        out = _weigh(weights, block.keys(v))
        return None, ((out / total).astype(out.dtype), top, total)

    parts = [_scan(partial(body, stage), None, stage)[1] for stage in make_stages(q.shape[-2], k.shape[-2], mask)]
    out, top, total = (jnp.concatenate(xs, -2) for xs in zip(*parts, strict=True))
    return out, (q, k, v, sinks, mask, out, top, total)


def _backward(scoring: _Scoring, saved: tuple[Any, ...], grad: Array) -> tuple[Array | None, ...]:
    """Gradients of q, k, v and sinks, from that of the result [B K G T W]."""
    q, k, v, sinks, mask, out, top, total = saved
    # of the gradients of a query's weights, their mean by these weights
    mean = jnp.sum((grad * out).astype(jnp.float32), -1, keepdims=True)

    def body(stage: Stage, carry: tuple[Array, Array], first: Array | int) -> tuple[tuple[Array, ...], Array]:
        block = _Block(stage, first, mask, scoring)
        scores, scores_vjp = jax.vjp(block.scores, block.queries(q), block.keys(k))
        weights = jnp.exp(scores - block.queries(top)) / block.queries(total)
        _, weigh_vjp = jax.vjp(_weigh, weights, block.keys(v))
        weights_grad, v_grad = weigh_vjp(block.queries(grad))
        q_grad, k_grad = scores_vjp(weights * (weights_grad - block.queries(mean)))
        return tuple(map(block.add_to_keys, carry, (k_grad, v_grad))), q_grad

    carry = jnp.zeros_like(k), jnp.zeros_like(v)
    parts: list[Array] = []
    for stage in reversed(make_stages(q.shape[-2], k.shape[-2], mask)):
        carry, part = _scan(partial(body, stage), carry, stage)
        parts.insert(0, part)
    sinks_grad = None
    if sinks is not None:
        sinks_grad = -jnp.sum(mean * jnp.exp(sinks - top) / total, (0, 3), keepdims=True)
    return jnp.concatenate(parts, -2), *carry, sinks_grad, None


_attend = with_gradient(lambda *args: _forward(*args)[0], _forward, _backward, nondiff_argnums=(5,))
