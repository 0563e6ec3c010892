"""Convolution: its written-out gradient, on CPU and elsewhere, and what becomes of kernels of one pixel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.convolution import DIMS, Padding, conv
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


@pytest.mark.parametrize(("size", "padding", "stride"), WINDOWS)
def test_the_gradient_is_that_of_jax(size: tuple[int, int], padding: Padding, stride: int) -> None:
    """Values too, of all windows: those that reach beyond the image, and those that leave pixels of it out."""
    ours, plain, x, kernel = both(size, padding, stride)
    (got, pull), (want, plain_pull) = (jax.vjp(f, x, kernel) for f in (ours, plain))
    g = jnp.asarray(np.random.default_rng(1).normal(size=want.shape), jnp.float32)
    for a, b in zip((got, *pull(g)), (want, *plain_pull(g)), strict=True):
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
