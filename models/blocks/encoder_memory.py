"""The source of an encoder-decoder: its tokens, its padding mask, and its place in a cache.

Legend: B batch, S source time.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from errors import UsageError
from models.core.layers import reshard
from models.core.spec import Place
from models.core.types import Cache, Inputs

MASK = "mask"  # the entry of a cache's memory that is 1 where a source token is stored


def source_inputs(
    inputs: Inputs, cache: Cache | None, place: Place
) -> tuple[Int[Array, "b s"], Float[Array, "b s"] | None] | None:
    """The source to encode [B S], and its mask [B S] or None; None if the cache holds an encoded source already.

    With a cache there is always a mask, since its capacity may exceed the source's length.
    Raises UsageError for inputs with neither a source nor a cache, and for a source longer than the cache's capacity.
    """
    if "source" not in inputs:
        if cache is None:
            raise UsageError(
                f"an encoder-decoder needs inputs['source'] or a cache; got {', '.join(sorted(inputs))} and no cache"
            )
        return None
    source, mask = inputs["source"], inputs.get("source_mask")
    if cache is not None and source.shape[1] > capacity(cache):
        raise UsageError(f"the source has {source.shape[1]} tokens; the cache has room for {capacity(cache)}")
    if mask is None and cache is not None:
        mask = jnp.ones(source.shape)
    return source, None if mask is None else reshard(mask, place("batch query"))


def capacity(cache: Cache) -> int:
    """The number of source tokens that a cache can hold."""
    return cache["memory"][MASK].shape[1]


def pad_to_capacity(x: Array, cache: Cache | None) -> Array:
    """Arrays of source tokens, padded with 0 to the cache's capacity: [B S ...] -> [B S ...]; without a cache, x."""
    if cache is None:
        return x
    return jnp.pad(x, ((0, 0), (0, capacity(cache) - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))
