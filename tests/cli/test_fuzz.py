"""Strange knobs, flags and files for seconds; for longer: python -m tests.support.fuzz --seconds=600 --seed=7."""

import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.parametrize(
    ("seconds", "seed"),
    [pytest.param(25, 20, marks=pytest.mark.slow), pytest.param(300, 21, marks=pytest.mark.weekly)],
)
def test_whatever_is_given_gets_one_line(seconds: int, seed: int) -> None:
    """Exit code 0, 1 or 2, no traceback, and one line that names the knob, the flag or the file."""
    command = [sys.executable, "-m", "tests.support.fuzz", f"--seconds={seconds}", f"--seed={seed}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 faults" in done.stdout
