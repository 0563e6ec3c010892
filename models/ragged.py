"""Rows that lie sorted by group, each group times a matrix of its own; and rows moved to where they are wanted.

Legend: M rows, D and F their width before and after, E groups, S slots, m slots of a block.
Source: Gale et al. 2022, arXiv:2211.15841 (groups cut into blocks).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LARGEST_BLOCK = 128


@jax.custom_vjp
def grouped_product(x: Float[Array, "m d"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "m f"]:
    """The first sizes[0] rows by w[0], the next sizes[1] by w[1] …, 0 beyond the last: x [M D], w [E D F] -> [M F].

    `jax.lax.ragged_dot` where a platform has a kernel for it. On CPU it multiplies all rows by each matrix, so there
    the groups are cut into blocks. Has no forward-mode derivative.
    """
    return jax.lax.platform_dependent(x, w, sizes, cpu=_blocked, default=_ragged)


def _product_forward(x: Array, w: Array, sizes: Array) -> tuple[Array, Any]:
    return grouped_product(x, w, sizes), (x, w, sizes)


def _product_backward(kept: Any, g: Array) -> tuple[Array, Array, None]:
    """By the platform's own way only: a choice of platforms that is differentiated keeps what each of them needs."""

    def pullback(product: Any, x: Array, w: Array, sizes: Array, g: Array) -> Any:
        return jax.vjp(lambda x, w: product(x, w, sizes), x, w)[1](g)

    cpu, default = partial(pullback, _blocked), partial(pullback, _ragged)
    return *jax.lax.platform_dependent(*kept, g, cpu=cpu, default=default), None


grouped_product.defvjp(_product_forward, _product_backward)


def _ragged(x: Array, w: Array, sizes: Array) -> Array:
    """Rows beyond the last group are 0 before and after: what `ragged_dot` makes of them differs by platform."""
    inside = (jnp.arange(len(x)) < jnp.sum(sizes))[:, None]
    return jnp.where(inside, jax.lax.ragged_dot(jnp.where(inside, x, 0), w, sizes), 0)


def _blocked(x: Array, w: Array, sizes: Array) -> Array:
    """By blocks of m rows of one group, the last of each filled up with zeros: at most a block a group is wasted."""
    M, E = len(x), len(w)
    m = min(LARGEST_BLOCK, 1 << max(1, M // (2 * E)).bit_length() - 1)
    count = (M + min(E, M) * (m - 1)) // m  # the most that there can be
    blocks = -(-sizes // m)
    ends, first = jnp.cumsum(blocks), jnp.cumsum(sizes) - sizes
    owner = jnp.minimum(jnp.sum(jnp.arange(count)[:, None] >= ends[None], 1), E - 1)
    own = jnp.repeat(owner, m)
    inside = jnp.arange(count * m) - m * (ends - blocks)[own]
    row = jnp.where(inside < sizes[own], first[own] + inside, M)
    group = jnp.sum(jnp.arange(M)[:, None] >= jnp.cumsum(sizes)[None], 1)
    slot = jnp.arange(M) + (m * (ends - blocks) - first).at[group].get(mode="fill", fill_value=count * m)
    rows = gather_rows(x, row, slot[:, None]).reshape(count, m, -1)
    return gather_rows(jnp.einsum("nmd,ndf->nmf", rows, w[owner]).reshape(count * m, -1), slot, row[:, None])


@jax.custom_vjp
def gather_rows(x: Float[Array, "m d"], source: Int[Array, " s"], targets: Int[Array, "m a"]) -> Float[Array, "s d"]:
    """Row source[s] of x at each slot s, 0 where that is no row: x [M D] -> [S D].

    `targets` says the same the other way round: the slots that row m goes to. So the derivative, in reverse, picks
    rows too, and nothing is scattered.
    """
    return x.at[source].get(mode="fill", fill_value=0)


def _gather_forward(x: Array, source: Array, targets: Array) -> tuple[Array, Any]:
    return gather_rows(x, source, targets), targets


def _gather_backward(targets: Array, g: Array) -> tuple[Array, None, None]:
    return jnp.sum(g.at[targets].get(mode="fill", fill_value=0), 1), None, None


gather_rows.defvjp(_gather_forward, _gather_backward)
