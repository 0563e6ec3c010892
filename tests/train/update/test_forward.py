"""Tasks that run the network several times, with frozen variables beside the trained ones, in the trainer's update."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from configs.knobs import OptimConfig
from errors import UsageError
from models.core.layers import fold_in_each, per_row_keys
from models.core.spec import flatten
from tests.support.cases import B, T, batch_for, random_variables, tiny_model, weights
from tests.support.harness import assert_gradients_close
from train.sharding import mesh
from train.tasks import Batch, Forward, Frozen, Task, WeightedSums
from train.tasks.language import NextToken
from train.update import optim, step

BETA = 0.5
SETTINGS = [("dp:1", 1), ("dp:1", 4), ("fsdp:4,tp:2", 1), ("fsdp:4,tp:2", 2)]


class Preference(Task):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), with noise of its own by row."""

    output_kind, target_field, unit = "language_model", "targets", "nats"

    def loss(self, forward: Forward, batch: Batch, frozen: Frozen) -> WeightedSums:
        assert forward.keys is not None
        chosen = {"tokens": batch["tokens"], "targets": batch["targets"]}
        rejected = {"tokens": batch["rejected"], "targets": batch["rejected_targets"]}
        ours = self.nats(forward(rejected), rejected) - self.nats(
            forward(chosen, keys=fold_in_each(forward.keys, jnp.asarray(1))), chosen
        )
        reference = frozen["reference"]
        theirs = self.nats(forward(rejected, variables=reference), rejected) - self.nats(
            forward(chosen, variables=reference), chosen
        )
        noise = 0.1 * jax.vmap(jax.random.normal)(forward.keys)
        margin, w = BETA * (ours - theirs) + noise, batch["weight"]
        return {"loss": (jax.nn.softplus(-margin) * w, w), "margin": (margin * w, w)}

    def nats(self, out: Any, batch: Batch) -> jax.Array:
        """Minus the log-probability of each row's targets [B]."""
        return NextToken().terms(out.value, {**batch, "weight": jnp.ones_like(batch["targets"], jnp.float32)})["loss"][
            0
        ]


def preferences() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    names = ("tokens", "targets", "rejected", "rejected_targets")
    fields: dict[str, np.ndarray] = {name: draw.integers(0, 100, (B, T)).astype(np.int32) for name in names}
    return {**fields, "weight": weights(draw, B)}


@cache
def model() -> models.Model:
    return tiny_model("gpt", dropout=0.25)


def by_hand(params: Any, reference: Any, batch: dict[str, np.ndarray]) -> jax.Array:
    """The mean loss of update 0, without the trainer: no mesh, whole logits."""
    key = jax.random.fold_in(step.stream_key(0, "train"), 0)
    keys = per_row_keys(key, jnp.arange(B))

    def likelihood(variables: Any, tokens: Any, targets: Any, keys: Any = None) -> jax.Array:
        logits = model().apply(variables, {"tokens": tokens}, train=keys is not None, key=keys).value
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0], -1)

    chosen, rejected = (batch["tokens"], batch["targets"]), (batch["rejected"], batch["rejected_targets"])
    ours = likelihood({"params": params}, *chosen, fold_in_each(keys, jnp.asarray(1)))
    ours = ours - likelihood({"params": params}, *rejected, keys)
    theirs = likelihood(reference, *chosen) - likelihood(reference, *rejected)
    margin = BETA * (ours - theirs) + 0.1 * jax.vmap(jax.random.normal)(keys)
    return jnp.sum(-jax.nn.log_sigmoid(margin) * batch["weight"]) / jnp.sum(batch["weight"])


@cache
def wanted() -> tuple[float, dict[str, np.ndarray]]:
    ours, reference = (random_variables(model(), seed) for seed in (0, 1))
    loss, grads = jax.jit(jax.value_and_grad(by_hand))(ours["params"], reference, preferences())
    return float(loss), {k: np.asarray(g) for k, g in flatten(grads).items()}


def gradient_of(state: Any, beta1: float = 0.9) -> dict[str, np.ndarray]:
    """The gradient of a state's first update, from Adam's first moment."""
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    (adam,) = (x for x in jax.tree.leaves(state["opt"], is_leaf=is_adam) if is_adam(x))
    return {k: np.asarray(v) / np.float32(1 - beta1) for k, v in flatten(adam.mu).items()}


@pytest.fixture(autouse=True)
def mesh_of_one_test() -> Iterator[None]:
    """`make` sets the mesh of a test."""
    yield
    jax.set_mesh(None)


def make(model: models.Model, task: Task, text: str, **options: Any) -> tuple[Any, mesh.Placement, Any]:
    """A step's maker of frozen variables -> update, its placement, and the state of random variables."""
    count = int(np.prod([int(part.split(":")[1]) for part in text.split(",")]))
    place = mesh.make_placement(mesh.make_mesh(text, jax.devices()[:count]), model.specs)
    tx = optim.make(OptimConfig(name="adam"), model.specs["params"])
    settings = step.StepOptions(loss="mine", **options)
    jax.set_mesh(place.mesh)
    variables = jax.device_put(random_variables(model), place.shardings(model.specs))
    state = step.init_on_mesh(model, tx, place, 0, settings)
    state = {**state, "params": variables["params"], "stats": variables.get("stats", {})}
    return (
        lambda frozen: step.make_step(model, task, tx, lambda n: jnp.asarray(1e-3), place, settings, frozen),
        place,
        state,
    )


def put(batch: dict[str, np.ndarray], place: mesh.Placement) -> dict[str, jax.Array]:
    return {k: jax.device_put(v, place.sharding(mesh.batch_axes(k, v.ndim))) for k, v in batch.items()}


@pytest.mark.parametrize(("text", "accumulate"), SETTINGS)
def test_two_forward_passes_and_a_frozen_network_train_as_written_out(text: str, accumulate: int) -> None:
    """Loss and gradient are those of jax.grad on one device, whole = accumulated = sharded."""
    loss, want = wanted()
    maker, place, state = make(model(), Preference(), text, accumulate=accumulate)
    reference = jax.device_put(random_variables(model(), 1), place.shardings(model().specs))
    before = jax.tree.map(np.array, reference)
    update = maker({"reference": reference})
    state, metrics = update(state, put(preferences(), place))
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    assert metrics["skipped"] == 0
    assert_gradients_close(gradient_of(state), want, 1e-4)
    jax.tree.map(np.testing.assert_array_equal, reference, before)  # neither donated nor moved


def test_frozen_variables_are_an_argument_of_the_program() -> None:
    """Other ones of the same shapes give another loss, by the same program; the state has no moments of them."""
    maker, place, state = make(model(), Preference(), "dp:1")
    one, two = (jax.device_put(random_variables(model(), seed), place.shardings(model().specs)) for seed in (1, 2))
    update = maker({"reference": one})
    size = sum(x.size for x in jax.tree.leaves(state))
    copy = jax.tree.map(jnp.copy, state)
    after, metrics = update(state, put(preferences(), place))
    _, others = dataclasses.replace(update, frozen={"reference": two})(copy, put(preferences(), place))
    assert metrics["loss"] != others["loss"]
    assert update.program.compiled._cache_size() == 1
    assert sum(x.size for x in jax.tree.leaves(after)) == size


class Again(Task):
    """The mean loss of two forward passes on the same rows."""

    output_kind, target_field, unit = "language_model", "targets", "nats"

    def loss(self, forward: Forward, batch: Batch, frozen: Frozen) -> WeightedSums:
        one, two = (NextToken().terms(forward(batch).value, batch) for _ in range(2))
        return {name: ((one[name][0] + two[name][0]) / 2, one[name][1]) for name in one}


def test_a_models_own_losses_and_metrics_are_means_over_forward_passes() -> None:
    """Two equal passes measure and learn what one does: auxiliary losses do not add up."""
    net, found = tiny_model("deepseek", mtp=0, depth=1, dense_layers=()), []
    for task in (NextToken(), Again()):
        maker, place, state = make(net, task, "dp:1", accumulate=2)
        state, metrics = maker(None)(state, put(batch_for("deepseek"), place))
        found.append((jax.device_get(metrics), gradient_of(state), jax.device_get(state["stats"])))
    (metrics, grads, stats), (twice, more, others) = found
    assert metrics.keys() == twice.keys()
    assert {"balance", "expert_load"} <= metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(twice[name], metrics[name], rtol=1e-5, err_msg=name)
    assert_gradients_close(more, grads, 1e-5)
    jax.tree.map(np.testing.assert_array_equal, others, stats)


class TwoImages(Task):
    """Two forward passes on different images."""

    output_kind, target_field, unit = "classifier", "label", ""

    def loss(self, forward: Forward, batch: Batch, frozen: Frozen) -> WeightedSums:
        values = [forward({"image": image}).value for image in (batch["image"], 1 - batch["image"])]
        return {"loss": (jnp.sum(values[0] * values[1], -1) * batch["weight"], batch["weight"])}


def test_running_statistics_see_every_forward_pass() -> None:
    """Those after an update are those of two passes, one after the other."""
    net = tiny_model("cnn")
    maker, place, state = make(net, TwoImages(), "dp:1")
    batch = batch_for("cnn")
    batch["weight"] = np.ones(B, np.float32)
    variables = jax.tree.map(jnp.asarray, random_variables(net))
    for image in (batch["image"], 1 - batch["image"]):
        out = net.apply(variables, {"image": jnp.asarray(image)}, train=True, place=place)
        variables = {**variables, "stats": out.stats}
    state, _ = maker(None)(state, put(batch, place))
    assert jax.tree.leaves(state["stats"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state["stats"], variables["stats"]
    )


class Last(Task):
    """Next tokens, after a forward pass on other tokens that counts for nothing."""

    output_kind, target_field, unit = "language_model", "targets", "nats"

    def loss(self, forward: Forward, batch: Batch, frozen: Frozen) -> WeightedSums:
        forward({"tokens": batch["targets"]})
        return NextToken().terms(forward(batch).value, batch)


def test_the_recurrent_state_is_that_of_the_last_forward_pass() -> None:
    """Each pass starts from the row's own state, not from that of the pass before."""
    found = []
    for task in (NextToken(), Last()):
        maker, place, state = make(tiny_model("rnn"), task, "dp:1", carry=B)
        update = maker(None)
        for _ in range(2):
            state, _ = update(state, put(batch_for("rnn"), place))
        found.append(flatten(jax.device_get(state["carry"])))
    assert found[0].keys() == found[1].keys() != set()
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, atol=1e-6)


def test_what_needs_one_forward_pass_is_refused_by_name() -> None:
    maker, place, state = make(tiny_model("deepseek", depth=1, dense_layers=()), Again(), "dp:1")
    with pytest.raises(UsageError, match=r"'mine'.*multi-token prediction.*deepseek"):
        jax.eval_shape(maker(None), state, put(batch_for("deepseek"), place))
    maker, _, _ = make(tiny_model("mlp"), TwoImages(), "dp:1", gradient="equations")
    with pytest.raises(UsageError, match=r"'equations'.*'mine'.*'autodiff'"):
        maker(None)


def test_a_task_that_compares_rows_does_not_accumulate() -> None:
    class Coupled(TwoImages):
        couples_rows = True

    maker, _, _ = make(tiny_model("mlp"), Coupled(), "dp:1", accumulate=2)
    with pytest.raises(UsageError, match=r"train.accumulate = 2.*'mine'"):
        maker(None)
