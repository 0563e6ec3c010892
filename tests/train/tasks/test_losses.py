"""Losses against numbers worked out by hand or in numpy."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
import models
from data import sources
from models.core.layers import MASK_VALUE
from models.core.spec import flatten
from tests.support.cases import batch_for
from train.record import metrics
from train.tasks import TASKS, cross_entropy
from train.tasks.classification import Quadratic, Softmax
from train.tasks.language import NextToken

pytestmark = pytest.mark.usefixtures("no_plots")

F32 = 1e-5  # relative: a few roundings of float32


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def run(loss: Any, *given: Any, **extra: float) -> Any:
    """A loss of arrays, as one program."""
    return jax.device_get(jax.jit(partial(loss, **extra))(*given))


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_cross_entropy_is_minus_log_softmax(shape: tuple[int, ...]) -> None:
    """Against numpy in float64, for rows and for sequences."""
    logits, label = 3 * draw(*shape), np.random.default_rng(1).integers(0, 7, shape[:-1]).astype(np.int32)
    want = -np.take_along_axis(log_softmax(logits), label[..., None], -1)[..., 0]
    np.testing.assert_allclose(run(cross_entropy.cross_entropy, logits, label), want, rtol=F32, atol=1e-6)


def test_masked_columns_count_for_nothing() -> None:
    """The padding of a vocabulary changes neither loss nor gradient, and takes no gradient itself."""
    logits, label = draw(4, 6), np.array([0, 5, 2, 3])
    padded = np.pad(logits, ((0, 0), (0, 3)), constant_values=MASK_VALUE)
    total = jax.value_and_grad(lambda x, label: jnp.sum(cross_entropy.cross_entropy(x, label)))
    (got, slope), (want, wanted) = run(total, padded, label), run(total, logits, label)
    np.testing.assert_allclose(got, want, rtol=F32)
    np.testing.assert_allclose(slope[:, :6], wanted, rtol=F32, atol=1e-7)
    assert not slope[:, 6:].any()


def test_large_logits_stay_finite() -> None:
    """Logits of a thousand overflow exp, not the loss."""
    got = run(cross_entropy.cross_entropy, np.float32([[1000.0, 0.0], [-1000.0, 0.0]]), np.array([1, 1]))
    np.testing.assert_allclose(got, [1000.0, 0.0])


def test_hits_give_ties_to_the_first() -> None:
    """Of equal largest logits the first is the guess, as in argmax; a model that says nothing guesses class 0."""
    logits = np.float32([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    np.testing.assert_array_equal(run(cross_entropy.correct, logits, np.array([1, 2, 0, 0])), [1, 0, 1, 1])
    random = np.random.default_rng(2).integers(0, 3, (50, 4)).astype(np.float32)  # full of ties
    label = np.random.default_rng(3).integers(0, 4, 50).astype(np.int32)
    np.testing.assert_array_equal(run(cross_entropy.correct, random, label), random.argmax(-1) == label)


def test_ranks_are_places_in_a_stable_sort() -> None:
    """By hand, with ties and NaN; and by sorting."""
    logits = np.float32([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [2.0, np.nan, 0.0], [np.nan] * 3])
    np.testing.assert_array_equal(run(cross_entropy.rank, logits, np.array([0, 2, 1, 0, 1])), [2, 1, 1, 1, 2])
    random = np.random.default_rng(2).integers(0, 5, (50, 9)).astype(np.float32)  # full of ties
    label = np.random.default_rng(3).integers(0, 9, 50).astype(np.int32)
    want = [list(np.argsort(-row, kind="stable")).index(i) for row, i in zip(random, label, strict=True)]
    np.testing.assert_array_equal(run(cross_entropy.rank, random, label), want)


@pytest.mark.parametrize("classes", [5, 6])
def test_five_guesses_are_reported_for_more_classes_alone(classes: int) -> None:
    """The share of rows whose class is not the very last of six; a row that weighs nothing adds nothing."""
    logits = -np.broadcast_to(np.arange(classes, dtype=np.float32), (4, classes))
    label, weight = np.array([0, classes - 1, 4, 5 % classes], np.int32), np.array([1, 1, 2, 0], np.float32)
    got = run(Softmax().terms, logits, {"label": label, "weight": weight})
    if classes == 5:
        assert "top5_accuracy" not in got
    else:
        np.testing.assert_array_equal(got["top5_accuracy"][0], [1, 0, 2, 0])
        np.testing.assert_array_equal(got["top5_accuracy"][1], weight)


def test_softmax_task_weighs_rows() -> None:
    """Sums carry the weight, so that a padded row adds nothing to sum or weight."""
    logits, label, weight = draw(4, 3), np.array([0, 1, 2, 0], np.int32), np.array([1, 1, 1, 0], np.float32)
    got = run(Softmax().terms, logits, {"label": label, "weight": weight})
    want = -np.take_along_axis(log_softmax(logits), label[:, None], -1)[:, 0] * weight
    np.testing.assert_allclose(got["loss"][0], want, rtol=F32)
    np.testing.assert_array_equal(got["accuracy"][0], (logits.argmax(-1) == label) * weight)
    assert all((w == weight).all() for _, w in got.values())


@pytest.mark.parametrize("extra", [{}, {"label_smoothing": 0.1, "z_loss": 0.01}])
def test_mixed_rows_have_two_labels(extra: dict[str, float]) -> None:
    """The loss is linear in the target; accuracy compares with the label of larger share."""
    logits, label, other = draw(4, 3), np.array([0, 1, 2, 0], np.int32), np.array([1, 2, 2, 1], np.int32)
    share, weight = np.array([0.75, 0.25, 0.5, 0.0], np.float32), np.array([1, 1, 1, 2], np.float32)
    batch = {"label": label, "label_b": other, "lam": share, "weight": weight}
    got = run(Softmax(**extra).terms, logits, batch)
    one, two = (run(cross_entropy.cross_entropy, logits, y, **extra) for y in (label, other))
    np.testing.assert_allclose(got["loss"][0], (share * one + (1 - share) * two) * weight, rtol=F32)
    if not extra:
        target = share[:, None] * np.eye(3)[label] + (1 - share[:, None]) * np.eye(3)[other]
        np.testing.assert_allclose(got["loss"][0], -(target * log_softmax(logits)).sum(-1) * weight, rtol=F32)
    np.testing.assert_array_equal(got["accuracy"][0], (logits.argmax(-1) == [0, 2, 2, 1]) * weight)


def test_quadratic_task_is_half_the_squared_distance() -> None:
    """Nielsen's equation 6, a row at a time."""
    value, label, weight = draw(4, 3), np.array([0, 1, 2, 0], np.int32), np.array([1, 1, 0, 2], np.float32)
    got = run(Quadratic().terms, value, {"label": label, "weight": weight})
    want = 0.5 * np.square(value - np.eye(3, dtype=np.float32)[label]).sum(-1) * weight
    np.testing.assert_allclose(got["loss"][0], want, rtol=F32)


def test_next_token_counts_tokens_and_bytes() -> None:
    """Nats a token and bits a byte, of the tokens that weigh."""
    logits, targets = draw(2, 3, 5), np.array([[0, 1, 2], [3, 4, 0]], np.int32)
    weight, size = np.array([[1, 1, 1], [1, 0, 0]], np.float32), np.array([[1, 2, 4], [3, 0, 0]], np.float32)
    batch = {"targets": targets, "weight": weight, "bytes": size}
    got = run(NextToken().terms, logits, batch)
    nats = (-np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0] * weight).sum(-1)
    np.testing.assert_allclose(got["loss"][0], nats, rtol=F32)
    np.testing.assert_array_equal(got["loss"][1], [3, 1])
    np.testing.assert_allclose(got["bits_per_byte"][0], nats / np.log(2), rtol=F32)
    np.testing.assert_array_equal(got["bits_per_byte"][1], [7, 3])
    del batch["bytes"]
    assert "bits_per_byte" not in run(NextToken().terms, logits, batch)


def test_smoothing_and_z_loss_by_hand() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    label = np.array([0, 3, 1, 1, 2])
    masked = np.concatenate([logits, np.full((5, 2), -1e30, np.float32)], 1)
    normaliser = np.log(np.exp(logits).sum(1))
    target = 0.9 * np.eye(4)[label] + 0.1 / 4
    want = -(target * (logits - normaliser[:, None])).sum(1) + 0.01 * normaliser**2
    for given in (logits, masked):
        got = run(cross_entropy.cross_entropy, given, label, label_smoothing=0.1, z_loss=0.01)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_margins_by_hand() -> None:
    value = np.float32([[2.0], [0.5], [-1.0], [0.0]])
    rows = {"label": np.array([1, 1, 1, 0]), "weight": np.float32([1.0, 1, 1, 2])}
    hinge, perceptron = (run(TASKS[name].terms, value, rows) for name in ("hinge", "perceptron"))
    np.testing.assert_allclose(hinge["loss"][0], [0, 0.5, 2, 2])
    np.testing.assert_allclose(perceptron["loss"][0], [0, 0, 1, 0])
    np.testing.assert_allclose(perceptron["accuracy"][0], [1, 1, 0, 0])


@pytest.mark.slow
def test_rosenblatts_rule_errs_no_more_than_the_theorem_allows(tmp_path: Path) -> None:
    """At most (R / margin)^2 mistakes, whatever the order (Novikoff 1962), and then none ever again."""
    args = [
        "--config=configs/mlp.py:rosenblatt",
        "--config.log.every=1",
        "--config.train.steps=2000",
        "--config.mesh=tp:*",
    ]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *args]) == 0
    lines = metrics.read(str(tmp_path / "w"))
    wrong = np.array([r["metrics"]["accuracy"] == 0 for r in lines if r["kind"] == "train"])
    assert len(wrong) == 2000
    data = sources.load("halves", "train").fields
    x = np.concatenate([data["features"], np.ones((len(data["label"]), 1), np.float32)], 1)  # the bias is a weight
    best = np.array([0.8, 0.6, -0.65])  # the line that made the set
    margin = ((2.0 * data["label"] - 1) * (x @ best)).min() / np.linalg.norm(best)
    assert 0 < wrong.sum() <= (np.linalg.norm(x, axis=1).max() / margin) ** 2
    assert not wrong[-400:].any()
    assert lines[-1]["metrics"]["accuracy"] > 0.99


def test_the_rule_is_sgd_on_the_perceptrons_criterion() -> None:
    model = models.build("mlp", size="perceptron", inputs=16, classes=1)
    batch = batch_for("mlp")
    batch = {k: v[:1] for k, v in batch.items()}
    batch["label"], batch["weight"] = np.array([1], np.int32), np.ones(1, np.float32)

    def loss(params: Any, rows: Any) -> jax.Array:
        value = model.apply({"params": params}, rows).value
        return TASKS["perceptron"].terms(value, rows)["loss"][0].sum()

    grads = flatten(run(jax.grad(loss), model.init(jax.random.key(0))["params"], batch))
    np.testing.assert_allclose(grads["head/kernel"][:, 0], -batch["features"][0], rtol=1e-6)
