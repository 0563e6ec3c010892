"""Convolution: its written-out gradient, on CPU and elsewhere, and what becomes of kernels of one pixel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.vision.convolution import DIMS, Padding, conv, max_pool
from train.plan import flops
from train.update.compile import cpu_options

WINDOWS: list[tuple[tuple[int, int], Padding, int]] = [  # kernel, padding, stride
    ((3, 3), 1, 1),
    ((3, 3), "SAME", 2),
    ((3, 3), "VALID", 3),
    ((7, 7), 3, 2),
    ((2, 3), ((0, 1), (2, 0)), 1),
    ((5, 2), ((0, 4), (3, 1)), 2),
    ((1, 1), 0, 1),
    ((1, 1), 0, 2),
    ((1, 1), 1, 2),
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


@pytest.mark.parametrize(("size", "padding", "stride"), WINDOWS)
def test_the_gradient_is_that_of_jax(size: tuple[int, int], padding: Padding, stride: int) -> None:
    """Values too, of all windows: those that reach beyond the image, and those that leave pixels of it out."""
    ours, plain, x, kernel = both(size, padding, stride)
    g = np.random.default_rng(1).normal(size=jax.eval_shape(plain, x, kernel).shape).astype(np.float32)
    for a, b in zip(pulled(ours)(g, x, kernel), pulled(plain)(g, x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_written_gradient_is_of_cpu_alone() -> None:
    """Other platforms' programs hold jax's own gradient, whose arrays lie as they come."""
    ours, _, x, kernel = both((3, 3), 1, 1)
    gradient = jax.jit(jax.grad(lambda x, kernel: ours(x, kernel).sum(), (0, 1)))
    programs = {p: gradient.trace(x, kernel).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")}
    assert {p: "[f, 0, 1, b]x" in text for p, text in programs.items()} == {"cpu": False, "tpu": True, "cuda": True}


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_costs_two_passes_forward(stride: int) -> None:
    """As counted: what fills the pixels between those of a strided convolution's gradient is no work."""
    ours, _, x, kernel = both((3, 3), ((1, 1), (1, 1)), stride)
    x = jnp.zeros((2, 8, 8, 3))
    forward = flops.count(ours, x, kernel)
    whole = flops.count(jax.grad(lambda x, kernel: ours(x, kernel).sum(), (0, 1)), x, kernel)
    assert whole == 3 * forward


def test_convolutions_of_a_run_are_not_ynnpacks() -> None:
    x, kernel = jnp.zeros((4, 8, 8, 32)), jnp.zeros((3, 3, 32, 32))
    program = (
        jax.jit(lambda x, kernel: conv(x, kernel, 1), compiler_options=cpu_options())
        .lower(x, kernel)
        .compile()
        .as_text()
    )
    assert "ynn_fusion" not in program
    assert " convolution(" in program


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
