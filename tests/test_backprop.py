"""Sources of an mlp's gradient, the four equations and the scalar engine, against jax.grad and finite differences."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
import models
from data import sources
from errors import UsageError
from models import backprop, mlp, scalar
from models.spec import flatten
from tests.cases import MESHES
from tests.harness import assert_gradients_close
from train import mesh
from train.record import metrics
from train.update import losses, step

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


@pytest.mark.parametrize("name", ["equations", "scalar"])
def test_a_written_out_gradient_trains_alike(name: str, tmp_path: Path) -> None:
    args = ["--config=configs/mlp.py:micrograd", "--config.train.steps=4", "--config.log.every=1", "--config.mesh=tp:*"]
    assert launch.main(["train", f"--workdir={tmp_path}/jax", *args]) == 0
    assert launch.main(["train", f"--workdir={tmp_path}/own", *args, f"--config.train.gradient={name}"]) == 0
    one, two = (
        [r["metrics"]["loss"] for r in metrics.read(str(tmp_path / w)) if r["kind"] == "train"] for w in ("jax", "own")
    )
    assert len(one) == 4
    assert one[-1] < one[0]
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_a_gradient_that_a_family_lacks_is_refused(tmp_path: Path, capsys) -> None:
    argv = ["train", f"--workdir={tmp_path}/w", "--config=configs/cnn.py:digits", "--config.train.gradient=scalar"]
    assert launch.main(argv) == 2
    assert "source of gradients of family cnn" in capsys.readouterr().err
