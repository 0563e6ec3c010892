"""Built-in data sets, without files or network: xor, halves, moons, multilabel, digits, pydoc_text, adding."""

from collections.abc import Callable
from functools import partial

import numpy as np

from data.fields import Fields, checksum
from data.source import Source
from data.sources.reader import Reader, Request, checked_reader
from data.types import Examples, Texts, examples, texts
from errors import UsageError, quote
from imports import find_package


def _xor(split: str) -> Examples:
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    return examples("xor", split, 2, features=x, label=(x.sum(1) == 1).astype(np.int32))


def _halves(split: str) -> Examples:
    """Points of the unit square, labelled by the side of a line that they lie on; none is within 0.05 of it."""
    rng = np.random.Generator(np.random.Philox(key=[7, int(split == "train")]))
    x = rng.random((2000, 2), np.float32)
    side = (x @ np.array([0.8, 0.6])) - 0.65
    keep = np.abs(side) >= 0.05
    x, side = x[keep][:400], side[keep][:400]
    return examples("halves", split, 2, features=x, label=(side > 0).astype(np.int32))


def _moons(split: str) -> Examples:
    """Two half circles with Gaussian noise of deviation 0.1, in the order of scikit-learn's make_moons, bit for bit.

    Computed here because the import of scikit-learn takes longer than all else before the first update.
    """
    count, seed = (100, 1) if split == "train" else (1000, 2)
    rng = np.random.RandomState(seed)
    order = rng.permutation(count)
    angle = np.linspace(0, np.pi, count // 2)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 1 - np.sin(angle) - 0.5], 1)
    x = np.concatenate([upper, lower])[order] + rng.normal(scale=0.1, size=(count, 2))
    label = (order >= count // 2).astype(np.int32)
    return examples("moons", split, 2, features=x.astype(np.float32), label=label)


def _multilabel(split: str) -> Examples:
    """Bags of words (40 words, five subjects), with any number of subjects a row (scikit-learn's generator)."""
    from sklearn.datasets import make_multilabel_classification

    words, labels = make_multilabel_classification(2000, 40, n_classes=5, n_labels=2, random_state=0)
    rows = (np.arange(len(words)) % 5 == 4) == (split == "test")
    fields = {"features": words[rows].astype(np.float32), "labels": labels[rows].astype(np.float32)}
    return examples("multilabel", split, 5, **fields)


def _digits(split: str) -> Examples:
    """scikit-learn's digits, read from its file, because its import takes longer than all else before an update."""
    rows = np.loadtxt(find_package("sklearn") / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    image = np.rint(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    test = np.arange(len(rows)) % 5 == 4
    chosen = ~test if split == "train" else test
    return examples("digits", split, 10, image=image[chosen], label=rows[chosen, -1].astype(np.int32))


def _pydoc_text(split: str) -> Texts:
    from pydoc_data.topics import topics

    names = sorted(topics)
    validation = {n for i, n in enumerate(names) if i % 5 == 4}
    return texts("pydoc_text", split, (topics[n] for n in names if (n in validation) == (split == "validation")))


def _adding(length: int, split: str) -> Examples:
    """Sequences of `length` numbers in [0, 1), two of them marked, one in each half; the target is their sum.

    Source: Hochreiter, Schmidhuber 1997, experiment 4; as in Le, Jaitly, Hinton 2015, arXiv:1504.00941, section 4.1.
    """
    first, count = (0, 2**20) if split == "train" else (2**20, 2000)

    def make(rows: np.ndarray) -> Fields:
        pairs = [_sum_of_two(length, first + int(row)) for row in rows]
        return {name: np.stack([m[i] for m in pairs]) for i, name in enumerate(("features", "target"))}

    digest = checksum(*make(np.arange(8)).values())
    return Examples(make, count, {"name": f"adding:{length}", "split": split, "count": count, "checksum": digest}, None)


def _sum_of_two(length: int, row: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=[length, row]))
    features = np.zeros((length, 2), np.float32)
    features[:, 0] = rng.random(length, np.float32)
    marked = [rng.integers(length // 2), rng.integers(length // 2, length)]
    features[marked, 1] = 1
    return features, features[marked, 0].sum(keepdims=True)


Entry = tuple[Callable[[str], Source], tuple[str, ...]]  # a function of a split, and its splits

BUILTIN: dict[str, Entry] = {
    "xor": (_xor, ("train", "test")),
    "halves": (_halves, ("train", "test")),
    "moons": (_moons, ("train", "test")),
    "multilabel": (_multilabel, ("train", "test")),
    "digits": (_digits, ("train", "test")),
    "pydoc_text": (
        _pydoc_text,
        ("train", "validation"),
    ),  # differs between Python's patch releases: for demonstrations only
    **{f"adding:{n}": (partial(_adding, n), ("train", "test")) for n in (100, 400)},  # or any other length
}


def find(request: Request) -> Reader | None:
    """The reader of a built-in set. Raises UsageError for `adding:` with an invalid length."""
    found = _find_entry(request.name)
    if found is None:
        return None
    load, splits = found
    return checked_reader(request.name, lambda: splits, load)


def _find_entry(name: str) -> Entry | None:
    kind, _, length = name.partition(":")
    if kind == "adding" and length:
        if not length.isdecimal() or len(length) > 6 or int(length) < 2:
            raise UsageError(f"{quote(name)}: write adding:N, sequences of N numbers, 2 to 999999, as adding:100")
        return partial(_adding, int(length)), ("train", "test")
    return BUILTIN.get(name)
