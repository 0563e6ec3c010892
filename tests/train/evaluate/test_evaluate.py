"""Evaluation: ratios of totals, their standard errors, what is kept of a row."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from data.eval_set import EvalSet
from tests.support.cases import CASES, B, batch_for, random_variables, tiny_model
from train.evaluate import evaluate
from train.sharding import mesh
from train.tasks import TASKS, Batch, Forward, Frozen, Task, WeightedSums, regression


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_ratio_of_plain_rows_is_the_mean_and_its_standard_error() -> None:
    """With unit weights and a cluster a row: mean, and deviation over the root of n."""
    x = draw(40).astype(np.float64)
    mean, error = evaluate._ratio(x, np.ones(40), np.arange(40))
    assert mean == pytest.approx(x.mean(), rel=1e-12)
    assert error == pytest.approx(x.std(ddof=1) / math.sqrt(40), rel=1e-12)


def test_ratio_of_clusters() -> None:
    """Rows of a cluster are summed first; the error agrees with the jackknife over clusters, within 3 % of itself."""
    rng = np.random.default_rng(0)
    cluster = np.sort(rng.integers(0, 200, 1000))
    _, cluster = np.unique(cluster, return_inverse=True)
    weights = rng.integers(1, 30, 1000).astype(np.float64)
    sums = weights * (2 + rng.normal(size=cluster.max() + 1)[cluster] + 0.3 * rng.normal(size=1000))
    mean, error = evaluate._ratio(sums, weights, cluster)
    assert mean == pytest.approx(sums.sum() / weights.sum(), rel=1e-12)

    without = np.array([sums[cluster != i].sum() / weights[cluster != i].sum() for i in range(cluster.max() + 1)])
    n = len(without)
    jackknife = math.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    assert error == pytest.approx(jackknife, rel=0.03)  # the two differ by terms of order 1/n = 0.005
    naive = evaluate._ratio(sums, weights, np.arange(1000))[1]
    assert error > 1.5 * naive  # rows of a cluster share its noise


def test_ratio_of_too_little() -> None:
    """One cluster has no error; no weight has no value."""
    mean, error = evaluate._ratio(np.array([2.0, 4.0]), np.array([1.0, 1.0]), np.array([0, 0]))
    assert mean == 3
    assert math.isnan(error)
    assert all(map(math.isnan, evaluate._ratio(np.zeros(3), np.zeros(3), np.arange(3))))


@pytest.mark.parametrize("size", [1, 8, 11, 64])
def test_scores_do_not_depend_on_the_batch_size(size: int) -> None:
    """A batch is rounded up to the mesh, padding is cut off, and the figures are the same to the last bit."""
    place = mesh.make_placement(mesh.make_mesh("dp:8"), {})
    x = draw(37)
    exam = EvalSet({"x": x, "weight": np.ones(37, np.float32)}, np.arange(37) // 2)

    def examine(variables: Any, batch: dict[str, jax.Array]) -> Any:
        loss = (batch["x"] * batch["weight"] + (1 - batch["weight"]) * 1e9, batch["weight"])
        return {"loss": loss}, {"prediction": batch["x"] > 0, "label": batch["x"]}

    got = evaluate.evaluate(examine, None, exam, place, size)
    assert (got.examples, got.clusters) == (37, 19)
    assert got.rows is not None
    for have, kept in zip(got.rows[:4], (x, np.ones(37), x > 0, x), strict=True):
        np.testing.assert_array_equal(have, kept)
    want = evaluate._ratio(x.astype(np.float64), np.ones(37), np.arange(37) // 2)
    assert (got.metrics["loss"], got.stderr["loss"]) == want


def test_a_limit_measures_the_first_batches() -> None:
    """And says how many examples those were."""
    place = mesh.make_placement(mesh.make_mesh("dp:8"), {})
    exam = EvalSet({"x": np.arange(37, dtype=np.float32)}, np.arange(37))
    examine = lambda _, b: ({"loss": (b["x"] * b["weight"], b["weight"])}, {})  # noqa: E731
    got = evaluate.evaluate(examine, None, exam, place, 8, limit=2)
    assert got.metrics == {"loss": 7.5}
    assert (got.examples, got.clusters) == (16, 16)
    assert got.rows is not None
    np.testing.assert_array_equal(got.rows.loss, np.arange(16))
    assert got.rows.prediction is None


def test_a_row_has_the_ratio_of_its_own_sums() -> None:
    """A window's loss is a token's; a row that weighs nothing has none, and no padding gets in."""
    place = mesh.make_placement(mesh.make_mesh("dp:8"), {})
    weight = np.zeros((5, 3), np.float32)
    for row, tokens in enumerate((3, 1, 0, 2, 3)):
        weight[row, :tokens] = 1
    exam = EvalSet({"x": np.arange(5, dtype=np.float32), "weight": weight}, np.arange(5))

    def examine(variables: Any, batch: dict[str, jax.Array]) -> Any:
        count = jnp.sum(batch["weight"], -1)
        return {"loss": (batch["x"] * count, count)}, {}

    rows = evaluate.evaluate(examine, None, exam, place, 8).rows
    assert rows is not None
    np.testing.assert_array_equal(rows.loss, [0, 1, math.nan, 3, 4])
    np.testing.assert_array_equal(rows.weight, [3, 1, 0, 2, 3])


@pytest.mark.parametrize("name", ["mlp", "elman_values"])
def test_answers_on_a_mesh_are_the_models(name: str) -> None:
    """Guesses of classes that lie on two devices are the argmax of the scores; accuracy is the share that is right."""
    model, task = tiny_model(name, **{"classes": 8} if name == "mlp" else {}), TASKS[CASES[name].loss]
    batch = batch_for(name)
    place = mesh.make_placement(mesh.make_mesh("dp:2,fsdp:2,tp:2"), model.specs)
    exam = EvalSet({k: v for k, v in batch.items() if k != "weight"}, np.arange(B))
    variables = random_variables(model)
    value = np.asarray(jax.jit(model.predict)(variables, batch))
    placed = jax.device_put(variables, place.shardings(model.specs))
    with jax.set_mesh(place.mesh):
        got = evaluate.evaluate(evaluate.make_eval_step(model, task, place), placed, exam, place, 8)
    assert got.rows is not None
    if name == "mlp":
        assert place("batch classes") == P(("dp", "fsdp"), "tp")
        np.testing.assert_array_equal(got.rows.prediction, value.argmax(-1))
        np.testing.assert_array_equal(got.rows.label, batch["label"])
        right = value.argmax(-1) == batch["label"]
        assert got.metrics["accuracy"] == right.mean()
        five = np.argsort(-value, -1, kind="stable")[:, :5]
        assert got.metrics["top5_accuracy"] == (five == batch["label"][:, None]).any(-1).mean()
        shares = np.exp(value - value.max(-1, keepdims=True))
        sure = (shares / shares.sum(-1, keepdims=True)).max(-1)
        np.testing.assert_allclose(got.rows.confidence, sure, rtol=1e-5)
        assert got.metrics["ece"] == pytest.approx(by_bins(sure, right, np.ones(B)), rel=1e-4)
    else:
        np.testing.assert_allclose(got.rows.prediction, value, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(got.rows.label, batch["target"])


def by_bins(confidence: np.ndarray, right: np.ndarray, weight: np.ndarray) -> float:
    """The expected calibration error, bin by bin (Guo et al. 2017, eq. 3)."""
    found = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        w = weight[inside].sum()
        if w:
            accuracy, sure = (np.average(x[inside], weights=weight[inside]) for x in (right, confidence))
            found += w / weight.sum() * abs(accuracy - sure)
    return found


def test_calibration_by_hand() -> None:
    """Two bins: 3 of 4 right at 0.9, 0 of 1 at 0.35, and a row that weighs nothing; edges belong to the bin below."""
    sure, right = np.array([0.9, 0.9, 0.9, 0.9, 0.35, 0.1]), np.array([1, 1, 1, 0, 0, 1], bool)
    weight = np.array([1, 1, 1, 1, 1, 0], float)
    terms = evaluate.calibration(sure, right, weight)
    assert terms[0].sum() / terms[1].sum() == pytest.approx((4 * 0.15 + 0.35) / 5)
    assert terms[0, 5] == 0
    np.testing.assert_array_equal(
        evaluate.calibration_bins(np.array([0.0, 1 / 15, 0.0667, 14 / 15, 0.934, 1.0])), [0, 0, 1, 13, 14, 14]
    )
    draw = np.random.default_rng(0)
    sure, right, weight = draw.random(500), draw.random(500) < 0.5, draw.integers(0, 3, 500).astype(float)
    terms = evaluate.calibration(sure, right, weight)
    assert terms[0].sum() / terms[1].sum() == pytest.approx(by_bins(sure, right, weight))


def test_the_error_of_calibration_is_its_spread() -> None:
    """For a model that is too sure by 0.2, the delta method gives the spread over samples of 2,000 within a fifth."""
    draw, found = np.random.default_rng(0), []
    for _ in range(300):
        sure = draw.choice([0.5, 0.7, 0.9], 2000)
        terms = evaluate.calibration(sure, draw.random(2000) < sure - 0.2, np.ones(2000))
        found.append(evaluate._ratio(*terms, np.arange(2000)))
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(0.2, abs=0.003)
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)


def test_confidence_is_of_losses_of_probabilities() -> None:
    """A margin or a quadratic cost has none."""
    batch = {"label": jnp.zeros(2, jnp.int32), "weight": jnp.ones(2)}
    got = TASKS["softmax"].predictions(jnp.array([[0.0, math.log(3.0)], [0.0, 0.0]]), batch)
    np.testing.assert_allclose(got["confidence"], [0.75, 0.5], rtol=1e-6)
    assert "confidence" not in TASKS["quadratic"].predictions(jnp.zeros((2, 3)), batch)
    assert "confidence" not in TASKS["hinge"].predictions(jnp.zeros((2, 1)), batch)


def test_a_single_score_separates_two_classes() -> None:
    """Above 0 is class 1; what the hinge loss counts as right is what is guessed right."""
    score, label = np.array([[2.0], [-1.0], [0.5], [-3.0]], np.float32), np.array([1, 1, 0, 0], np.int32)
    batch = {"label": jnp.asarray(label), "weight": jnp.ones(4)}
    answers = TASKS["hinge"].predictions(jnp.asarray(score), batch)
    np.testing.assert_array_equal(answers["prediction"], [1, 0, 1, 0])
    right = TASKS["hinge"].terms(jnp.asarray(score), batch)["accuracy"][0]
    np.testing.assert_array_equal(right, answers["prediction"] == label)


def test_what_is_many_values_a_row_is_not_kept() -> None:
    """Logits of a text, or a regressor's image, would fill the memory of the host."""
    tokens = {"targets": jnp.zeros((2, 3), jnp.int32), "weight": jnp.ones((2, 3))}
    assert TASKS["next_token"].predictions(jnp.zeros((2, 3, 5)), tokens) == {}
    image = jnp.zeros((2, regression.MAX_OUTPUTS + 1))
    assert TASKS["mse"].predictions(image, {"target": image, "weight": jnp.ones(2)}) == {}


class Noise(Task):
    """A loss that is nothing but a draw by row."""

    output_kind, target_field, unit = "classifier", "label", ""

    def loss(self, forward: Forward, batch: Batch, frozen: Frozen) -> WeightedSums:
        zero = 0 * forward(batch).value[:, 0]
        drawn = zero if forward.keys is None else jax.vmap(jax.random.normal)(forward.keys)
        return {"loss": (zero + drawn * batch["weight"], batch["weight"])}


def test_a_task_that_draws_is_evaluated_alike_by_batches_of_any_size_on_any_mesh() -> None:
    """A row's key is that of its index in the evaluation set: no two rows draw the same."""
    model, batch = tiny_model("mlp"), batch_for("mlp")
    exam, found = EvalSet({"features": batch["features"]}, np.arange(B)), []
    for text, size in (("dp:1", 16), ("dp:1", 5), ("dp:8", 8)):
        place = mesh.make_placement(mesh.make_mesh(text, jax.devices()[: int(text[3:])]), model.specs)
        variables = jax.device_put(random_variables(model), place.shardings(model.specs))
        with jax.set_mesh(place.mesh):
            rows = evaluate.evaluate(evaluate.make_eval_step(model, Noise(), place), variables, exam, place, size).rows
        assert rows is not None
        found.append(rows.loss)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    assert len(set(found[0])) == B
    lies = {"features": place.sharding("batch width"), "weight": place.sharding("batch")}
    plain = {name: jax.device_put(batch[name], sharding) for name, sharding in lies.items()}
    with jax.set_mesh(place.mesh):
        terms, _ = evaluate.make_eval_step(model, Noise(), place)(variables, plain)  # without indices nothing is drawn
    assert not np.any(terms["loss"][0])
