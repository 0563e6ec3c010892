"""Files and rows that cannot be read are all named: by the doctor, and of small sets before a run."""

from pathlib import Path

import numpy as np
import pytest

from data import sources
from data.sources import intact
from data.types import Examples
from errors import UsageError
from tests.support.image_folders import classes, save
from tests.support.runs import runtime
from train.verbs import doctor


def odd(n: int) -> int:
    if n % 2:
        raise UsageError(f"{n} is odd")
    return n


def test_refusals_come_in_order_and_are_all() -> None:
    heard: list[tuple[str, int, int]] = []
    want = [f"{n} is odd" for n in range(1, 200, 2)]
    assert intact.read_errors(odd, range(200), "counting", lambda *how: heard.append(how)) == want
    assert heard == [("counting", done, 200) for done in (0, 64, 128, 192, 200)]
    left = iter((True, False))
    assert intact.read_errors(odd, range(200), go_on=lambda: next(left)) == want[:32]


def test_rows_that_are_held_are_not_read_again() -> None:
    assert intact.row_errors(Examples({"label": np.zeros(3, np.int32)}, 3, {}, 2)) == []


def spoilt(root: Path) -> Path:
    """Class folders with two files whose end is missing."""
    for name in ("cat/03.png", "eel/01.png"):
        path = classes(root, 5) / name if name.startswith("cat") else root / name
        path.write_bytes(path.read_bytes()[:50])
    return root


def test_small_sets_are_read_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of more examples, and what is left when the time is over, as the run comes to them."""
    source = sources.load(str(spoilt(tmp_path)), "train")
    with pytest.raises(UsageError, match=r"cat/03.png cannot .*; 1 more of its files: launch.py doctor --data"):
        intact.check_readable([source], lambda: True)
    intact.check_readable([source], lambda: False)
    monkeypatch.setattr(intact, "CHECK_UP_TO", len(source) - 1)
    intact.check_readable([source], lambda: True)


def said(name: str | Path, field: str | None = None) -> list[str]:
    """What the doctor says of a data set."""
    here = runtime()
    well = doctor.check_data(here, str(name), field)
    lines = here.stdout.getvalue().splitlines()
    assert well == (lines[-1] == "no problems found")
    return lines


def test_the_doctor_names_all_files_that_cannot_be_read(tmp_path: Path) -> None:
    """By their pixels, and where a header is damaged, which ends the set, of all files too."""
    root = spoilt(tmp_path / "pets")
    lines = said(root)
    assert lines[:2] == ["WRONG  train: 2 of 12 cannot be read", "ok     test: 3 read"]
    assert [line.partition(" cannot")[0] for line in lines[2:4]] == [
        f"WRONG  {root}/{n}" for n in ("cat/03.png", "eel/01.png")
    ]
    assert lines[-1] == "2 problem(s) found"
    (root / "dog" / "x.png").write_bytes(b"no image")
    named = [line.split()[1] for line in said(root) if line.startswith("WRONG")]
    assert named == [f"{root}/{n}" for n in ("cat/03.png", "dog/x.png", "eel/01.png")]
    for name in named:
        Path(name).unlink()
    save(root / "cover.png")
    assert said(root)[1] == "       cover.png: in no class folder, skipped"


def test_the_doctor_reads_any_set(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 40)
    assert said(tmp_path)[:2] == ["ok     train: 1 read", "ok     validation: 1 read"]
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert "b.txt is not UTF-8 text" in said(tmp_path)[0]
    assert said("digits")[:2] == ["ok     train: 1,438 read", "ok     test: 359 read"]


def test_the_doctor_reads_what_runs_and_eval_read(tmp_path: Path) -> None:
    """Several sets, rows by a field, questions."""
    assert said("halves, xor")[0::2][:2] == [said("halves")[0], said("xor")[0]]
    (tmp_path / "a.jsonl").write_text('{"content": "a text of some words"}\n' * 20)
    assert "unknown field 'text'" in said(tmp_path / "a.jsonl")[0]
    assert said(tmp_path / "a.jsonl", "content")[0] == "ok     train: 18 read"
    (tmp_path / "b.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "answer": 1}\n')
    assert said(tmp_path / "b.jsonl")[0] == "ok     test: 1 questions read"
    (tmp_path / "b.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "answer": 2}\n')
    assert "line 1 is not a question" in said(tmp_path / "b.jsonl")[0]
