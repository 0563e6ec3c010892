"""Backpropagation in the open: the scalar engine and the four equations against jax.grad and finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from data import sources
from errors import UsageError
from models import backprop, mlp, scalar
from models.scalar import Scalar
from models.spec import flatten
from tests.harness import MESHES, assert_gradients_close
from train import losses, mesh, step

# The engine

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
    "relu": (Scalar.relu, jax.nn.relu),
    "tanh": (Scalar.tanh, jnp.tanh),
    "sigmoid": (Scalar.sigmoid, jax.nn.sigmoid),
    "exp": (Scalar.exp, jnp.exp),
    "log": (lambda x: abs_of(x).log(), lambda x: jnp.log(jnp.abs(x))),
}


def abs_of(x: Scalar) -> Scalar:
    return x.relu() + (-x).relu()


@pytest.mark.parametrize("name", UNARY)
def test_each_operation_has_jaxs_value_and_slope(name: str) -> None:
    ours, theirs = UNARY[name]
    with jax.enable_x64(True):
        for at in (-30.0, -1.7, -0.3, 0.2, 1.0, 25.0):
            x = Scalar(at)
            y = ours(x)
            y.backward()
            np.testing.assert_allclose([y.value, x.gradient], jax.value_and_grad(theirs)(at), rtol=1e-12, atol=1e-300)


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
    ours = {n: getattr(Scalar, n) for n in ("relu", "tanh", "sigmoid", "exp", "log")}
    theirs = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "exp": jnp.exp, "log": jnp.log}
    at = np.random.default_rng(100 + seed).normal(size=3).tolist()
    with jax.enable_x64(True):
        value, want = jax.value_and_grad(lambda xs: run(program(seed), xs, theirs))(at)
    xs = [Scalar(x) for x in at]
    y = run(program(seed), xs, ours)
    y.backward()
    np.testing.assert_allclose([y.value, *(x.gradient for x in xs)], [value, *want], rtol=1e-9, atol=1e-12)


def test_a_node_used_twice_adds_up() -> None:
    x, w = Scalar(2.0), Scalar(-3.0)
    y = x * w + x
    y.backward()
    assert (y.value, x.gradient, w.gradient) == (-4.0, -2.0, 2.0)
    z = x * x * x
    z.backward()
    assert x.gradient == 12.0
    z.backward()  # again: set anew, not added to
    assert x.gradient == 12.0
    assert repr(x) == "Scalar(2, gradient=12)"


def test_an_inner_node_waits_for_all_its_users() -> None:
    """Diamonds in a row: 2 to the 40 paths, and each node is visited once."""
    x = y = Scalar(1.0)
    for _ in range(40):
        y = y + y.relu()
    y.backward()
    assert x.gradient == 2.0**40
    assert len(y.inputs_first()) == 81


def test_a_deep_chain_is_no_recursion() -> None:
    x = y = Scalar(1.0)
    for _ in range(10_000):
        y = y * 1.0001
    y.backward()
    assert x.gradient == pytest.approx(1.0001**10_000, rel=1e-9)


def test_a_weighted_sum_is_its_products_and_sums() -> None:
    draw = np.random.default_rng(0)
    w, x = ([Scalar(v) for v in draw.normal(size=5)] for _ in range(2))
    b = Scalar(0.3)
    leaves = [*w, *x, b]

    def found(y: Scalar) -> list[float]:
        y.backward()
        return [y.value, *(n.gradient for n in leaves)]

    one = found(scalar.weighted_sum(w, x, b).tanh())
    many = found((sum((i * j for i, j in zip(w, x, strict=True)), b)).tanh())
    np.testing.assert_allclose(one, many, rtol=1e-12)
    shared = scalar.weighted_sum(w, w, b)
    shared.backward()
    assert w[0].gradient == 2 * w[0].value


def test_nan_stays_nan_and_large_scores_do_not_overflow() -> None:
    assert np.isnan(Scalar(float("nan")).relu().value)
    loss = scalar.softmax([Scalar(5000.0), Scalar(-5000.0)], 1)
    loss.backward()
    assert loss.value == 10_000


def test_a_power_by_a_node_and_a_complex_root_are_refused() -> None:
    with pytest.raises(TypeError):
        Scalar(2.0) ** Scalar(2.0)
    with pytest.raises(ValueError, match="domain"):
        Scalar(-2.0) ** 0.5


# Both sources of the gradient, for the family

BY = {"equations": backprop.gradient, "scalar": scalar.gradient}


def hinge(value: jax.Array, batch: dict[str, jax.Array]) -> losses.Terms:
    y = (2 * batch["label"] - 1).astype(jnp.float32)
    return {"loss": (jax.nn.relu(1 - y * value[:, 0]) * batch["weight"], batch["weight"])}


TASKS = {"softmax": losses.softmax, "quadratic": losses.quadratic, "hinge": hinge}


def by_jax(params, inputs, c: mlp.Config, loss: str, total):
    def mean(params):
        value = mlp.apply({"params": params}, inputs, c).value
        return jnp.sum(TASKS[loss](value, inputs)["loss"][0]) / total, value

    grads, value = jax.grad(mean, has_aux=True)(params)
    return value, grads


def same(got, want, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got[0], want[0], rtol=tolerance, atol=tolerance)
    assert jax.tree.structure(got[1]) == jax.tree.structure(want[1])
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(got))
    ours, theirs = ({k: np.asarray(g) for k, g in flatten(grads).items()} for grads in (got[1], want[1]))
    assert {k: g.shape for k, g in ours.items()} == {k: g.shape for k, g in theirs.items()}
    assert_gradients_close(ours, theirs, tolerance)


def problem(c: mlp.Config, rows: int, seed: int, image: bool = False):
    """Random parameters and a batch with weights 0 to 2, the first row's 0."""
    draw = np.random.default_rng(seed)
    params = models.Model("mlp", c).init(jax.random.key(seed))["params"]
    x = draw.normal(size=(rows, c.inputs)).astype(np.float32)
    weight = np.array([0, *draw.uniform(0, 2, rows - 1)], np.float32)
    label = draw.integers(0, max(c.classes, 2), rows).astype(np.int32) % (2 if c.classes == 1 else c.classes)
    fields = {"image": x.reshape(rows, -1, 1, 1)} if image else {"features": x}
    return params, {k: jnp.asarray(v) for k, v in {**fields, "label": label, "weight": weight}.items()}


@pytest.mark.parametrize("seed", range(15))
def test_random_networks_have_jaxs_gradient(seed: int) -> None:
    """15 seeds meet each activation with each loss; total is not the sum of the weights."""
    draw, names = np.random.default_rng(1000 + seed), sorted(backprop.SLOPES)
    loss = sorted(TASKS)[seed % 3]
    c = mlp.Config(
        inputs=int(draw.integers(1, 6)),
        hidden=tuple(map(int, draw.integers(2, 8, draw.integers(1, 4)))),
        classes=1 if loss == "hinge" else int(draw.integers(2, 5)),
        activation=names[seed % 5],
        output=names[(seed + seed // 5) % 5],
        bias_std=0.5,
    )
    params, inputs = problem(c, 7, seed, image=bool(draw.integers(2)))
    want = jax.jit(partial(by_jax, c=c, loss=loss))(params, inputs, total=jnp.float32(11.0))
    for gradient in BY.values():
        same(jax.jit(partial(gradient, c=c, loss=loss))(params, inputs, total=jnp.float32(11.0)), want)


@pytest.mark.parametrize("name", BY)
def test_a_perceptron_has_only_a_head(name: str) -> None:
    c = mlp.Config(inputs=3, classes=2, **mlp.SIZES["perceptron"])
    params, inputs = problem(c, 5, 0)
    got = mlp.GRADIENTS[name](params, inputs, c, "softmax", 5.0)
    assert set(got[1]) == {"head"}
    same(got, by_jax(params, inputs, c, "softmax", 5.0))  # without jit


def test_the_family_names_both() -> None:
    assert mlp.GRADIENTS == BY
    assert set(backprop.SLOPES) == set(scalar.ACTIVATIONS)
    assert set(backprop.LOSS_SLOPES) == set(scalar.LOSSES) == set(TASKS)


@pytest.mark.parametrize("name", BY)
def test_rows_without_weight_do_nothing(name: str) -> None:
    c = mlp.Config(inputs=2, hidden=(4,), classes=2)
    params, inputs = problem(c, 6, 2)
    few = {k: v[1:] for k, v in inputs.items()}
    _, all_rows = BY[name](params, inputs, c, "softmax", 3.0)
    _, weighted = BY[name](params, few, c, "softmax", 3.0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), all_rows, weighted)


@pytest.mark.parametrize("name", BY)
def test_microbatches_in_a_scan_add_up_to_the_batch(name: str) -> None:
    c = mlp.Config(inputs=3, hidden=(8,), classes=4)
    params, inputs = problem(c, 12, 3)
    total = jnp.sum(inputs["weight"])

    @jax.jit
    def accumulated(params, inputs):
        def micro(carry, part):
            value, grads = BY[name](params, part, c, "softmax", total)
            return jax.tree.map(jnp.add, carry, grads), value

        parts = {k: v.reshape(3, 4, *v.shape[1:]) for k, v in inputs.items()}
        grads, value = jax.lax.scan(micro, jax.tree.map(jnp.zeros_like, params), parts)
        return value.reshape(12, -1), grads

    same(accumulated(params, inputs), by_jax(params, inputs, c, "softmax", total))


ON = [*(("equations", m) for m in ("dp:1", *MESHES)), ("scalar", "dp:1"), ("scalar", "dp:2")]


@pytest.mark.parametrize(("name", "text"), ON)
def test_on_a_mesh(name: str, text: str) -> None:
    """With weights and rows cut as the trainer cuts them, and no `place`: shardings are read off the arrays."""
    c = mlp.Config(inputs=16, hidden=(32, 8), classes=4)
    params, inputs = problem(c, 16, 4)
    want = jax.jit(partial(by_jax, c=c, loss="softmax"))(params, inputs, total=16.0)
    count = int(np.prod([int(p.split(":")[1]) for p in text.split(",")]))
    specs = mlp.specs(c)["params"]
    place = mesh.place_on(mesh.make_mesh(text, jax.devices()[:count]), specs)
    with jax.set_mesh(place.mesh):
        cut = jax.tree.map(jax.device_put, params, place.shardings(specs))
        rows = {k: jax.device_put(v, place.sharding(step.batch_axes(k, v.ndim))) for k, v in inputs.items()}
        got = jax.jit(partial(BY[name], c=c, loss="softmax"))(cut, rows, total=16.0)
        if name == "equations":
            lie = jax.tree.map(lambda g, p: g.sharding.is_equivalent_to(p.sharding, g.ndim), got[1], cut)
            assert all(jax.tree.leaves(lie)), lie
        same(jax.device_get(got), want)


@pytest.mark.parametrize("name", BY)
def test_finite_differences_agree(name: str) -> None:
    """Central differences of a forward pass in float64 numpy, parameter by parameter."""
    c = mlp.Config(inputs=3, hidden=(4, 3), classes=2, activation="tanh", output="sigmoid", bias_std=0.5)
    params, inputs = problem(c, 5, 5)
    flat, _ = jax.flatten_util.ravel_pytree(params)
    x, label, weight = (np.asarray(inputs[k], np.float64) for k in ("features", "label", "weight"))
    leaves, treedef = jax.tree.flatten(params)

    def loss(values: np.ndarray) -> float:
        parts = np.split(values, np.cumsum([leaf.size for leaf in leaves])[:-1])
        p = jax.tree.unflatten(treedef, [v.reshape(leaf.shape) for v, leaf in zip(parts, leaves, strict=True)])
        a = x
        for n in range(2):
            a = np.tanh(a @ p["hidden"][str(n)]["kernel"] + p["hidden"][str(n)]["bias"][None])
        a = 1 / (1 + np.exp(-(a @ p["head"]["kernel"] + p["head"]["bias"][None])))
        nats = np.log(np.exp(a).sum(1)) - a[np.arange(5), label.astype(int)]
        return float((nats * weight).sum() / 4.0)

    start, nudge = np.asarray(flat, np.float64), 1e-5 * np.eye(flat.size)
    want = np.array([(loss(start + d) - loss(start - d)) / 2e-5 for d in nudge])
    got, _ = jax.flatten_util.ravel_pytree(BY[name](params, inputs, c, "softmax", 4.0)[1])
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)


def test_three_sources_make_one_trajectory_on_moons() -> None:
    """Plain gradient descent on 2-16-16-1 with the max-margin loss, 20 steps at a rate of 0.2."""
    fields = sources.load("moons", "train").fields
    inputs = {k: jnp.asarray(fields[k]) for k in ("features", "label")} | {"weight": jnp.ones(100)}
    model = models.build("mlp", hidden=(16, 16), classes=1, activation="relu", law="he")
    start = model.init(jax.random.key(0))["params"]

    def train(gradient) -> tuple[list[float], dict[str, np.ndarray]]:
        go = jax.jit(partial(gradient, c=model.config, loss="hinge"))
        params, found = start, []
        for _ in range(20):
            value, grads = go(params, inputs, total=jnp.float32(100.0))
            found.append(float(jnp.mean(hinge(value, inputs)["loss"][0])))
            params = jax.tree.map(lambda p, g: p - 0.2 * g, params, grads)
        return found, {k: np.asarray(v) for k, v in flatten(params).items()}

    want_losses, want = train(by_jax)
    assert want_losses[-1] < 0.5 * want_losses[0]
    for gradient in BY.values():
        found, got = train(gradient)
        np.testing.assert_allclose(found, want_losses, rtol=1e-5)
        for name, values in want.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-5, atol=1e-5)


def test_numbers_that_overflow_come_back_as_such() -> None:
    """A run that diverges is for the trainer to skip: no exception, and value or gradient is not finite."""
    c = mlp.Config(inputs=2, hidden=(3, 3), classes=2, activation="relu", law="he")
    params, inputs = problem(c, 4, 6)
    huge = jax.tree.map(lambda p: p * 1e30, params)
    for change in (huge, jax.tree.map(lambda p: p * jnp.nan, params)):
        for loss in ("softmax", "quadratic"):
            got = scalar.gradient(change, inputs, c, loss, 4.0)
            assert not all(np.isfinite(g).all() for g in jax.tree.leaves(got))


@pytest.mark.parametrize("name", BY)
@pytest.mark.parametrize(
    ("fields", "loss", "says"),
    [
        ({"activation": "gelu"}, "softmax", "no activation 'gelu' is written out; legal: identity, relu, scaled_tanh,"),
        ({"output": "silu"}, "softmax", "no output 'silu' is written out; legal: identity"),
        ({}, "next_token", "no loss 'next_token' is written out; legal: hinge, quadratic, softmax"),
        ({}, "hinge", "classes = 2 must be 1 for the loss 'hinge'"),
        ({"dropout": 0.2}, "softmax", "dropout = 0.2 must be 0"),
        ({"compute": "bfloat16"}, "softmax", "compute = 'bfloat16' must be 'float32'"),
    ],
)
def test_what_is_not_written_out_is_refused(name: str, fields: dict, loss: str, says: str) -> None:
    c = mlp.Config(inputs=2, hidden=(4,), **fields)
    params, inputs = problem(c, 4, 0)
    with pytest.raises(UsageError, match=says) as refusal:
        BY[name](params, inputs, c, loss, 4.0)
    assert str(refusal.value).startswith(f"gradient by {name}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("module", [backprop, scalar])
def test_no_derivative_is_left_to_jax(module) -> None:
    with open(module.__file__) as file:
        text = file.read()
    assert not any(f"{word}(" in text for word in ("grad", "vjp", "jvp", "linearize", "value_and_grad"))
