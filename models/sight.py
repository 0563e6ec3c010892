"""Which keys a query may see.

Legend: B batch, T query time, S key time.
"""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

UNSEEN = -1  # the place of a token that is none: of padding, or of a cache's empty place


def in_order(position: Int[Array, "b t"], start: Int[Array, ""]) -> Int[Array, "b t"]:
    """The place of tokens in their row, from `start` on, UNSEEN where their position is below 0: [B T] -> [B T].

    Positions may begin anew within a row; what comes first does not change by that.
    """
    return jnp.where(position < 0, UNSEEN, start + jnp.arange(position.shape[1])[None])


def visible(
    query: Int[Array, "#b t"],
    key: Int[Array, "#b s"],
    *,
    window: int | None = None,
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]] | None = None,
    causal: bool = True,
) -> Bool[Array, "_ t s"]:
    """Which key each query sees: places in their row query [B T], key [B S] -> [B T S].

    A query sees itself, what is before it and, unless `causal`, what is after it; of that what is fewer than `window`
    places away, of its own segment. Padding, which lies below 0, sees padding alone, so that its softmax is one.
    """
    now, then = query[:, :, None], key[:, None, :]
    seen = (then >= 0) == (now >= 0)
    if causal:
        seen = seen & (then <= now)
    if window is not None:
        seen = seen & (jnp.abs(now - then) < window)
    if segments is not None:
        seen = seen & (segments[0][:, :, None] == segments[1][:, None, :])
    return seen


@struct.dataclass
class Sight:
    """What attention may see, in words that a kernel without a mask understands too; `visible` says what they mean.

    `plain` promises that places of queries and of keys are 0, 1, 2 ...: there is neither padding nor a cache.
    """

    query: Any  # places, [B or 1, T]
    key: Any  # places, [B or 1, S]
    segments: tuple[Any, Any] | None = None  # of the queries, of the keys, [B T] and [B S]
    window: int | None = struct.field(pytree_node=False, default=None)
    causal: bool = struct.field(pytree_node=False, default=True)
    plain: bool = struct.field(pytree_node=False, default=False)

    @property
    def mask(self) -> Bool[Array, "_ t s"]:
        """Which key each query sees -> [B or 1, T, S]."""
        how: dict[str, Any] = dict(window=self.window, segments=self.segments, causal=self.causal)
        return visible(self.query, self.key, **how)
