"""The process around a verb: its streams, its signals, and the commit of its code."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from errors import LONG, UsageError, quote, shorten

DONE, FAILED, USAGE, SAVED = 0, 1, 2, 4  # exit codes
INTERRUPTED = "interrupted; run the same command again to go on from the last checkpoint"


# Streams


class Terminal:
    """A text stream whose reader may go away, as of `| head`: what is written after that is dropped.

    Another failure, as a full disk's, is raised unless `optional`: what a run prints is not what it leaves.
    """

    def __init__(self, stream: Any, optional: bool = False) -> None:
        self._stream, self._dropped = stream, (OSError if optional else BrokenPipeError)

    def write(self, text: str) -> None:
        """Write, if someone reads."""
        self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Flush, if someone reads."""
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        """Whether a person reads."""
        return self._stream.isatty()

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except self._dropped:
            with suppress(io.UnsupportedOperation):  # from now on the stream ends nowhere, Python's last flush too
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


def open_streams() -> None:
    """Give the process the standard streams that it was started without, and signs in place of those a stream lacks."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # the lowest free number, which no file of ours may take
        setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def reserve_stdout() -> None:
    """Keep for Python alone what is printed: C++ writes to file 1 too, Gloo a line for each group of processes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        own = os.fdopen(os.dup(1), "wb")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        sys.stdout = io.TextIOWrapper(own, sys.stdout.encoding, "replace", line_buffering=sys.stdout.line_buffering)


def print_error(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=Terminal(sys.stderr, optional=True), flush=True)


def exit_now(line: str, code: int) -> None:
    """Print a line and end the process from any thread, whatever the others do."""
    with suppress(Exception):
        sys.stdout.flush()
    print_error(line)
    os._exit(code)


def exit_process(code: int) -> None:
    """End the process; at once where it failed beside others, for whom jax would wait."""
    jax = sys.modules.get("jax")
    if code in (FAILED, USAGE) and jax and jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def error_line(error: BaseException, given: Sequence[str] = ()) -> tuple[str, int]:
    """What is said of an error in one line, values that the user has given shortened, and the exit code."""
    text = str(error)
    for value in given:
        text = text.replace(value, quote(value)) if len(value) > LONG else text
    text = shorten(text) or type(error).__name__
    if isinstance(error, UsageError) or getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return text, USAGE
    return f"{text} [{type(error).__name__}; --debug shows where]", FAILED


def require_cwd() -> None:
    """Raise UsageError where the current folder is no more."""
    try:
        os.getcwd()
    except OSError:
        raise UsageError("the current folder was deleted; change to one that is there") from None


# Signals


@contextmanager
def listen_for_signals() -> Iterator[Callable[[], str | None]]:
    """Hear SIGINT and SIGTERM while the block runs -> a function that gives the last one's name, None before it.

    A thread hears them, for the main thread may be inside a compilation or a collective for minutes. The first signal
    asks for a save; a SIGINT after it ends the process at once.
    """
    heard: list[str] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def hear() -> None:
        while number := os.read(reader, 1)[0]:
            if number == signal.SIGINT and heard:
                exit_now(INTERRUPTED, FAILED)
            if number in (signal.SIGINT, signal.SIGTERM):
                if not heard:
                    print_error(f"{signal.Signals(number).name}: saves after this update; Ctrl-C ends it at once")
                heard.append(signal.Signals(number).name)

    before = {n: signal.signal(n, lambda number, frame: None) for n in (signal.SIGINT, signal.SIGTERM)}
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=hear, daemon=True)
    thread.start()
    try:
        yield lambda: heard[-1] if heard else None
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


# Code


def revision() -> str | None:
    """The commit of this code, `-dirty` behind it where files differ from it; None outside of a clone."""
    if not shutil.which("git"):
        return None
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    state = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, check=False).stdout.strip()
    return (f"{commit}-dirty" if state else commit) or None
