"""Every held-out example is scored once."""

import numpy as np
import pytest

from data import eval_set, sources
from data.images import augment
from data.source import Reading
from data.text import tokenizers
from data.types import Examples, ExampleSource, Texts

BYTE = tokenizers.ByteTokenizer()
EOT = BYTE.vocab - 1


def numbered(count: int, first: int = 0) -> ExampleSource:
    """A corpus whose examples carry their own number."""
    fields = {"label": np.arange(first, first + count, dtype=np.int32)}
    return ExampleSource(Examples(fields, count, {"name": "numbered"}, count))


def texts(*documents: str) -> Texts:
    return Texts(documents, {"name": "made", "split": "train"})


DOCUMENTS = ("first, of 21 bytes: é", "", "x", "the third is longer than two windows of eight")


def gather(exam: eval_set.EvalSet, size: int) -> dict[str, np.ndarray]:
    """All rows of an exam, padding included."""
    parts = list(exam.batches(size, range(size)))
    assert all(len(p["weight"]) == size for p in parts)
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


@pytest.mark.parametrize("size", [1, 2, 5, 9, 16])
@pytest.mark.parametrize("context", [1, 8, 64])
def test_exam_counts_every_token_and_byte_once(size: int, context: int) -> None:
    """By document: its tokens and its end, its UTF-8 bytes; rows of padding weigh nothing, at any batch size."""
    exam = eval_set.from_texts(texts(*DOCUMENTS), BYTE, context)
    got = gather(exam, size)
    n = len(exam)
    assert got["weight"][n:].sum() == got["bytes"][n:].sum() == 0
    for i, document in enumerate(DOCUMENTS):
        rows = np.flatnonzero(exam.clusters == i)
        real = got["weight"][rows] == 1
        assert BYTE.decode(got["targets"][rows][real]) == document
        assert list(got["targets"][rows][real]) == [*BYTE.encode(document), EOT]
        assert list(got["tokens"][rows][real]) == [EOT, *BYTE.encode(document)]
        assert got["bytes"][rows].sum() == len(document.encode())
    assert set(np.unique(got["weight"])) <= {0.0, 1.0}
    assert set(exam.clusters) == {0, 1, 2, 3}


def test_exam_bytes_of_characters() -> None:
    """A character of several bytes counts as many."""
    made = tokenizers.make("char", DOCUMENTS)
    got = gather(eval_set.from_texts(texts(*DOCUMENTS), made, 8), 3)
    assert got["bytes"].sum() == sum(len(d.encode()) for d in DOCUMENTS)
    assert got["weight"].sum() == sum(len(d) + 1 for d in DOCUMENTS)


def test_exam_of_one_document() -> None:
    """All tokens but the first are scored, once each; each window is its own cluster."""
    text = "one document alone, of some length"
    exam = eval_set.from_texts(texts(text), BYTE, 8)
    got = gather(exam, 3)
    assert BYTE.decode(got["targets"][got["weight"] == 1]) == text[1:]
    assert len(set(exam.clusters)) == len(exam) == -(-(len(text) - 1) // 8)


@pytest.mark.parametrize("documents", [(), ("",), ("a",)])
def test_exam_of_nothing_is_empty(documents: tuple[str, ...]) -> None:
    """Where there is nothing to score there is no batch."""
    exam = eval_set.from_texts(texts(*documents), BYTE, 1)
    assert len(exam) == 0
    assert list(exam.batches(4, range(4))) == []


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_exam_holds_each_example_once(size: int) -> None:
    """Examples come in order, each a cluster, the rest padded by weight 0."""
    exam = numbered(10).source.eval_set(Reading())
    got = gather(exam, size)
    np.testing.assert_array_equal(got["label"][got["weight"] == 1], np.arange(10))
    assert got["weight"].sum() == 10
    assert len(set(exam.clusters)) == 10


def test_exam_rows_are_rows_of_the_batch() -> None:
    """A process that owns some rows reads those, padding included."""
    exam = eval_set.from_texts(texts(*DOCUMENTS), BYTE, 8)
    for whole, part in zip(exam.batches(5, range(5)), exam.batches(5, [4, 1]), strict=True):
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][[4, 1]])


def test_exam_prepares_images() -> None:
    """Images of an exam are scaled, never augmented."""
    source = sources.load("digits", "test")
    exam = source.eval_set(Reading(prepare=augment.ImagePipeline(0, (), 0.5, 0.25)))
    got = gather(exam, 100)["image"][: len(source)]
    want = (source.fields["image"].astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(got, want, rtol=1e-6)
