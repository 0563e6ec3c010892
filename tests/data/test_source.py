"""The Protocol of sources: what every type of rows offers, and a type of one's own, which a run takes as it is."""

from pathlib import Path

import numpy as np
import pytest

import launch
from data import sources
from data.images.detection import AnnotatedImage, BoxAnnotations, make_detection_dataset
from data.source import Reading, Source
from data.text import tokenizers
from data.types import ParallelText, Texts, examples, texts

BYTE = tokenizers.make("byte", ())
DOCUMENTS = tuple(f"document {i}" for i in range(6))


def boxes() -> Source:
    none = np.zeros(1, bool)
    images = [
        AnnotatedImage(f"{i}.png", (8, 8), BoxAnnotations(np.array([[0, 0, 4, 4.0]]), np.array([0]), none, none))
        for i in range(6)
    ]
    picture = np.zeros((8, 8, 3), np.uint8)
    identity = {"name": "boxes", "split": "train", "count": 6, "checksum": "0"}
    return make_detection_dataset("boxes", "train", images, ("cat", "dog"), lambda i: picture + i, identity)


def labelled() -> Texts:
    identity = {"name": "moods", "split": "train", "count": 6, "checksum": "0"}
    return Texts(DOCUMENTS, identity, np.arange(6, dtype=np.int32) % 2, 2, ("happy", "sad"))


SOURCES: dict[str, tuple[Source, str, str]] = {  # -> a source, its field of targets, its description
    "features": (
        examples("points", "train", 2, features=np.ones((6, 3), np.float32), label=np.arange(6) % 2),
        *("label", "6 examples"),
    ),
    "images": (
        examples("photos", "train", 2, image=np.zeros((6, 4, 4, 1), np.uint8), label=np.arange(6) % 2),
        *("label", "6 examples"),
    ),
    "boxes": (boxes(), "boxes", "6 examples"),
    "text": (labelled(), "label", "6 documents"),
    "pairs": (
        ParallelText(DOCUMENTS, ("eins", "", *DOCUMENTS[2:]), ("en", "de"), {"name": "pairs", "split": "train"}),
        *("source", "6 pairs, 1 of them too long or empty"),
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_type_of_rows_offers_the_same(kind: str) -> None:
    source, target, description = SOURCES[kind]
    assert isinstance(source, Source)
    found = source.row_type()
    assert found.kind == kind
    assert target in found.target_fields
    assert bool(found.shapes) == (kind not in ("text", "pairs"))
    reading = Reading(BYTE, 32)
    rows = source.rows(reading)
    assert source.describe(rows) == description
    batch = rows.items(np.zeros(2, np.int64), np.array([3, 1]))
    assert len(batch[target]) == len(batch["weight"]) == 2
    assert len(source.eval_set(reading)) == 6
    assert source.first_row(lambda fields, step, rows: fields).row_type() == found
    few = source.limited(2)
    assert (len(few), type(few)) == (2, type(source))
    whole, part = (next(iter(s.eval_set(reading).batches(2, range(2)))) for s in (source, few))
    np.testing.assert_array_equal(part[target][0], whole[target][0])


def test_windows_are_described_by_their_tokens() -> None:
    source = texts("book", "train", DOCUMENTS)
    rows = source.rows(Reading(BYTE, 8, windows=True))
    assert source.describe(rows) == f"6 documents, {8 * len(rows)} tokens"
    in_order = source.rows(Reading(BYTE, 8, windows=True, streams=2))
    assert (rows.shuffled, in_order.shuffled) == (True, False)


OWN = """
from dataclasses import dataclass
import numpy as np
from data.eval_set import EvalSet
from data.source import RowType
from data.types import ExampleSource

@dataclass(frozen=True)
class Squares:  # numbers, computed when they are read
    count: int
    identity: dict
    classes, names, absent, notes, paths, documents = 2, None, (), (), (), ()

    def __len__(self): return self.count
    def __getitems__(self, rows):
        x = np.asarray(rows, np.float32)[:, None] % 7
        return {"features": x, "label": (x[:, 0] > 3).astype(np.int32)}
    def row_type(self):
        return RowType("features", "squares", frozenset({"label"}), {"features": (1,), "label": ()})
    def describe(self, rows): return f"{len(self)} squares"
    def rows(self, reading): return ExampleSource(self)
    def eval_set(self, reading): return EvalSet(self, np.arange(len(self)), reading.prepare)
    def limited(self, count): return Squares(count, self.identity)
    def first_row(self, prepare): return self
    def part_order(self): return np.arange(len(self))
    def gather(self, parts, identity): return Squares(sum(len(rows) for _, rows in parts), identity)

def squares(split):
    count = {"train": 40, "test": 8}[split]
    return Squares(count, {"name": "squares", "split": split, "count": count, "checksum": "0"})
"""


def test_a_run_takes_a_type_of_rows_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name = f"{tmp_path}/own.py:squares"
    assert len(sources.load(name, "train[:25%]")) == 10
    args = f"--config.data.name={name} --config.model.inputs=1 --config.model.classes=2 --config.train.steps=2".split()
    assert launch.main(["train", f"--workdir={tmp_path}/w", "--config=configs/mlp.py:digits", *args]) == launch.DONE
    assert "data    squares (40 squares), split train; held out: test (8)" in capsys.readouterr().out
