"""The key-value cache of a decoder, and the attention masks that follow from it.

Legend: B batch, T query time, S key time, L layers of a kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from models.blocks.attention.mask import PAD_POSITION, AttentionMask, sequence_index
from models.core.layers import reshard, sequence_shape
from models.core.spec import Place, Spec, constant, zeros
from models.core.types import Cache, Inputs, Specs

CHUNKS = 2**16  # an upper bound on the chunks of a segment


@dataclass(frozen=True)
class AttentionSpan:
    """Which earlier tokens a layer attends to: all, the last `window` tokens, or those of its own chunk."""

    window: int | None = None
    chunk: int | None = None

    def cache_length(self, length: int) -> int:
        """The number of slots in a cache for `length` tokens."""
        return min(length, self.window or self.chunk or length)

    @property
    def is_rolling(self) -> bool:
        """Whether the cache drops tokens that no later query can attend to."""
        return bool(self.window or self.chunk)


CacheEntry = Mapping[str, tuple[str, tuple[int, ...]]]  # what a layer caches per token: name -> (axes, sizes)


def cache_specs(
    spans: Mapping[str, AttentionSpan],
    counts: Mapping[str, int],
    entries: Mapping[str, CacheEntry],
    batch: int,
    length: int,
    dtype: str,
) -> Specs:
    """The specs of a cache for `length` tokens, by kind of layer: entries [L B S ...], index and chunk [B S].

    `counts` is the number of layers of each kind, and `entries` what one of them caches per token.
    """
    table: Specs = {"filled": Spec((), "", zeros, dtype="int32")}
    for kind, span in spans.items():
        slots = (batch, span.cache_length(length))
        stored = {}
        for name, (axes, sizes) in entries[kind].items():
            shape = (counts[kind], *slots, *sizes)
            stored[name] = Spec(shape, f"layers batch key {axes}", zeros, dtype=dtype)
        slot = Spec(slots, "batch key", constant(PAD_POSITION), dtype="int32")
        table[kind] = {"entries": stored, "index": slot}
        if span.chunk:
            table[kind]["chunk"] = slot
    return table


@dataclass(frozen=True)
class CacheView:
    """The tokens of one call, after those that a cache already holds."""

    position: Int[Array, "#b t"]  # below 0 where a token is padding
    masks: dict[str, AttentionMask]  # by kind of layer
    spans: Mapping[str, AttentionSpan]  # by kind of layer
    start: Int[Array, ""]  # number of earlier tokens
    cache: Cache | None
    slots: Cache  # of the new cache, by kind: sequence index and chunk of each slot

    @property
    def layer_caches(self) -> Cache | None:
        """The cache entries by kind of layer, stacked [L B S ...]; None without a cache."""
        return None if self.cache is None else {kind: self.cache[kind]["entries"] for kind in self.masks}

    def append_kv(self, kind: str, cache: Cache | None, **entries: Array) -> tuple[dict[str, Array], Cache | None]:
        """Append entries [B T ...] to a layer's cache -> the arrays to attend to [B S ...], and the new cache.

        Without a cache it returns the entries unchanged, and None as the new cache.
        """
        if cache is None:
            return entries, None
        start = None if self.spans[kind].is_rolling else self.start
        seen, kept = {}, {}
        for name, x in entries.items():
            seen[name], kept[name] = append_rows(cache[name], x, start)
        return seen, kept

    def finish(self, x: Array, entries: Cache | None) -> tuple[Array, Cache | None]:
        """x, and the cache after the call; x becomes NaN if the tokens did not fit into the cache."""
        if self.cache is None or entries is None:
            return x, None
        filled = self.start + self.position.shape[1]
        for kind, span in self.spans.items():
            if not span.is_rolling:
                x = jnp.where(filled <= self.cache[kind]["index"].shape[1], x, jnp.nan)
        return x, {"filled": filled} | {kind: {"entries": entries[kind], **self.slots[kind]} for kind in entries}


def open_cache(inputs: Inputs, spans: Mapping[str, AttentionSpan], cache: Cache | None, place: Place) -> CacheView:
    """Positions and attention masks, by kind of layer, of the tokens of `inputs` [B T], with or without a cache.

    Optional inputs: position [B T], below 0 where a token is padding; segment [B T] (not with a cache).
    """
    B, T = sequence_shape(inputs)
    start = jnp.zeros((), jnp.int32) if cache is None else cache["filled"]
    position = reshard(inputs.get("position", start + jnp.arange(T)[None]), place("one query"))
    q_index = sequence_index(position, start)
    segment = inputs.get("segment")
    segment = None if segment is None else reshard(segment, place("batch query"))
    contiguous = cache is None and "position" not in inputs
    masks: dict[str, AttentionMask] = {}
    slots: Cache = {}
    for kind, span in spans.items():
        queries = {"index": jnp.broadcast_to(q_index, (B, T))}
        if span.chunk:
            chunk = jnp.where(position < 0, PAD_POSITION, position // span.chunk)
            queries["chunk"] = reshard(jnp.broadcast_to(chunk, (B, T)), place("batch query"))
        keys = queries
        if cache is not None:
            at = None if span.is_rolling else start
            keys, slots[kind] = {}, {}
            for name, x in queries.items():
                keys[name], slots[kind][name] = append_rows(cache[kind][name], x, at)
        segments = None if segment is None else (segment, segment)
        if span.chunk:
            q_chunk, k_chunk = queries["chunk"], keys["chunk"]
            segments = (q_chunk, k_chunk)
            if segment is not None:
                segments = (segment * CHUNKS + q_chunk, segment * CHUNKS + k_chunk)
        k_index = q_index if cache is None else keys["index"]
        masks[kind] = AttentionMask(q_index, k_index, segments, span.window, contiguous=contiguous)
    return CacheView(position, masks, spans, start, cache, slots)


def append_rows(cached: Array, new: Array, start: Int[Array, ""] | None) -> tuple[Array, Array]:
    """Append along axis 1, cached [B S ...] and new [B T ...] -> the array to attend to, and the array to keep.

    With `start`, `new` is written from that index on, and both results are the same [B S ...] array. XLA clamps a
    start that leaves too little room; callers check. With None, the array to attend to is cached and new together,
    [B S+T ...], and the newest S are kept.
    """
    new = new.astype(cached.dtype)
    if start is None:
        seen = jnp.concatenate([cached, new], 1)
        return seen, seen[:, new.shape[1] :]
    at = [jnp.zeros((), jnp.int32)] * cached.ndim
    at[1] = start
    seen = jax.lax.dynamic_update_slice(cached, new, at)
    return seen, seen
