"""What an evaluation leaves to look at: the figures in it, and that a picture shows them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import eval_set
from data.text import tokenizers
from data.types import texts
from train.evaluate.evaluate import Rows
from train.plots import classification

TITLE = "a model of $5 on $x"  # no formula


def pixels(path: Path) -> np.ndarray:
    """A picture as int [Y X 3]."""
    assert path.read_bytes()[:4] == b"\x89PNG"
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def orange(image: np.ndarray) -> int:
    """How many pixels have the colour of a mistake, in any shade."""
    return int((image[..., 0] > image[..., 2] + 30).sum())


def test_counts_are_those_of_a_loop() -> None:
    """Truth by guess; a guess that is no class of the data has a column of its own."""
    labels, guesses = np.array([0, 1, 1, 2, 1], np.int32), np.array([0, 1, 2, 2, 4], np.int32)
    want = np.zeros((5, 5), int)
    for truth, guess in zip(labels, guesses, strict=True):
        want[truth, guess] += 1
    np.testing.assert_array_equal(classification.confusion_matrix(labels, guesses, 3), want)
    np.testing.assert_array_equal(classification.confusion_matrix(labels[:4], guesses[:4], 3), want[:3, :3])


def test_the_worst_are_the_wrong_ones_of_highest_loss() -> None:
    """In falling order; what is right does not count, however dear."""
    labels, guesses = np.array([0, 0, 0, 0]), np.array([1, 0, 1, 1])
    np.testing.assert_array_equal(
        classification.worst_mistakes(labels, guesses, np.array([1.0, 9.0, 3.0, 2.0])), [2, 3, 0]
    )
    many = np.zeros(100, int)
    chosen = classification.worst_mistakes(many, many + 1, np.arange(100.0))
    np.testing.assert_array_equal(chosen, np.arange(99, 99 - classification.MAX_MISTAKES, -1))


@pytest.mark.parametrize("classes", [3, classification.WRITTEN + 1, classification.NAMED + 1])
def test_confusion_shows_mistakes(tmp_path: Path, classes: int) -> None:
    """There is a colour for mistakes, in a picture with mistakes only; names are not read as formulas."""
    labels = np.arange(4 * classes) % classes
    names = [f"${i}$" for i in range(classes)]
    right = pixels(classification.draw_confusion(labels, labels, names, TITLE, tmp_path / "right.png"))
    assert min(right.shape[:2]) > 300
    assert orange(right) == 0
    guesses = np.where(np.arange(len(labels)) < classes, (labels + 1) % classes, labels)
    assert orange(pixels(classification.draw_confusion(labels, guesses, names, TITLE, tmp_path / "wrong.png"))) > 50


def test_confusion_of_a_model_gone_astray(tmp_path: Path) -> None:
    """One that guesses no class, and a class of which there is no example."""
    labels = np.zeros(6, np.int32)
    image = pixels(classification.draw_confusion(labels, labels + 3, ["a", "b", "c"], TITLE, tmp_path / "astray.png"))
    assert orange(image) > 1000


def test_reliability_shows_the_distance_to_confidence(tmp_path: Path) -> None:
    """What is as often right as it is sure has no orange; a model too sure has; NaN, and rows of no weight, pass."""
    confidence = np.repeat([0.25, 0.5, 0.75, 1.0], 100)
    right = np.arange(400) % 100 < 100 * confidence
    loss, ones, truth = np.zeros(400), np.ones(400), np.zeros(400, int)
    fit = Rows(loss, ones, np.where(right, 0, 1), truth, confidence)
    drawn = pixels(classification.draw_reliability(fit, TITLE, tmp_path / "fit.png"))
    far = fit._replace(confidence=np.minimum(confidence + 0.25, 1))
    over = pixels(classification.draw_reliability(far, TITLE, tmp_path / "over.png"))
    assert min(drawn.shape[:2]) > 500
    assert orange(over) > orange(drawn) + 5000  # the legend has some too
    noise = confidence.copy()
    noise[:7] = np.nan
    classification.draw_reliability(fit._replace(confidence=noise, weight=np.zeros(400)), TITLE, tmp_path / "none.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_mistakes_show_the_images_as_they_are(tmp_path: Path, channels: int) -> None:
    """Every image is on the sheet in its own brightness, not stretched to black and white."""
    count, names = 11, ["cat", "a name that is long"]
    images = np.full((count, 4, 4, channels), 77, np.uint8)
    label, loss = np.zeros(count, int), np.linspace(3, 1, count)
    predictions = classification.ClassPredictions(label, label + 1, loss, names)
    sheet = pixels(classification.draw_mistakes(images, predictions, TITLE, tmp_path / "sheet.png"))
    share = (sheet == 77).all(-1).sum() / (sheet.shape[0] * sheet.shape[1])
    assert 0.2 < share < 0.6
    few = classification.ClassPredictions(label[:3], label[:3] + 1, loss[:3], names)
    fewer = pixels(classification.draw_mistakes(images[:3], few, TITLE, tmp_path / "s.png"))
    assert fewer.shape[0] < sheet.shape[0]


def test_large_images_are_shown_small(tmp_path: Path) -> None:
    """On one sheet with others of any size, in their own proportions."""
    small = classification._shrink(np.full((2 * classification.MAX_SIDE, classification.MAX_SIDE, 3), 77, np.uint8))
    assert small.shape == (classification.MAX_SIDE, classification.MAX_SIDE // 2, 3)
    assert (small == 77).all()
    strip = np.full((1, 4000, 1), 77, np.uint8)
    assert classification._shrink(strip).shape == (1, classification.MAX_SIDE, 1)
    tiny = np.full((5, 4, 3), 77, np.uint8)
    assert classification._shrink(tiny) is tiny
    predictions = classification.ClassPredictions(np.zeros(2, int), np.ones(2, int), np.ones(2), ["a", "b"])
    sheet = pixels(classification.draw_mistakes([small, tiny], predictions, TITLE, tmp_path / "sheet.png"))
    assert (sheet == 77).all(-1).sum() > 1000


def test_mistaken_texts_are_written(tmp_path: Path) -> None:
    """Truth, guess, loss and the text, cut where it is long; a class without a name is its number."""
    documents = ["a fine\nfilm", "word " * 500]
    predictions = classification.ClassPredictions(
        np.array([1, 0]), np.array([0, 2]), np.array([2.5, 1.25]), ["bad", "good"]
    )
    path = classification.write_mistakes(documents, predictions, TITLE, tmp_path / "m.txt")
    first, second, third = path.read_text().split("\n\n")
    assert first == TITLE
    assert second == "loss 2.500: good, predicted bad\n    | a fine film"
    assert third.startswith("loss 1.250: bad, predicted 2\n    | word word")
    assert third.rstrip().endswith("…")
    assert 600 < len(third) < 750


def test_passages_are_the_windows_of_highest_loss(tmp_path: Path) -> None:
    """They come in falling order, each with its scored tokens alone; the short end of a document is left out."""
    tokenizer = tokenizers.make("byte", ())
    source = texts("made", "test", ["first line\nsecond line, and the end", "other words in the other text"])
    exam = eval_set.from_texts(source, tokenizer, 12, overlap=4)
    weight = exam.fields["weight"].sum(1)
    passages = [tokenizer.decode(t[w > 0]) for t, w in zip(exam.fields["targets"], exam.fields["weight"], strict=True)]
    assert "".join(passages) == "".join(source.documents)
    assert weight.min() < 3
    loss = np.where(weight < 3, 99.0, np.arange(len(weight)))
    path = classification.write_passages(exam, Rows(loss, weight), tokenizer, TITLE, tmp_path / "p.txt")
    parts = path.read_text().split("\n\n")
    order = [i for i in range(len(weight))[::-1] if weight[i] >= 3]
    assert parts[0] == f"{TITLE}: the {len(order)} windows of highest loss, of {len(weight)}"
    for i, part in zip(order, parts[1:], strict=True):
        head, *lines = part.rstrip("\n").split("\n")
        assert head == f"loss {i:.4f} nats per token over {weight[i]:.0f} tokens, window {i}"
        assert "\n".join(line.removeprefix("    | ") for line in lines) == passages[i]


@pytest.mark.parametrize("outputs", [1, 3])
def test_values_are_drawn(tmp_path: Path, outputs: int) -> None:
    """What is not finite is left out; guesses on the line give another picture than guesses far off."""
    truth = np.linspace(0, 1, 50 * outputs).reshape(50, outputs)
    off = truth[::-1].copy()
    off[0] = np.nan
    off[1] = np.inf
    on_line = pixels(classification.draw_values(truth, truth, TITLE, tmp_path / "on.png"))
    other = pixels(classification.draw_values(truth, off, TITLE, tmp_path / "off.png"))
    assert min(on_line.shape[:2]) > 500
    assert (on_line != other).any(-1).sum() > 1000
