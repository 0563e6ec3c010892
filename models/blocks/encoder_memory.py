"""What a decoder reads of a source: its tokens, where they are padding, and their room in a cache.

Legend: B batch, S source time.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from errors import UsageError
from models.core.layers import reshard
from models.core.spec import Place

MASK = "mask"  # the entry of a cache's memory that says which of its places hold a token


def source_inputs(
    inputs: dict[str, Array], cache: Any, place: Place
) -> tuple[Int[Array, "b s"], Float[Array, "b s"] | None] | None:
    """A source to encode, and its mask if it has padding: [B S], [B S]; None where the cache has read it already.

    For a cache, which may have room for more, there is always a mask.
    Raises UsageError where there is neither a source nor a cache, and for a source that a cache has no room for.
    """
    if "source" not in inputs:
        if cache is None:
            raise UsageError(f"what translates reads a source; here are {', '.join(sorted(inputs))} and no cache")
        return None
    source, mask = inputs["source"], inputs.get("source_mask")
    if cache is not None and source.shape[1] > capacity(cache):
        raise UsageError(
            f"the cache has room for {capacity(cache)} tokens of a source, and this one has {source.shape[1]}"
        )
    if mask is None and cache is not None:
        mask = jnp.ones(source.shape)
    return source, None if mask is None else reshard(mask, place("batch query"))


def capacity(cache: Any) -> int:
    """How many tokens of a source a cache keeps."""
    return cache["memory"][MASK].shape[1]


def pad_to_capacity(x: Any, cache: Any) -> Any:
    """What there is of each token of a source, filled with 0 up to the room of a cache: [B S ...] -> [B S ...]."""
    if cache is None:
        return x
    return jnp.pad(x, ((0, 0), (0, capacity(cache) - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))
