"""Forward-mode and second derivatives of every family, in a block of `plain_gradients`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.core.gradients import are_plain, plain_gradients
from models.core.types import Params
from tests.support.cases import CASES, batch_for, random_variables, tiny_model, to_inputs
from train.tasks import TASKS, Forward

EARLY = ("cnn", "yolo")
SLOW = ("mixtral", "gpt", "bottleneck", "rnn", "linen")


def when(name: str) -> Any:
    """Two families by default, one of each kind among the slow tests, the others weekly."""
    if name in EARLY:
        return name
    return pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.weekly)


def loss_of(name: str) -> Any:
    """A family's loss as a function of its parameters, on a batch."""
    model, task, batch = tiny_model(name), TASKS[CASES[name].loss], to_inputs(batch_for(name))
    variables = random_variables(model)

    def loss(params: Params) -> jax.Array:
        forward = Forward(model, {**variables, "params": params}, lambda axes: None)
        total, weight = task.loss(forward, batch, {})["loss"]
        return jnp.sum(total) / jnp.sum(weight)

    return loss, variables["params"]


def dot(one: Params, two: Params) -> jax.Array:
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


def direction(params: Params, seed: int) -> Params:
    """A unit vector in the space of the parameters."""
    draw = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda p: draw.normal(size=p.shape).astype(np.float32), params)
    length = np.sqrt(float(dot(drawn, drawn)))
    return jax.tree.map(lambda p: p / length, drawn)


@pytest.mark.parametrize("name", map(when, CASES))
def test_derivatives_of_every_kind_exist_and_agree(name: str) -> None:
    """A derivative along u is the product of gradient and u, forwards and backwards; v H u = u H v; all are finite."""
    loss, params = loss_of(name)
    u, v = direction(params, 0), direction(params, 1)

    @jax.jit
    def derivatives(params: Params) -> tuple[jax.Array, ...]:
        slope = jax.jvp(loss, (params,), (u,))[1]
        gradient, curved = jax.jvp(jax.grad(loss), (params,), (u,))
        other = jax.jvp(jax.grad(loss), (params,), (v,))[1]
        size = jnp.sqrt(dot(gradient, gradient)), jnp.sqrt(dot(curved, curved))
        return slope, dot(gradient, u), dot(curved, v), dot(other, u), *size

    written = jax.jit(jax.grad(loss))(params)
    with plain_gradients():
        forwards, backwards, one, two, size, curvature = map(float, derivatives(params))
        plain = jax.jit(jax.grad(loss))(params)
    assert forwards == pytest.approx(backwards, rel=1e-4, abs=1e-5 * size)
    assert one == pytest.approx(two, rel=1e-3, abs=1e-4 * curvature)
    assert 0 < size < np.inf
    assert np.isfinite(curvature)
    difference = jax.tree.map(jnp.subtract, written, plain)
    assert float(jnp.sqrt(dot(difference, difference))) <= 1e-5 * size


def test_the_block_is_part_of_what_jit_compares() -> None:
    """A function that was traced outside is traced again inside, and the first program is kept."""
    traced = []

    @jax.jit
    def f(x: jax.Array) -> jax.Array:
        traced.append(are_plain())
        return x

    f(1.0)
    with plain_gradients():
        f(1.0)
        f(1.0)
    f(1.0)
    assert traced == [False, True]
