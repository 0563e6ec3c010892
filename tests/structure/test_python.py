"""docs/python.md: its blocks of code run in order."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from train.evaluate.callbacks import CALLBACKS

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From any folder: a config is found in the clone, a workdir in the folder."""
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 7
    monkeypatch.setitem(CALLBACKS, "worst_window", None)  # which the page sets: gone after the test
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["result"].steps == 3
    assert names["result"].metrics["worst_window"] > names["result"].metrics["loss"]
    assert names["scores"].metrics["loss"] > 0
    assert names["saliency"].any()
    assert names["influence"].any()
    assert set(names["losses"]) == {1, 2}
    assert "step 3/3" in capsys.readouterr().out
