"""Convolution: its written-out gradient, on CPU and elsewhere, and what becomes of kernels of one pixel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import convolution
from models.convolution import DIMS, Padding, conv, max_pool
from train.record import flops

WINDOWS: list[tuple[tuple[int, int], Padding, int]] = [  # kernel, padding, stride
    ((3, 3), 1, 1),
    ((3, 3), 1, 2),
    ((3, 3), "SAME", 2),
    ((3, 3), "VALID", 3),
    ((7, 7), 3, 2),
    ((2, 3), ((0, 1), (2, 0)), 1),
    ((5, 2), ((0, 4), (3, 1)), 2),
    ((1, 1), 0, 1),
    ((1, 1), 0, 2),
    ((1, 1), 1, 2),
]


def both(size: tuple[int, int], padding: Padding, stride: int) -> tuple[Any, Any, jax.Array, jax.Array]:
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(2, 9, 8, 3)), jnp.float32)
    kernel = jnp.asarray(draw.normal(size=(*size, 3, 4)), jnp.float32)
    sides = ((padding, padding),) * 2 if isinstance(padding, int) else padding

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=DIMS)

    return lambda x, kernel: conv(x, kernel, padding, None, stride), plain, x, kernel


@pytest.mark.parametrize("at_once", [None, 1, 200, 600, 10**6])
@pytest.mark.parametrize(("size", "padding", "stride"), WINDOWS)
def test_the_gradient_is_that_of_jax(
    size: tuple[int, int], padding: Padding, stride: int, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values too, of all windows: those that reach beyond the image, and those that leave pixels of it out.

    That of the kernel as a correlation, and by patches of one row of places, several, one image, and all.
    """
    if at_once is not None:
        monkeypatch.setattr(convolution, "PATCHES", 0)
        monkeypatch.setattr(convolution, "AT_ONCE", at_once)
    ours, plain, x, kernel = both(size, padding, stride)
    (got, pull), (want, plain_pull) = (jax.vjp(f, x, kernel) for f in (ours, plain))
    g = jnp.asarray(np.random.default_rng(1).normal(size=want.shape), jnp.float32)
    parts = "scan[" in str(jax.make_jaxpr(lambda g: pull(g)[1])(g))
    assert parts == (at_once is not None and (size, padding) != ((1, 1), 0))
    for a, b in zip((got, *pull(g)), (want, *plain_pull(g)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_written_gradient_is_of_cpu_alone() -> None:
    """Other platforms' programs hold jax's own gradient, whose arrays lie as they come."""
    ours, _, x, kernel = both((3, 3), 1, 1)
    gradient = jax.jit(jax.grad(lambda x, kernel: ours(x, kernel).sum(), (0, 1)))
    programs = {p: gradient.trace(x, kernel).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")}
    assert {p: "[f, 0, 1, b]x" in text for p, text in programs.items()} == {"cpu": False, "tpu": True, "cuda": True}


@pytest.mark.parametrize("patches", [0, 2**22])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_costs_two_passes_forward(stride: int, patches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As counted: what fills the pixels between those of a strided convolution's gradient is no work."""
    ours, _, x, kernel = both((3, 3), ((1, 1), (1, 1)), stride)
    monkeypatch.setattr(convolution, "PATCHES", patches)
    x = jnp.zeros((2, 8, 8, 3))
    forward = flops.count(ours, x, kernel)
    whole = flops.count(jax.grad(lambda x, kernel: ours(x, kernel).sum(), (0, 1)), x, kernel)
    assert whole == 3 * forward


POOLS = [(2, 2, 0), (3, 2, 1), (2, 1, "SAME"), (5, 1, "SAME"), (3, 3, 0)]


@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
@pytest.mark.parametrize("levels", [3, 10**6])
def test_the_gradient_of_pooling_is_that_of_jax(size: int, stride: int, padding: Padding, levels: int) -> None:
    """Also where many pixels are equal, as after a ReLU, and one is NaN."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.integers(0, levels, (2, 9, 8, 3)), jnp.float32)
    sides = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    around = sides if isinstance(sides, str) else ((0, 0), *sides, (0, 0))

    def plain(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), around)

    (got, pull), (want, plain_pull) = (jax.vjp(f, x) for f in (lambda x: max_pool(x, size, stride, padding), plain))
    np.testing.assert_array_equal(got, want)
    g = jnp.asarray(draw.integers(1, 9, want.shape), jnp.float32)
    np.testing.assert_array_equal(pull(g)[0], plain_pull(g)[0])
    spoilt = max_pool(x.at[0, 4, 4].set(jnp.nan), size, stride, padding)
    np.testing.assert_array_equal(spoilt, plain(x.at[0, 4, 4].set(jnp.nan)))


def test_the_written_gradient_of_pooling_is_of_cpu_alone() -> None:
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, 2, 2).sum()))
    x = jnp.zeros((2, 8, 8, 3))
    programs = {p: gradient.trace(x).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")}
    scatters = {p: "select_and_scatter" in text for p, text in programs.items()}
    assert scatters == {"cpu": False, "tpu": True, "cuda": True}
