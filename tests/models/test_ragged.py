"""Rows sorted by group, each group times its own matrix: by blocks as by a loop, by the kernel where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.moe import ragged


def parts(sizes: tuple[int, ...], rows: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(len(sizes) + rows)
    x, w = draw.normal(size=(rows, 5)), draw.normal(size=(len(sizes), 5, 3))
    return x.astype(jnp.dtype(dtype)), w.astype(jnp.dtype(dtype)), np.array(sizes, np.int32)


@jax.jit
def product_and_gradients(x: jax.Array, w: jax.Array, sizes: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(lambda x, w: ragged.grouped_product(x, w, sizes), x, w)
    return y, *pull(g)


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ((2, 0, 5, 1), 8),
        ((0, 0, 3), 7),  # rows beyond the last group
        ((0, 0, 0), 4),
        ((600, 0, 1, 7, 130), 740),  # of many blocks each, the last one with one row
        ((1, 0, 0, 0, 0, 1, 0, 0), 2),  # fewer rows than groups: a block is one row
    ],
)
def test_each_group_meets_its_own_matrix(sizes: tuple[int, ...], rows: int) -> None:
    """Against a loop in numpy, forward and backward, where sorted rows beyond the groups give and get 0."""
    x, w, counts = parts(sizes, rows)
    g = np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)
    found = product_and_gradients(x, w, counts, g)
    want = np.zeros((rows, 3)), np.zeros((rows, 5)), np.zeros(w.shape)
    start = 0
    for e, n in enumerate(sizes):
        mine = slice(start, start + n)
        a, b = np.float64(x[mine]), np.float64(w[e])
        want[0][mine], want[1][mine], want[2][e] = a @ b, g[mine] @ b.T, a.T @ g[mine]
        start += n
    for got, right in zip(found, want, strict=True):
        np.testing.assert_allclose(got, right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_are_the_kernel(dtype: str) -> None:
    """`jax.lax.ragged_dot` itself, which other platforms run, and what it makes of garbage beyond the groups."""
    x, w, sizes = parts((70, 3, 0, 40), 120, dtype)
    x[113:] = np.nan
    ours, kernel = (np.asarray(jax.jit(of)(x, w, sizes)) for of in (ragged._blocked, ragged._ragged))
    for y in (ours, kernel):
        assert y.dtype == dtype
        assert not y[113:].any()
    np.testing.assert_allclose(kernel.astype(np.float32), ours.astype(np.float32), rtol=1e-2)


def test_other_platforms_run_the_kernel_alone() -> None:
    """Forward and backward; blocks are in no program but the CPU's."""
    grad = jax.jit(jax.grad(lambda *v: jnp.sum(jnp.sin(ragged.grouped_product(*v))), (0, 1)))
    programs = {on: grad.trace(*parts((4, 4), 8)).lower(lowering_platforms=(on,)).as_text() for on in ("cpu", "tpu")}
    assert "ragged_dot" in programs["tpu"]
    assert "gather" not in programs["tpu"]
    assert "ragged_dot" not in programs["cpu"]
    assert "gather" in programs["cpu"]


def test_rows_move_there_and_gradients_back() -> None:
    """As the scatter that is spared: each row's gradient is the sum over the slots that it went to."""
    x = jnp.arange(12.0).reshape(4, 3)
    source, targets = jnp.array([2, 0, 4, 2, 1]), jnp.array([[1, 5], [4, 5], [0, 3], [5, 5]])  # 4 and 5 are nowhere
    y, pull = jax.vjp(lambda x: ragged.gather_rows(x, source, targets), x)
    np.testing.assert_array_equal(y, np.stack([x[2], x[0], 0 * x[0], x[2], x[1]]))
    g = np.arange(15.0).reshape(5, 3)
    np.testing.assert_array_equal(pull(jnp.asarray(g, jnp.float32))[0], np.stack([g[1], g[4], g[0] + g[3], 0 * g[0]]))
