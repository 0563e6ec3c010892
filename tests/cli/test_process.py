"""The process around a verb: its streams and its signals."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from cli import process
from errors import UsageError
from tests.support import ROOT


class Broken(io.StringIO):
    """A stream that fails."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.error = OSError(number, os.strerror(number))

    def write(self, text: str) -> int:
        raise self.error


def page_faults(environ: dict[str, str]) -> int:
    """Page faults of four temporaries of 64 MiB, after a first one, in a process that keeps its memory."""
    code = f"""
import resource
import numpy as np
from cli import process
process.keep_memory({environ})
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="mallopt is glibc's")
def test_freed_memory_is_kept_unless_the_environment_says_how() -> None:
    assert page_faults({}) < 50
    assert page_faults({"MALLOC_ARENA_MAX": "2"}) > 100


RESTART = """
import os, sys
from cli import process
print("started", flush=True)
process.restart_with_huge_pages(os.environ)
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.utf8_mode)
"""


@pytest.mark.parametrize("own", [None, "glibc.malloc.arena_max=2", "glibc.rtld.nns=4"])
def test_a_restart_keeps_the_command_and_happens_once(own: str | None, tmp_path: Path) -> None:
    """Tunables of malloc that the user sets prevail; others stay."""
    (tmp_path / "script.py").write_text(RESTART)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    environ |= {"PYTHONPATH": str(ROOT)} | ({"GLIBC_TUNABLES": own} if own else {})
    added = process.huge_page_environ(environ)
    command = [sys.executable, "-X", "utf8=1", str(tmp_path / "script.py"), "a b", "--c=d"]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    *starts, last = run.stdout.splitlines()
    assert len(starts) == 1 + bool(added)
    assert last == f"{added.get('GLIBC_TUNABLES', own)} ['a b', '--c=d'] 1"
    assert not (own and "malloc" in own and added)
    assert own is None or own in last


def test_a_reader_that_went_away_is_passed_over() -> None:
    process.Terminal(Broken(errno.EPIPE)).write("text")


def test_a_full_disk_is_no_reader_that_went_away() -> None:
    """It matters to a verb whose work is what it prints, not to a run."""
    with pytest.raises(OSError, match="No space"):
        process.Terminal(Broken(errno.ENOSPC)).write("text")
    process.Terminal(Broken(errno.ENOSPC), optional=True).write("text")


@pytest.mark.parametrize("streams", ["| true", ">&-", "2>&- >&-", "<&- >&- 2>&-"])
def test_help_without_streams(streams: str) -> None:
    """The exit code is the verb's, and nothing is complained of."""
    command = f"{sys.executable} launch.py train --help {streams}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_deleted_folder_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert launch.main(["doctor"]) == launch.USAGE
    assert capsys.readouterr().err == "launch.py doctor: the current folder was deleted; change to an existing one\n"
    with pytest.raises(UsageError):
        process.require_cwd()


def until(heard) -> None:
    for _ in range(200):
        if heard():
            return
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_said(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """Once; the handlers that were there come back."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with process.listen_for_signals() as heard:
        assert heard() is None
        os.kill(os.getpid(), number)
        until(heard)
        assert heard() == number.name
    assert capsys.readouterr().err.startswith(f"{number.name}: saves after this update")
    assert {n: signal.getsignal(n) for n in before} == before


INSIDE = """
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})
from cli import process
with process.listen_for_signals() as heard:
    print("ready", flush=True)
    lock = threading.Lock(); lock.acquire()
    while True:  # where an exception is lost
        try:
            lock.acquire(timeout=60)
        except BaseException:
            pass
"""


def test_a_second_ctrl_c_ends_the_process_wherever_it_is() -> None:
    """Also where code of others swallows every exception, as jax's callbacks do."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", INSIDE.format(root=str(ROOT))], **pipes) as running:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        assert running.stderr.readline().startswith("SIGINT: saves after this update")
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == launch.FAILED
        assert running.stderr.read() == f"{process.INTERRUPTED}\n"
