"""Products of rows sorted by group with one matrix per group, and gathers of rows whose derivative is a gather.

Legend: M rows, D and F their width before and after, E groups, S slots, m rows of a block.
Source: Gale et al. 2022, arXiv:2211.15841 (groups split into blocks).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.core.gradients import with_gradient

LARGEST_BLOCK = 128


def _grouped_product(x: Float[Array, "m d"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "m f"]:
    """Multiply the first sizes[0] rows by w[0], the next sizes[1] by w[1] …: x [M D], w [E D F] -> [M F].

    Rows beyond the last group become 0. Uses `jax.lax.ragged_dot`, except on CPU, where that multiplies all rows by
    each matrix; there the groups are split into blocks. Its gradient is hand-written (`plain_gradients` derives it).
    """
    return jax.lax.platform_dependent(x, w, sizes, cpu=_blocked, default=_ragged)


def _product_forward(x: Array, w: Array, sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _grouped_product(x, w, sizes), (x, w, sizes)


def _product_backward(kept: tuple[Array, Array, Array], g: Array) -> tuple[Array, Array, None]:
    """Chooses the platform again: differentiating `platform_dependent` would save the residuals of every platform."""

    def pullback(product: Callable[..., Array], x: Array, w: Array, sizes: Array, g: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, w: product(x, w, sizes), x, w)[1](g)

    cpu, default = partial(pullback, _blocked), partial(pullback, _ragged)
    return *jax.lax.platform_dependent(*kept, g, cpu=cpu, default=default), None


grouped_product = with_gradient(_grouped_product, _product_forward, _product_backward)


def _ragged(x: Array, w: Array, sizes: Array) -> Array:
    """`ragged_dot`, with rows beyond the last group set to 0 before and after: its result there differs by platform."""
    inside = (jnp.arange(len(x)) < jnp.sum(sizes))[:, None]
    return jnp.where(inside, jax.lax.ragged_dot(jnp.where(inside, x, 0), w, sizes), 0)


def _blocked(x: Array, w: Array, sizes: Array) -> Array:
    """Split each group into blocks of m rows, the last padded with zeros, and multiply each block by its matrix.

    Example: sizes = (1, 3) and m = 2 give the blocks (0, -), (1, 2), (3, -). At most one block per group is wasted.
    """
    M, E = len(x), len(w)
    m = min(LARGEST_BLOCK, 1 << max(1, M // (2 * E)).bit_length() - 1)
    count = (M + min(E, M) * (m - 1)) // m  # upper bound on the number of blocks
    blocks = -(-sizes // m)  # of each group
    block_end = jnp.cumsum(blocks)
    row_start = jnp.cumsum(sizes) - sizes
    slot_start = m * (block_end - blocks)
    block_group = jnp.minimum(jnp.sum(jnp.arange(count)[:, None] >= block_end[None], 1), E - 1)
    slot_group = jnp.repeat(block_group, m)
    index = jnp.arange(count * m) - slot_start[slot_group]  # of a slot in its group
    row = jnp.where(index < sizes[slot_group], row_start[slot_group] + index, M)  # of each slot; M for padding
    group = jnp.sum(jnp.arange(M)[:, None] >= jnp.cumsum(sizes)[None], 1)  # of each row
    slot = jnp.arange(M) + (slot_start - row_start).at[group].get(mode="fill", fill_value=count * m)  # of each row
    rows = gather_rows(x, row, slot[:, None]).reshape(count, m, -1)
    return gather_rows(jnp.einsum("nmd,ndf->nmf", rows, w[block_group]).reshape(count * m, -1), slot, row[:, None])


def _gather_rows(x: Float[Array, "m d"], source: Int[Array, " s"], targets: Int[Array, "m a"]) -> Float[Array, "s d"]:
    """Row source[s] of x for each slot s, 0 where source[s] is out of range: x [M D] -> [S D].

    `targets` is the inverse: the slots that hold row m. With it the derivative is a gather too, not a scatter.
    """
    return x.at[source].get(mode="fill", fill_value=0)


def _gather_forward(x: Array, source: Array, targets: Array) -> tuple[Array, Array]:
    return _gather_rows(x, source, targets), targets


def _gather_backward(targets: Array, g: Array) -> tuple[Array, None, None]:
    return jnp.sum(g.at[targets].get(mode="fill", fill_value=0), 1), None, None


gather_rows = with_gradient(_gather_rows, _gather_forward, _gather_backward)
