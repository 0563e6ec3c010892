"""Which keys each query may attend to.

Legend: B batch, T query time, S key time.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from models.core.types import Leaf

PAD_POSITION = -1  # the sequence index of padding and of an empty cache slot


def sequence_index(position: Int[Array, "b t"], start: Int[Array, ""]) -> Int[Array, "b t"]:
    """The index of each token in its row, counted from `start`; PAD_POSITION where position < 0: [B T] -> [B T].

    Unlike positions, which may restart within a row (packed documents), the index always increases.
    """
    return jnp.where(position < 0, PAD_POSITION, start + jnp.arange(position.shape[1])[None])


def make_mask(
    q_index: Int[Array, "#b t"],
    k_index: Int[Array, "#b s"],
    *,
    window: int | None = None,
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]] | None = None,
    causal: bool = True,
) -> Bool[Array, "_ t s"]:
    """Whether each query may attend to each key: sequence indices of queries [B T] and keys [B S] -> [B T S].

    A query attends to keys of its own segment, fewer than `window` indices away and, if `causal`, not after it.
    Padding (an index below 0) attends to padding only, so that its softmax is finite.
    """
    query, key = q_index[:, :, None], k_index[:, None, :]
    mask = (key >= 0) == (query >= 0)
    if causal:
        mask = mask & (key <= query)
    if window is not None:
        mask = mask & (jnp.abs(query - key) < window)
    if segments is not None:
        mask = mask & (segments[0][:, :, None] == segments[1][:, None, :])
    return mask


@struct.dataclass
class AttentionMask:
    """An attention mask in a form that kernels without a mask argument accept too; `make_mask` defines its meaning.

    `contiguous` promises that the indices of queries and keys are 0, 1, 2 ...: no padding, no cache.
    """

    q_index: Leaf  # sequence indices, [B or 1, T]
    k_index: Leaf  # sequence indices, [B or 1, S]
    segments: tuple[Leaf, Leaf] | None = None  # of queries [B T] and of keys [B S]
    window: int | None = struct.field(pytree_node=False, default=None)
    causal: bool = struct.field(pytree_node=False, default=True)
    contiguous: bool = struct.field(pytree_node=False, default=False)

    @property
    def array(self) -> Bool[Array, "_ t s"]:
        """Whether each query may attend to each key -> [B or 1, T, S]."""
        return make_mask(self.q_index, self.k_index, window=self.window, segments=self.segments, causal=self.causal)
