"""A look inside an update: its trace and its program."""

from pathlib import Path

import pytest

import launch
from errors import UsageError
from train.record import profile


def test_a_profile_and_the_programs_are_written(tmp_path: Path) -> None:
    settings = ["--config.train.steps=5", "--config.log.profile=1:3", "--config.log.hlo=true"]
    assert launch.main(["train", f"--workdir={tmp_path}/w", "--config=configs/mlp.py:digits", *settings]) == 0
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))
    assert "stablehlo" in (tmp_path / "w" / "hlo" / "update.stablehlo.txt").read_text()
    assert "HloModule" in (tmp_path / "w" / "hlo" / "update.hlo.txt").read_text()


@pytest.mark.parametrize("text", ["10", "5:5", "a:b", "3:1"])
def test_bad_windows_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FIRST:LAST"):
        profile.window(text)
