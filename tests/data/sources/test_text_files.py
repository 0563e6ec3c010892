"""A user's texts: plain files, and rows by a field, read as what they are or refused by name."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from data import sources
from data.source import Source
from data.sources import multiple_choice
from data.types import ParallelText, Texts
from errors import UsageError

DOCUMENTS = [f'Text {i}, "so" it\u2028goes.\nOn\ttwo\tlines.' for i in range(20)]


def write(folder: Path, ending: str, documents: list[Any], field: str = "text") -> Path:
    file = folder / f"corpus{ending}"
    if ending.lower() in (".jsonl", ".ndjson"):
        file.write_text(
            "\n\n".join(json.dumps({field: d, "meta": {"id": 1}}, ensure_ascii=False) for d in documents), "utf-8"
        )
        return file
    out = io.StringIO()
    rows = csv.writer(out, delimiter="," if ending.lower() == ".csv" else "\t")
    rows.writerows([["id", field], *([i, d] for i, d in enumerate(documents))])
    file.write_text("\ufeff" + out.getvalue(), "utf-8", newline="")
    return file


def documents_of(source: Source) -> list[str]:
    assert isinstance(source, Texts)
    return list(source.documents)


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".csv", ".tsv", ".JSONL", ".CSV"])
def test_rows_are_documents(ending: str, tmp_path: Path) -> None:
    """By the field `text`, or the one that is named; the last tenth is held out."""
    for field in ("text", "body"):
        name = str(write(tmp_path, ending, DOCUMENTS, field))
        train, held = (sources.load(name, s, field=None if field == "text" else field) for s in sources.splits_of(name))
        assert documents_of(train) + documents_of(held) == DOCUMENTS
        assert len(held) == 2
    with pytest.raises(UsageError, match=r"unknown field 'text'; .*legal: .*body.*data\.field"):
        sources.load(name, "train")
    assert documents_of(sources.load(str(tmp_path), "train", field="body")) == documents_of(train)


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_two_fields_of_rows_are_pairs(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"pairs{ending}"
    rows = [(f"one {i}", f"eins {i}") for i in range(5)]
    lines = [json.dumps({"en": a, "de": b}) for a, b in rows] if ending == ".jsonl" else ["en,de", *map(",".join, rows)]
    file.write_text("\n".join(lines))
    for name in (str(file), str(tmp_path)):
        train, held = (sources.load(name, split, field="de:en") for split in sources.splits_of(name, field="de:en"))
        assert isinstance(train, ParallelText)
        assert isinstance(held, ParallelText)
        assert list(zip(train.translations + held.translations, train.texts + held.texts, strict=True)) == rows
        assert len(held) == 2


def test_files_of_rows_may_be_named_by_their_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    assert sources.splits_of(str(tmp_path)) == ("train", "test")
    assert documents_of(sources.load(str(tmp_path), "test")) == ["test"]
    assert len(sources.load(str(tmp_path), "train")) == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": null}', r"line 2: the field 'text' is None, not text"),
        ("a.jsonl", '{"text": 3}', "is 3, not text"),
        ("a.jsonl", '["text"]', "line 1 is .*, not an object"),
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", '{"text": ""}', "is too short"),
        ("a.jsonl", r'{"text": "\ud800"}', "half of a surrogate pair"),
        ("a.jsonl", '{"text": "a", "text": "b"}', "'text. appears twice"),
        ("a.csv", 'text,label\n"it is "free" today",1\n', "a.csv, from line 2 on: "),
        ("a.csv", "text,label\na,1\nb\n", "line 3 has more or fewer cells than the 2"),
        ("a.csv", "text,text\na,b\n", "has a column twice"),
        ("a.csv", "text;label\na;1\n", "line 2: unknown field 'text'; .*legal: text;label"),
        ("a.csv", 'text\nb\n"a\nc\n', "from line 3 on: unexpected end of data"),
        ("a.tsv", 'text\tlabel\n"he said\t1\n\nand went\t0\nat last"\t1\n', "line 5 ends a quoted cell of 3 lines"),
        ("a.json", "[]", r"\.json files are not read as text; write it as \.jsonl"),
        ("a.arrow", "ARROW1", r"\.arrow files are not read as text; write its rows as \.jsonl"),
        ("a.html", "<p>a</p>", r"\.html files are not read as text; take its text out"),
        ("a.TXT.GZ", "\x1f", r"\.gz files are not read as text; unpack it"),
        ("a.md", "a\0b", "NUL"),
        ("a.txt", "", "too short"),
    ],
)
def test_what_is_no_corpus_is_refused_by_name(name: str, content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=says) as refused:
        sources.load(str(tmp_path / name), "train")
    assert "\n" not in str(refused.value)


def test_a_folder_has_texts_of_one_kind(tmp_path: Path) -> None:
    write(tmp_path, ".jsonl", DOCUMENTS)
    (tmp_path / "LICENSE.txt").write_text("as is")
    with pytest.raises(UsageError, match=r"several formats, as corpus\.jsonl and LICENSE\.txt"):
        sources.load(str(tmp_path), "train")
    (tmp_path / "corpus.jsonl").rename(tmp_path / "corpus.arrow")
    (tmp_path / "LICENSE.txt").unlink()
    with pytest.raises(UsageError, match=r"corpus\.arrow: \.arrow files are not read as text"):
        sources.load(str(tmp_path), "train")
    with pytest.raises(UsageError, match=r"no \.txt, \.jsonl"):
        sources.load(str(tmp_path / "corpus.txt"), "train")


def test_hidden_copies_are_passed_over_and_endings_are_in_any_case(tmp_path: Path) -> None:
    for name in ("B.TXT", "a.txt", ".ipynb_checkpoints/a.txt", "._a.txt", "__MACOSX/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(Path(name).name)
    assert documents_of(sources.load(str(tmp_path), "train")) == ["B.TXT", "a.txt"]


def test_a_jsonl_file_is_of_questions_where_its_rows_have_choices(tmp_path: Path) -> None:
    name = str(write(tmp_path, ".jsonl", DOCUMENTS))
    assert multiple_choice.eval_kind(None, name, None) == "perplexity"
    (tmp_path / "corpus.jsonl").write_text('\n{"context": "a", "choices": ["b"], "answer": 0}\n')
    assert multiple_choice.eval_kind(None, name, None) == "multiple_choice"


def test_a_path_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with commas, and from home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "My book, volume 1").write_text("a book " * 30)
    (tmp_path / "two, too").mkdir()
    (tmp_path / "two, too" / "a.txt").write_text("another " * 30)
    assert sources.split_names("My book, volume 1") == ["My book, volume 1"]
    assert sources.split_names("digits, My book, volume 1,two, too ,xor") == [
        "digits",
        "My book, volume 1",
        "two, too",
        "xor",
    ]
    assert sources.split_names("~/My book, volume 1") == ["~/My book, volume 1"]
    for name in ("My book, volume 1", "~/My book, volume 1", "two, too", "~/two, too"):
        assert sources.splits_of(name) == ("train", "validation")
        assert len(sources.load(name, "train")) == 1
    for name in ("", "digits,", ", digits", "a,,b"):
        with pytest.raises(UsageError, match="has an empty name"):
            sources.split_names(name)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize("layout", ["{}{}", "{}/a{}", "{}/b/a{}", "{}-00001-of-00002{}"])
def test_files_and_folders_named_as_splits_are_splits(layout: str, ending: str, tmp_path: Path) -> None:
    """Held-out text is not trained on, however the split is written."""
    for split in ("train", "Valid", "test"):
        path = tmp_path / layout.format(split, ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        documents = [f"{split} {i}" for i in range(12)]
        if ending == ".txt":
            path.write_text("\n".join(documents))
        else:
            write(path.parent, ending, documents).rename(path)
    name = str(tmp_path)
    assert sources.splits_of(name) == ("train", "test", "valid")
    for split in ("train", "valid", "test"):
        assert all(d.lower().startswith(split) for d in documents_of(sources.load(name, split)))


@pytest.mark.parametrize("other", ["notes.txt", "my_test.txt", "more/a.txt", "README.txt"])
def test_a_file_beside_those_of_splits_is_refused(other: str, tmp_path: Path) -> None:
    for name in ("train.txt", "test.txt", other):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a text " * 20)
    with pytest.raises(UsageError, match=r"named as a split, and .*, which is not: name both by train, "):
        sources.load(str(tmp_path), "train")


def test_a_title_that_begins_as_a_split_is_a_document(tmp_path: Path) -> None:
    for name in ("test-of-time.txt", "training a dog.txt", "moby.txt"):
        (tmp_path / name).write_text("a text " * 20)
    assert sources.splits_of(str(tmp_path)) == ("train", "validation")


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.text", ".hidden.md"):
        (tmp_path / name).write_text("a text " * 20)
    (note,) = sources.load(str(tmp_path), "train").notes
    assert note.endswith("skipped, as they are not texts: b.md, c.text")
