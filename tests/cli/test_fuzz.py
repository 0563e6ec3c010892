"""Strange knobs, flags and files for a minute; for longer: python -m tests.support.fuzz --seconds=600 --seed=7."""

import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_whatever_is_given_gets_one_line() -> None:
    """Exit code 0, 1 or 2, no traceback, and one line that names the knob, the flag or the file."""
    command = [sys.executable, "-m", "tests.support.fuzz", "--seconds=60", "--seed=20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 faults" in done.stdout
