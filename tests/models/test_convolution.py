"""Convolution: its written-out gradient, on CPU and elsewhere, and what becomes of kernels of one pixel."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.vision import convolution
from models.blocks.vision.convolution import DIMS, Padding, conv, max_pool
from train.plan import flops

WINDOWS: list[tuple[tuple[int, int], Padding, int, int]] = [  # kernel, padding, stride, numbers of a part at a time
    ((3, 3), 1, 1, 10**6),  # both images
    ((3, 3), 1, 2, 600),  # one image
    ((3, 3), "SAME", 2, 1),  # one row of places
    ((3, 3), "VALID", 3, 200),  # one image
    ((7, 7), 3, 2, 10**6),
    ((2, 3), ((0, 1), (2, 0)), 1, 600),  # three rows
    ((5, 2), ((0, 4), (3, 1)), 2, 200),  # one row
    ((1, 1), 0, 1, 1),
    ((1, 1), 0, 2, 200),
    ((1, 1), 1, 2, 200),  # both images
]


def both(size: tuple[int, int], padding: Padding, stride: int) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 9, 8, 3)).astype(np.float32)
    kernel = draw.normal(size=(*size, 3, 4)).astype(np.float32)
    sides = ((padding, padding),) * 2 if isinstance(padding, int) else padding

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=DIMS)

    return lambda x, kernel: conv(x, kernel, padding, None, stride), plain, x, kernel


def pulled(f: Any) -> Any:
    """Of a function's inputs and a cotangent: its value and what is pulled back, as one program."""

    def run(g: jax.Array, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(f, *inputs)
        return out, *pull(g)

    return jax.jit(run)


@cache
def reference(size: tuple[int, int], padding: Padding, stride: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """A cotangent, and jax's own value and gradients by it."""
    _, plain, x, kernel = both(size, padding, stride)
    g = np.random.default_rng(1).normal(size=jax.eval_shape(plain, x, kernel).shape).astype(np.float32)
    return g, jax.device_get(pulled(plain)(g, x, kernel))


def ways() -> list[Any]:
    """Each window as a correlation and by parts of one size, so that all kinds of parts come; all sizes weekly."""
    return [
        pytest.param(*window, at_once, marks=[] if at_once in (None, chosen) else [pytest.mark.weekly])
        for *window, chosen in WINDOWS
        for at_once in (None, 1, 200, 600, 10**6)
    ]


@pytest.mark.parametrize(("size", "padding", "stride", "at_once"), ways())
def test_the_gradient_is_that_of_jax(
    size: tuple[int, int], padding: Padding, stride: int, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values too, of all windows: those that reach beyond the image, and those that leave pixels of it out.

    That of the kernel as a correlation, and by patches of one row of places, several, one image, and all.
    """
    if at_once is not None:
        monkeypatch.setattr(convolution, "MAX_PATCHES", 0)
        monkeypatch.setattr(convolution, "BLOCK", at_once)
    ours, _, x, kernel = both(size, padding, stride)
    g, want = reference(size, padding, stride)
    traced = pulled(ours).trace(g, x, kernel)
    parts = "scan[" in str(traced.jaxpr)
    assert parts == (at_once is not None and (size, padding) != ((1, 1), 0))
    for a, b in zip(traced.lower().compile()(g, x, kernel), want, strict=True):
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
    monkeypatch.setattr(convolution, "MAX_PATCHES", patches)
    x = jnp.zeros((2, 8, 8, 3))
    forward = flops.count(ours, x, kernel)
    whole = flops.count(jax.grad(lambda x, kernel: ours(x, kernel).sum(), (0, 1)), x, kernel)
    assert whole == 3 * forward


POOLS = [(2, 2, 0), (3, 2, 1), (2, 1, "SAME"), (5, 1, "SAME"), (3, 3, 0)]


@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
def test_the_gradient_of_pooling_is_that_of_jax(size: int, stride: int, padding: Padding) -> None:
    """Also where many pixels are equal, as after a ReLU, and one is NaN."""
    sides = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    around = sides if isinstance(sides, str) else ((0, 0), *sides, (0, 0))

    def plain(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), around)

    ours, theirs = pulled(lambda x: max_pool(x, size, stride, padding)), pulled(plain)
    for levels in (3, 10**6):
        draw = np.random.default_rng(0)
        x = draw.integers(0, levels, (2, 9, 8, 3)).astype(np.float32)
        g = draw.integers(1, 9, jax.eval_shape(plain, x).shape).astype(np.float32)
        for got, want in zip(ours(g, x), theirs(g, x), strict=True):
            np.testing.assert_array_equal(got, want)
        x[0, 4, 4] = np.nan
        np.testing.assert_array_equal(ours(g, x)[0], theirs(g, x)[0])


def test_the_written_gradient_of_pooling_is_of_cpu_alone() -> None:
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, 2, 2).sum()))
    x = jnp.zeros((2, 8, 8, 3))
    programs = {p: gradient.trace(x).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")}
    scatters = {p: "select_and_scatter" in text for p, text in programs.items()}
    assert scatters == {"cpu": False, "tpu": True, "cuda": True}
