"""Sources of a user's own functions: what they return is read as it is, and what they raise is one line."""

from pathlib import Path

import numpy as np
import pytest

from data import sources
from data.sources import own_function
from data.sources.reader import Request
from data.types import Examples, Texts, examples
from errors import UsageError

HERE = "tests.data.sources.test_own_function"


def points(split: str) -> dict[str, object]:
    """An entry is a list: numpy makes an array of it."""
    rows = {"train": 8, "test": 4}[split]
    return {"features": np.arange(2.0 * rows).reshape(rows, 2), "label": [0, 1] * (rows // 2), "classes": 3}


points.splits = ("train", "test")  # type: ignore[attr-defined]


def lines(split: str) -> list[str]:
    return [f"{split} {i}" for i in range(10)]


def fails(split: str) -> None:
    raise ValueError("first\n  second")


def source(split: str) -> Examples:
    return examples("mine", split, 2, features=np.ones((2, 2), np.float32), label=np.array([0, 1], np.int32))


def test_arrays_texts_and_sources_are_read() -> None:
    train = sources.load(f"{HERE}:points", "train")
    assert isinstance(train, Examples)
    assert (len(train), train.classes, train.absent) == (8, 3, ("2",))
    assert train.__getitems__([3])["label"] == [1]
    texts = sources.load(f"{HERE}:lines", "dev")
    assert isinstance(texts, Texts)
    assert texts.documents[9] == "dev 9"
    own = sources.load(f"{HERE}:source", "train")
    identity = source("train").identity
    assert own.identity == {**identity, "name": f"{HERE}:source"}


def test_splits_have_parts_and_may_be_listed() -> None:
    assert sources.splits_of(f"{HERE}:points") == ("train", "test")
    assert sources.splits_of(f"{HERE}:lines") == ()
    assert sources.load(f"{HERE}:lines", "a[80%:]+b[:1]").documents == ("a 8", "a 9", "b 0")  # type: ignore[union-attr]
    assert len(sources.load(f"{HERE}:points", "train[:50%]+test")) == 8
    assert sources.split_names(f"{HERE}:points,digits") == [f"{HERE}:points", "digits"]
    with pytest.raises(UsageError, match="unknown split of .*points 'tset'; did you mean 'test'"):  # noqa: RUF043
        sources.load(f"{HERE}:points", "tset")


def test_a_file_is_read_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content, and not its folder, is in the identity."""
    code = "def mine(split):\n    return [split, 'text']\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(code)
    a, b = (sources.load(f"{tmp_path}/{folder}/own.py:mine", "train") for folder in ("a", "b"))
    assert a.identity == b.identity
    (tmp_path / "b" / "own.py").write_text(code.replace("text", "other"))
    assert sources.load(f"{tmp_path}/b/own.py:mine", "train").identity["checksum"] != a.identity["checksum"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.load("~/a/own.py:mine", "train").identity == a.identity


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def f(split)\n", r"own\.py line 1: expected ':'"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        ("x = 1\n\n1 / 0", r"own\.py line 3: ZeroDivisionError"),
        ("def f(split):\n    return 1 / 0", r"own\.py line 2: ZeroDivisionError"),
        ("def f(split):\n    return {}[0]", r"own\.py line 2: KeyError: 0"),
        ("def f(split):\n    return {}[split]", r"own\.py:f has no split 'train'"),
        ("def f():\n    return []", "TypeError: .*takes 0 positional arguments"),
        ("import sys\ndef f(split):\n    sys.exit(3)", r"own\.py line 3: SystemExit: 3"),
        ("f = 3\ndef g(split): ...", r"unknown function or class of .*own\.py 'f'; .*legal: g"),
        (
            "def f(split): return None",
            r"split 'train' is None; legal: a dict of arrays by field, a list of texts, or a",
        ),
        ("def f(split): return []", "has no texts"),
        (
            "def f(split): return {'features': [[1.0], [1, 2]], 'label': [0, 1]}",
            "features is no array: ",
        ),
        ("def f(split): return {'features': [[1.0]], 'label': [0], 'classes': '3'}", "classes is '3', not a number"),
        ("def f(split): return {'features': [[1.0]], 'label': [0], 'classes': True}", "classes is True, not a number"),
        (
            "def f(split): return {'features': [[1.0]], 'labels': [[0, 1]], 'classes': 3}",
            "labels has 2 columns; there are 3 classes",
        ),
        ("def f(split): return {'features': [[1.0]], 'target': [1.0], 'classes': 3}", "3 classes but no label"),
        ("def f(split): raise ValueError('one\\ntwo')", r"own\.py line 1: ValueError: one two"),
        ("def f(split): ...\nf.splits = 'train'", r"own\.py:f\.splits is 'train', not a tuple of names"),
        ("def f(split): return ['a', 3]", "item 1 of its list is 3, not a text"),
        ("def f(split): return {'feature': [[1.0]], 'label': [0]}", "unknown array 'feature'; did you mean 'features'"),
        (
            "def f(split): return {'features': [[1.0]], 'label': [5], 'classes': 3}",
            "label has the class 5; there",
        ),
        ("from data.types import Texts\ndef f(split): return Texts(('a',), {})", "no checksum in its identity"),
        (
            "import numpy as np\nfrom data.types import examples\n"
            "def f(split): return examples('x', split, 2, features=np.ones((2, 3)), label=np.array([0, 5]))",
            "labels from 0 to 5, and classes = 2",
        ),
    ],
)
def test_what_a_function_does_wrong_is_one_line(code: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(UsageError, match=says) as refused:
        sources.load(f"{tmp_path}/own.py:f", "train")
    assert "\n" not in str(refused.value)


def test_a_sum_of_splits_of_different_rows_is_refused(tmp_path: Path) -> None:
    """No row of it is lost."""
    code = "def f(split): return {'features': [[1.0]], 'label': [0]} if split == 'train' else ['a text', 'another']"
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(UsageError, match="'train' has examples with features, label and 'test' has text"):
        sources.load(f"{tmp_path}/own.py:f", "train+test")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("examples.no_such_file:f", "data.name' = 'examples.no_such_file:f': No module named"),
        ("no/such/file.py:f", "there is no file 'no/such/file.py'"),
        (f"{HERE}:pionts", "did you mean 'points'"),
        (f"{HERE}:fails", r"sources/test_own_function\.py line \d+: ValueError: first second$"),
        ("adding:many", "write adding:N"),
        ("a" * 300, "cannot be opened: File name too long"),
    ],
)
def test_no_such_function_is_refused(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        sources.load(name, "train")


def test_a_name_of_tfds_with_a_colon_is_none_of_python() -> None:
    """A version, or a namespace."""
    for name in ("mnist:experimental_latest", "mnist:3.0.1", "huggingface:mnist"):
        assert own_function.find(Request(name)) is None


def test_a_field_and_a_path_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes:mine").write_text("a text " * 20)
    assert isinstance(sources.load("notes:mine", "train"), Texts)
    with pytest.raises(UsageError, match=r"data\.field.*unset it"):
        sources.load(f"{HERE}:points", "train", field="text")
