"""Sources of every kind are read by a run; what does not fit the model is refused in one line."""

from pathlib import Path

import numpy as np
import pytest

import launch

BERT = "--config=configs/bert.py:sst2 --config.init_from=None --config.init_fresh=None --config.model.size=None".split()
SMALL = [*BERT, *(f"--config.model.{k}" for k in ("width=16", "heads=2", "depth=1", "hidden=32", "context=32"))]


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    rows = {"tokens": np.arange(80).reshape(8, 10) % 50, "label": np.arange(8) % 2}
    np.savez(tmp_path / "train.npz", **rows)
    np.savez(tmp_path / "test.npz", **rows)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["model.vocab=20"], "model.vocab = 20 is too small for the data's 50 tokens"),
        (["model.context=8"], "model.context = 8 is too small for the data's rows of 10 tokens"),
        (["loss=next_token"], "has examples with label, mask, tokens, for the losses softmax"),
        (["data.field=label"], "has no text fields to choose from"),
        (["eval.split=tset"], "did you mean 'test'"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(args: list[str], says: str, tokens: str, tmp_path, capsys) -> None:
    words = [f"--config.{arg}" for arg in (f"data.name={tokens}", "data.max_length=None", "eval.split=test", *args)]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *SMALL, *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_splits_of_an_own_function_have_the_classes_of_training(tmp_path: Path, capsys) -> None:
    """Labels beyond them would be scored as if they were others."""
    file = tmp_path / "own.py"
    file.write_text("def f(s): return {'features': [[1.0]] * 3, 'label': [0, 1, 2 if s == 'test' else 1]}")
    args = ["--config=configs/mlp.py:digits", "--config.model.inputs=1", "--config.model.classes=2"]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *args, f"--config.data.name={file}:f"]) == 2
    assert "splits 'test' and 'train' have different classes" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["{'features': [[1.0, 2.0]], 'label': [0]}", "['a text', 'b']"])
def test_splits_of_an_own_function_have_the_rows_of_training(other: str, tmp_path: Path, capsys) -> None:
    """Other fields, or other sizes, are refused before the first update, and no workdir is made."""
    file = tmp_path / "own.py"
    file.write_text(f"def f(s): return {other} if s == 'test' else {{'features': [[1.0]] * 2, 'label': [0, 1]}}")
    args = ["--config=configs/mlp.py:digits", "--config.model.inputs=1", "--config.model.classes=2"]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *args, f"--config.data.name={file}:f"]) == 2
    assert "'train' has examples with features, label, 'test' has " in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
