"""The scalar engine, operation by operation and on random expressions, against jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.autodiff import scalar
from models.blocks.autodiff.scalar import Value

UNARY = {
    "neg": (lambda x: -x, lambda x: -x),
    "add": (lambda x: 3 + x + 0.5, lambda x: x + 3.5),
    "sub": (lambda x: 2.0 - x - 1, lambda x: 1 - x),
    "mul": (lambda x: 3 * x * 0.5, lambda x: 1.5 * x),
    "div": (lambda x: 2 / x / 3, lambda x: 2 / (3 * x)),
    "square": (lambda x: x**2, jnp.square),
    "root": (lambda x: abs_of(x) ** 0.5, lambda x: jnp.sqrt(jnp.abs(x))),
    "inverse": (lambda x: x**-1, lambda x: 1 / x),
    "one": (lambda x: x**0 * x, lambda x: x),
    "relu": (Value.relu, jax.nn.relu),
    "tanh": (Value.tanh, jnp.tanh),
    "sigmoid": (Value.sigmoid, jax.nn.sigmoid),
    "exp": (Value.exp, jnp.exp),
    "log": (lambda x: abs_of(x).log(), lambda x: jnp.log(jnp.abs(x))),
}


def abs_of(x: Value) -> Value:
    return x.relu() + (-x).relu()


@pytest.mark.parametrize("name", UNARY)
def test_each_operation_has_jaxs_value_and_slope(name: str) -> None:
    ours, theirs = UNARY[name]
    with jax.enable_x64(True):
        for at in (-30.0, -1.7, -0.3, 0.2, 1.0, 25.0):
            x = Value(at)
            y = ours(x)
            y.backward()
            np.testing.assert_allclose([y.data, x.grad], jax.value_and_grad(theirs)(at), rtol=1e-12, atol=1e-300)


STEPS = {  # name: (functions, a, b) -> number; kept where slopes are small, so that rounding does not grow
    "+": lambda f, a, b: a + b,
    "-": lambda f, a, b: a - b,
    "*": lambda f, a, b: f["tanh"](a) * b,
    "/": lambda f, a, b: a / (b * b + 1.5),
    "relu": lambda f, a, b: f["relu"](a),
    "sigmoid": lambda f, a, b: f["sigmoid"](a),
    "exp": lambda f, a, b: f["exp"](f["tanh"](a)),
    "log": lambda f, a, b: f["log"](a * a + 1.5),
}


def program(seed: int) -> list[tuple[str, int, int]]:
    """A random expression: each step names an operation and which of the earlier values it takes, many repeatedly."""
    draw = np.random.default_rng(seed)
    return [(str(draw.choice(list(STEPS))), *map(int, draw.integers(0, 3 + n, 2))) for n in range(14)]


def run(steps: list[tuple[str, int, int]], xs: list, functions: dict):
    values = list(xs)
    for name, i, j in steps:
        values.append(STEPS[name](functions, values[i], values[j]))
    return sum(values[1:], values[0])


@pytest.mark.parametrize("seed", range(12))
def test_random_expressions_have_jaxs_gradient(seed: int) -> None:
    ours = {n: getattr(Value, n) for n in ("relu", "tanh", "sigmoid", "exp", "log")}
    theirs = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "exp": jnp.exp, "log": jnp.log}
    at = np.random.default_rng(100 + seed).normal(size=3).tolist()
    with jax.enable_x64(True):
        value, want = jax.value_and_grad(lambda xs: run(program(seed), xs, theirs))(at)
    xs = [Value(x) for x in at]
    y = run(program(seed), xs, ours)
    y.backward()
    np.testing.assert_allclose([y.data, *(x.grad for x in xs)], [value, *want], rtol=1e-9, atol=1e-12)


def test_a_node_used_twice_adds_up() -> None:
    x, w = Value(2.0), Value(-3.0)
    y = x * w + x
    y.backward()
    assert (y.data, x.grad, w.grad) == (-4.0, -2.0, 2.0)
    z = x * x * x
    z.backward()
    assert x.grad == 12.0
    z.backward()  # again: set anew, not added to
    assert x.grad == 12.0
    assert repr(x) == "Value(2, grad=12)"


def test_an_inner_node_waits_for_all_its_users() -> None:
    """Diamonds in a row: 2 to the 40 paths, and each node is visited once."""
    x = y = Value(1.0)
    for _ in range(40):
        y = y + y.relu()
    y.backward()
    assert x.grad == 2.0**40
    assert len(y.topological_order()) == 81


def test_a_deep_chain_is_no_recursion() -> None:
    x = y = Value(1.0)
    for _ in range(10_000):
        y = y * 1.0001
    y.backward()
    assert x.grad == pytest.approx(1.0001**10_000, rel=1e-9)


def test_a_weighted_sum_is_its_products_and_sums() -> None:
    draw = np.random.default_rng(0)
    w, x = ([Value(v) for v in draw.normal(size=5)] for _ in range(2))
    b = Value(0.3)
    leaves = [*w, *x, b]

    def found(y: Value) -> list[float]:
        y.backward()
        return [y.data, *(n.grad for n in leaves)]

    one = found(scalar.weighted_sum(w, x, b).tanh())
    many = found((sum((i * j for i, j in zip(w, x, strict=True)), b)).tanh())
    np.testing.assert_allclose(one, many, rtol=1e-12)
    shared = scalar.weighted_sum(w, w, b)
    shared.backward()
    assert w[0].grad == 2 * w[0].data


def test_nan_stays_nan_and_large_scores_do_not_overflow() -> None:
    assert np.isnan(Value(float("nan")).relu().data)
    loss = scalar.softmax([Value(5000.0), Value(-5000.0)], 1)
    loss.backward()
    assert loss.data == 10_000


def test_a_power_by_a_node_and_a_complex_root_are_refused() -> None:
    with pytest.raises(TypeError):
        Value(2.0) ** Value(2.0)
    with pytest.raises(ValueError, match="domain"):
        Value(-2.0) ** 0.5
