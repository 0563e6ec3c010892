"""Several labels per row: average precision and F1 beside scikit-learn's, their standard errors beside a jackknife."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

from data.fields import check_labels
from data.source import Reading
from data.sources import tfds
from data.text.tokenizers import make
from data.types import Texts
from errors import UsageError
from train.evaluate import multilabel
from train.evaluate.evaluate import Rows, Scores
from train.tasks import get_task


def draw(rows: int = 60, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels that go with them somewhat."""
    rng = np.random.default_rng(3)
    label = rng.random((rows, classes)) < np.array([0.5, 0.2, 0.05])
    return np.round(np.clip(rng.normal(0.4 + 0.3 * label, 0.3), 0, 1), 1), label.astype(np.float32)


def test_the_loss_is_binary_cross_entropy() -> None:
    """In float64 by hand; accuracy wants the whole row right, f1 counts over all rows and classes."""
    value = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 5
    labels = (np.random.default_rng(1).random((6, 4)) < 0.4).astype(np.float32)
    weight = np.array([1, 1, 1, 1, 1, 0], np.float32)
    terms = get_task("sigmoid").terms(
        jnp.asarray(value), {"labels": jnp.asarray(labels), "weight": jnp.asarray(weight)}
    )
    p = 1 / (1 + np.exp(-value.astype(np.float64)))
    nats = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(1)
    np.testing.assert_allclose(terms["loss"][0], nats * weight, rtol=1e-5)
    guess = value >= 0
    np.testing.assert_array_equal(terms["accuracy"][0], (guess == labels).all(1) * weight)
    want = reference.f1_score(labels[:5], guess[:5], average="micro")
    assert float(jnp.sum(terms["f1"][0]) / jnp.sum(terms["f1"][1])) == pytest.approx(want)


def test_a_large_score_overflows_nothing() -> None:
    batch = {"labels": jnp.array([[0.0, 1.0]]), "weight": jnp.ones(1)}
    assert float(get_task("sigmoid").terms(jnp.array([[-1e4, 1e4]]), batch)["loss"][0][0]) == 0
    assert float(get_task("sigmoid").terms(jnp.array([[1e4, -1e4]]), batch)["loss"][0][0]) == pytest.approx(1e4)


def test_average_precision_is_scikit_learns_with_ties_too() -> None:
    score, label = draw()
    for k in range(3):
        value, influence = multilabel.average_precision(score[:, k], label[:, k])
        assert value == pytest.approx(reference.average_precision_score(label[:, k], score[:, k]))
        assert influence.sum() == pytest.approx(0, abs=1e-12)  # counting every row twice changes nothing
    assert math.isnan(multilabel.average_precision(score[:, 0], np.zeros(60))[0])


def test_an_influence_is_the_derivative_by_a_rows_count() -> None:
    """A row counted 1 + h times, as so many copies: 1,000 of every row and one more of this."""
    score, label = draw(20)
    value, influence = multilabel.average_precision(score[:, 1], label[:, 1])
    for row in range(20):
        times = np.full(20, 1000) + (np.arange(20) == row)
        more = reference.average_precision_score(label[:, 1], score[:, 1], sample_weight=times)
        assert (more - value) * 1000 == pytest.approx(influence[row], abs=2e-3)


def scores(guess: np.ndarray, truth: np.ndarray) -> Scores:
    rows = Rows(np.zeros(len(guess)), np.ones(len(guess)), guess, truth)
    start = Scores({"loss": 1.0}, {"loss": 0.1}, len(guess), len(guess), "", rows)
    return multilabel.with_precision(start, ("a", "b", "c"), np.arange(len(guess)))


def test_means_are_over_the_classes_that_occur_and_errors_are_a_jackknifes() -> None:
    guess, truth = draw(200)
    got, positive = scores(guess, truth), np.flatnonzero(truth.any(0))
    want = {
        "map": np.mean([reference.average_precision_score(truth[:, k], guess[:, k]) for k in positive]),
        "f1_macro": np.mean([reference.f1_score(truth[:, k], guess[:, k] >= 0.5) for k in positive]),
    }
    for name, value in want.items():
        assert got.metrics[name] == pytest.approx(value)
        left = np.array([scores(np.delete(guess, i, 0), np.delete(truth, i, 0)).metrics[name] for i in range(200)])
        jackknife = math.sqrt(199 / 200 * np.square(left - left.mean()).sum())
        assert got.stderr[name] == pytest.approx(jackknife, rel=0.1)
    assert got.metrics["loss"] == 1.0
    lone = scores(guess, truth * [1, 1, 0])
    assert "average_precision/c" not in lone.metrics
    assert lone.metrics["map"] == pytest.approx(
        np.mean([reference.average_precision_score(truth[:, k], guess[:, k]) for k in (0, 1)])
    )


def test_predictions_that_are_not_numbers_have_no_precision() -> None:
    guess, truth = draw()
    guess[3, 0] = np.nan
    assert math.isnan(scores(guess, truth).metrics["map"])


def feature(kind: str, **more: object) -> object:
    return type(kind, (), {})() if not more else type(kind, (), more)()


def test_a_prepared_sets_sequences_of_classes_are_labels() -> None:
    """Rows of TFDS have lists of class numbers, perhaps none; one class a row goes before them; -1 is kept secret."""
    one = feature("ClassLabel", num_classes=3, names=["x", "y", "z"])
    several = feature("Sequence", feature=one)
    label = tfds._find_labels({"text": feature("Text"), "tags": several})
    assert label is not None
    assert (label.field, label.classes, label.names) == ("labels", 3, ("x", "y", "z"))
    rows = [{"tags": np.array([2, 0])}, {"tags": np.array([], np.int64)}]
    np.testing.assert_array_equal(label.read(rows), [[1, 0, 1], [0, 0, 0]])
    with pytest.raises(UsageError, match="no public labels"):
        check_labels(label.read([{"tags": [-1]}]), {"name": "set", "split": "test"})
    assert tfds._find_labels({"kind": one, "tags": several}) == tfds.LabelFeature("kind", False, 3, ("x", "y", "z"))
    assert tfds._find_labels({"kind": one, "sort": one}) is None  # which of them? TFDS has them in any order


def test_texts_with_several_labels_become_examples() -> None:
    labels = np.array([[1, 0], [1, 1]], np.float32)
    texts = Texts(("ab", "c"), {"name": "t", "split": "train"}, labels, 2)
    assert texts.as_examples(Reading(make("byte", ()), 8)).shapes["labels"] == (2,)
