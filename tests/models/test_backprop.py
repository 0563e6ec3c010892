"""Sources of an mlp's gradient, the four equations and the scalar engine, against jax.grad and finite differences."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
import models
from data import sources
from errors import UsageError
from models.blocks.autodiff import backprop, scalar
from models.core.spec import flatten
from models.families import mlp
from tests.support.cases import MESHES, random_variables
from tests.support.harness import assert_gradients_close
from train.record import metrics
from train.sharding import mesh
from train.tasks import WeightedSums
from train.tasks.classification import Quadratic, Softmax

pytestmark = pytest.mark.usefixtures("no_plots")

BY = {"equations": backprop.gradient, "scalar": scalar.gradient}


def hinge(value: jax.Array, batch: dict[str, jax.Array]) -> WeightedSums:
    y = (2 * batch["label"] - 1).astype(jnp.float32)
    return {"loss": (jax.nn.relu(1 - y * value[:, 0]) * batch["weight"], batch["weight"])}


TASKS = {"softmax": Softmax().terms, "quadratic": Quadratic().terms, "hinge": hinge}


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
    params = random_variables(models.Model("mlp", c), seed)["params"]
    x = draw.normal(size=(rows, c.inputs)).astype(np.float32)
    weight = np.array([0, *draw.uniform(0, 2, rows - 1)], np.float32)
    label = draw.integers(0, max(c.classes, 2), rows).astype(np.int32) % (2 if c.classes == 1 else c.classes)
    fields = {"image": x.reshape(rows, -1, 1, 1)} if image else {"features": x}
    return jax.tree.map(jnp.asarray, (params, {**fields, "label": label, "weight": weight}))


@cache
def sources_of(c: mlp.Config, loss: str) -> Any:
    """Of parameters, a batch and its total: what jax finds, and what each source written out does, by one program."""
    ways = (by_jax, *BY.values())
    return jax.jit(lambda params, inputs, total: [way(params, inputs, c, loss, total) for way in ways])


FEW = (5, 6, 7, 8, 9)  # each activation, also as the output, each loss, and either input


@pytest.mark.parametrize("seed", [n if n in FEW else pytest.param(n, marks=pytest.mark.weekly) for n in range(15)])
def test_random_networks_have_jaxs_gradient(seed: int) -> None:
    """15 seeds meet each activation with each loss; total is not the sum of the weights."""
    draw, names = np.random.default_rng(1000 + seed), sorted(backprop.DERIVATIVES)
    loss = sorted(TASKS)[seed % 3]
    c = mlp.Config(
        inputs=int(draw.integers(1, 6)),
        hidden=tuple(map(int, draw.integers(2, 8, draw.integers(1, 4)))),
        classes=1 if loss == "hinge" else int(draw.integers(2, 5)),
        activation=names[seed % 5],
        output=names[(seed + seed // 5) % 5],
    )
    params, inputs = problem(c, 7, seed, image=bool(draw.integers(2)))
    want, *found = sources_of(c, loss)(params, inputs, 11.0)
    for got in found:
        same(got, want)


@pytest.mark.parametrize("name", BY)
def test_a_perceptron_has_only_a_head(name: str) -> None:
    c = mlp.Config(inputs=3, classes=2, **mlp.SIZES["perceptron"])
    params, inputs = problem(c, 5, 0)
    got = mlp.GRADIENTS[name](params, inputs, c, "softmax", 5.0)
    assert set(got[1]) == {"head"}
    same(got, jax.jit(partial(by_jax, c=c, loss="softmax"))(params, inputs, total=5.0))  # ours without jit


def test_the_family_names_both() -> None:
    assert mlp.GRADIENTS == BY
    assert set(backprop.DERIVATIVES) == set(scalar.ACTIVATIONS)
    assert set(backprop.LOSS_DERIVATIVES) == set(scalar.LOSSES) == set(TASKS)


def test_rows_without_weight_do_nothing() -> None:
    c = mlp.Config(inputs=2, hidden=(4,), classes=2)
    params, inputs = problem(c, 6, 2)
    few = {k: np.asarray(v)[1:] for k, v in inputs.items()}
    for all_rows, weighted in zip(
        *(sources_of(c, "softmax")(params, rows, 3.0) for rows in (inputs, few)), strict=True
    ):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), all_rows[1], weighted[1])


def test_microbatches_in_a_scan_add_up_to_the_batch() -> None:
    c = mlp.Config(inputs=3, hidden=(8,), classes=4)
    params, inputs = problem(c, 12, 3)
    total = float(np.sum(inputs["weight"]))
    parts = {k: np.reshape(v, (3, 4, *v.shape[1:])) for k, v in inputs.items()}

    @jax.jit
    def accumulated(params, parts):
        def micro(carry, part):
            found = [gradient(params, part, c, "softmax", total) for gradient in BY.values()]
            return jax.tree.map(jnp.add, carry, [grads for _, grads in found]), [value for value, _ in found]

        grads, values = jax.lax.scan(micro, [jax.tree.map(jnp.zeros_like, params)] * len(BY), parts)
        return [(value.reshape(12, -1), own) for value, own in zip(values, grads, strict=True)]

    want = jax.jit(partial(by_jax, c=c, loss="softmax"))(params, inputs, total=total)
    for got in accumulated(params, parts):
        same(got, want)


# each strategy, with a mesh of one device; all meshes weekly
ON = [("equations", "dp:1"), *(("equations", m) for m in MESHES[-2:]), ("scalar", "dp:2")]
ON_OTHERS = [*(("equations", m) for m in MESHES[:-2]), ("scalar", "dp:1")]
WIDE = mlp.Config(inputs=16, hidden=(32, 8), classes=4)


@cache
def wide() -> tuple[Any, Any, Any]:
    """Parameters, a batch, and what jax finds of them on one device."""
    params, inputs = problem(WIDE, 16, 4)
    return params, inputs, jax.jit(partial(by_jax, c=WIDE, loss="softmax"))(params, inputs, total=16.0)


@pytest.mark.parametrize(("name", "text"), [*ON, *(pytest.param(*on, marks=pytest.mark.weekly) for on in ON_OTHERS)])
def test_on_a_mesh(name: str, text: str) -> None:
    """With weights and rows cut as the trainer cuts them, and no `place`: shardings are read off the arrays."""
    params, inputs, want = wide()
    count = int(np.prod([int(p.split(":")[1]) for p in text.split(",")]))
    specs = mlp.specs(WIDE)["params"]
    place = mesh.make_placement(mesh.make_mesh(text, jax.devices()[:count]), specs)
    with jax.set_mesh(place.mesh):
        cut = jax.tree.map(jax.device_put, params, place.shardings(specs))
        rows = {k: jax.device_put(v, place.sharding(mesh.batch_axes(k, v.ndim))) for k, v in inputs.items()}
        got = jax.jit(partial(BY[name], c=WIDE, loss="softmax"))(cut, rows, total=16.0)
        if name == "equations":
            lie = jax.tree.map(lambda g, p: g.sharding.is_equivalent_to(p.sharding, g.ndim), got[1], cut)
            assert all(jax.tree.leaves(lie)), lie
        same(jax.device_get(got), want)


def test_finite_differences_agree() -> None:
    """Central differences of a forward pass in float64 numpy, parameter by parameter."""
    c = mlp.Config(inputs=3, hidden=(4, 3), classes=2, activation="tanh", output="sigmoid", bias_std=0.5)
    params, inputs = problem(c, 5, 5)
    x, label, weight = (np.asarray(inputs[k], np.float64) for k in ("features", "label", "weight"))
    leaves, treedef = jax.tree.flatten(params)

    def flat(tree: Any) -> np.ndarray:
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)

    def loss(values: np.ndarray) -> float:
        parts = np.split(values, np.cumsum([leaf.size for leaf in leaves])[:-1])
        p = jax.tree.unflatten(treedef, [v.reshape(leaf.shape) for v, leaf in zip(parts, leaves, strict=True)])
        a = x
        for n in range(2):
            a = np.tanh(a @ p["hidden"][str(n)]["kernel"] + p["hidden"][str(n)]["bias"][None])
        a = 1 / (1 + np.exp(-(a @ p["head"]["kernel"] + p["head"]["bias"][None])))
        nats = np.log(np.exp(a).sum(1)) - a[np.arange(5), label.astype(int)]
        return float((nats * weight).sum() / 4.0)

    start = flat(params)
    nudge = 1e-5 * np.eye(start.size)
    want = np.array([(loss(start + d) - loss(start - d)) / 2e-5 for d in nudge])
    for _, grads in sources_of(c, "softmax")(params, inputs, 4.0):
        assert np.linalg.norm(flat(grads) - want) < 1e-5 * np.linalg.norm(want)


def test_three_sources_make_one_trajectory_on_moons() -> None:
    """Plain gradient descent on 2-16-16-1 with the max-margin loss, 20 steps at 0.2, of every fourth point."""
    fields = sources.load("moons", "train").fields
    rows = {k: fields[k][::4] for k in ("features", "label")} | {"weight": np.ones(25, np.float32)}
    inputs = jax.tree.map(jnp.asarray, rows)
    model = models.build("mlp", hidden=(16, 16), classes=1, activation="relu", init="he_normal")
    start = model.init(jax.random.key(0))["params"]

    @jax.jit
    def update(three: list[Any]) -> tuple[list[jax.Array], list[Any]]:
        found = [
            way(params, inputs, model.config, "hinge", 25.0)
            for way, params in zip((by_jax, *BY.values()), three, strict=True)
        ]
        moved = [jax.tree.map(lambda p, g: p - 0.2 * g, p, g) for p, (_, g) in zip(three, found, strict=True)]
        return [jnp.mean(hinge(value, inputs)["loss"][0]) for value, _ in found], moved

    three, measured = [start] * 3, []
    for _ in range(20):
        means, three = update(three)
        measured.append(jax.device_get(means))
    want_losses, *found = np.transpose(measured)
    assert want_losses[-1] < 0.5 * want_losses[0]
    want, *ends = ({k: np.asarray(v) for k, v in flatten(params).items()} for params in three)
    for losses_of, got in zip(found, ends, strict=True):
        np.testing.assert_allclose(losses_of, want_losses, rtol=1e-5)
        for name, values in want.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-5, atol=1e-5)


def test_numbers_that_overflow_come_back_as_such() -> None:
    """A run that diverges is for the trainer to skip: no exception, and value or gradient is not finite."""
    c = mlp.Config(inputs=2, hidden=(3, 3), classes=2, activation="relu", init="he_normal")
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


def losses_by(workdir: Path, source: str) -> list[float]:
    """Those of a short run whose gradient a source finds."""
    args = ["--config=configs/mlp.py:micrograd", "--config.train.steps=4", "--config.log.every=1", "--config.mesh=tp:*"]
    args += ["--config.train.batch=20", f"--config.train.gradient={source}"]
    assert launch.main(["train", f"--workdir={workdir}", *args]) == 0
    return [r["metrics"]["loss"] for r in metrics.read(str(workdir)) if r["kind"] == "train"]


@pytest.mark.slow
def test_a_written_out_gradient_trains_alike(tmp_path: Path) -> None:
    want, *found = (losses_by(tmp_path / source, source) for source in ("autodiff", *BY))
    assert len(want) == 4
    assert want[-1] < want[0]
    for got in found:
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_gradient_that_a_family_lacks_is_refused(tmp_path: Path, capsys) -> None:
    argv = ["train", f"--workdir={tmp_path}/w", "--config=configs/cnn.py:digits", "--config.train.gradient=scalar"]
    assert launch.main(argv) == 2
    assert "source of gradients of family cnn" in capsys.readouterr().err
