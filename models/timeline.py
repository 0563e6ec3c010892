"""What the layers of a decoder see of the past, and what they keep of it in a cache.

Legend: B batch, T query time, S key time, L layers of a kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from models.layers import reshard
from models.sight import UNSEEN, Sight, in_order
from models.spec import Place, Spec, constant, zeros

CHUNKS = 2**16  # more than a segment has


@dataclass(frozen=True)
class Reach:
    """What layers of a kind see: all that is before them; of that fewer than `window` tokens back; their own chunk."""

    window: int | None = None
    chunk: int | None = None

    def kept(self, length: int) -> int:
        """How many of the newest tokens a cache for `length` tokens keeps."""
        return min(length, self.window or self.chunk or length)

    @property
    def rolls(self) -> bool:
        """Whether a cache forgets what is out of sight."""
        return bool(self.window or self.chunk)


Token = Mapping[str, tuple[str, tuple[int, ...]]]  # what a layer keeps of a token, by name: its axes and their sizes


def cache_specs(
    reaches: Mapping[str, Reach],
    counts: Mapping[str, int],
    tokens: Mapping[str, Token],
    batch: int,
    length: int,
    dtype: str,
) -> dict[str, Any]:
    """The table of a cache for `length` tokens, by kind of layer: [L B S ...] of what is kept, place and chunk [B S].

    `counts` says how many layers there are of each kind, and `tokens` what one of them keeps of a token.
    """
    table: dict[str, Any] = {"filled": Spec((), "", zeros, dtype="int32")}
    for kind, reach in reaches.items():
        lead = counts[kind], batch, reach.kept(length)
        marks = ("place", "chunk") if reach.chunk else ("place",)
        table[kind] = {
            "held": {
                k: Spec((*lead, *n), f"layers batch key {axes}", zeros, dtype=dtype)
                for k, (axes, n) in tokens[kind].items()
            },
            **{name: Spec(lead[1:], "batch key", constant(UNSEEN), dtype="int32") for name in marks},
        }
    return table


@dataclass(frozen=True)
class Timeline:
    """The tokens of a call among those that a cache holds."""

    position: Int[Array, "#b t"]  # below 0 where a token is padding
    sights: dict[str, Sight]  # by kind of layer
    reaches: Mapping[str, Reach]
    start: Int[Array, ""]  # how many tokens came before
    cache: dict[str, Any] | None
    marks: dict[str, Any]  # of the new cache: places and chunks

    @property
    def held(self) -> dict[str, Any] | None:
        """What the layers hold, by kind, stacked; None without a cache."""
        return None if self.cache is None else {kind: self.cache[kind]["held"] for kind in self.sights}

    def remember(self, kind: str, held: Any, **fresh: Array) -> tuple[Any, ...]:
        """What a layer sees of each of `fresh` [B T ...] -> each [B S ...], and last what it then holds."""
        if held is None:
            return *fresh.values(), None
        at = None if self.reaches[kind].rolls else self.start
        both = {name: remember(held[name], x, at) for name, x in fresh.items()}
        return *(seen for seen, _ in both.values()), {name: kept for name, (_, kept) in both.items()}

    def renewed(self, x: Array, held: Any) -> tuple[Array, Any]:
        """The cache after the call; x is NaN where a cache could not take all: that is not to pass for right."""
        if self.cache is None:
            return x, None
        filled = self.start + self.position.shape[1]
        for kind, reach in self.reaches.items():
            if not reach.rolls:
                x = jnp.where(filled <= self.cache[kind]["place"].shape[1], x, jnp.nan)
        return x, {"filled": filled} | {kind: {"held": held[kind], **self.marks[kind]} for kind in held}


def timeline(inputs: dict[str, Array], reaches: Mapping[str, Reach], cache: Any, place: Place) -> Timeline:
    """Where the tokens of `inputs` [B T] stand, and what layers of each kind see from there.

    Inputs may have position [B T], below 0 where a token is padding, and segment [B T] (not with a cache).
    """
    B, T = inputs["tokens"].shape
    start = jnp.zeros((), jnp.int32) if cache is None else cache["filled"]
    position = reshard(inputs.get("position", start + jnp.arange(T)[None]), place("one query"))
    now = in_order(position, start)
    segment = inputs.get("segment")
    segment = None if segment is None else reshard(segment, place("batch query"))
    sights, marks = {}, {}
    for kind, reach in reaches.items():
        fresh = {"place": jnp.broadcast_to(now, (B, T))}
        if reach.chunk:
            chunk = jnp.where(position < 0, UNSEEN, position // reach.chunk)
            fresh["chunk"] = reshard(jnp.broadcast_to(chunk, (B, T)), place("batch query"))
        seen = fresh
        if cache is not None:
            at = None if reach.rolls else start
            both = {name: remember(cache[kind][name], x, at) for name, x in fresh.items()}
            seen, marks[kind] = ({name: pair[i] for name, pair in both.items()} for i in range(2))
        apart = None if segment is None else (segment, segment)
        if reach.chunk:
            mine, yours = fresh["chunk"], seen["chunk"]
            apart = (mine, yours) if segment is None else (segment * CHUNKS + mine, segment * CHUNKS + yours)
        then = now if cache is None else seen["place"]
        plain = cache is None and "position" not in inputs
        sights[kind] = Sight(now, then, apart, reach.window, plain=plain)
    return Timeline(position, sights, reaches, start, cache, marks)


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
