"""The process that runs a verb: its streams, its memory and its signals."""

import ctypes
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from errors import LONG, UsageError, quote, shorten

DONE, FAILED, USAGE, SAVED = 0, 1, 2, 4  # exit codes
INTERRUPTED = "interrupted; run the same command again to continue from the newest checkpoint"


# Streams


class Terminal:
    """A text stream whose reader may close it, as `| head` does: later output is dropped.

    Other errors, as of a full disk, are raised unless `optional`: a run does not depend on what it prints.
    """

    def __init__(self, stream: Any, optional: bool = False) -> None:
        self._stream, self._dropped = stream, (OSError if optional else BrokenPipeError)

    def write(self, text: str) -> None:
        """Write, unless the reader has closed the stream."""
        self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Flush, unless the reader has closed the stream."""
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except self._dropped:
            with suppress(io.UnsupportedOperation):  # redirect to /dev/null, also for Python's flush at exit
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


def open_streams() -> None:
    """Open standard streams that are closed, and let streams replace characters that they cannot encode."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which must not go to another file
        setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def reserve_stdout() -> None:
    """Reserve stdout for Python: C++ code writes to file descriptor 1 too, Gloo a line for each process group."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        own = os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        sys.stdout = io.TextIOWrapper(own, sys.stdout.encoding, "replace", line_buffering=sys.stdout.line_buffering)


def print_text(text: str) -> None:
    """Print a text to stdout."""
    print(text, file=Terminal(sys.stdout), flush=True)


def print_error(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=Terminal(sys.stderr, optional=True), flush=True)


def exit_now(line: str, code: int) -> None:
    """Print a line and end the process at once, from any thread."""
    with suppress(Exception):
        sys.stdout.flush()
    print_error(line)
    os._exit(code)


def exit_process(code: int) -> None:
    """End the process; without jax's shutdown, which would wait for other processes, if this one failed."""
    jax = sys.modules.get("jax")
    if code in (FAILED, USAGE) and jax and jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def error_line(error: BaseException, user_values: Sequence[str] = ()) -> tuple[str, int]:
    """The message of an error on one line, with long values of the user shortened, and the exit code."""
    text = str(error)
    for value in user_values:
        text = text.replace(value, quote(value)) if len(value) > LONG else text
    text = shorten(text) or type(error).__name__
    if isinstance(error, UsageError) or getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return text, USAGE
    return f"{text} [{type(error).__name__}; --debug shows where]", FAILED


def require_cwd() -> None:
    """Raise UsageError if the current folder no longer exists."""
    try:
        os.getcwd()
    except OSError:
        raise UsageError("the current folder was deleted; change to an existing one") from None


# Memory

# By default glibc's malloc maps each large temporary of a program and returns it to the system after use: a page fault
# for each 4 KiB, in each update. These keep up to 2 GiB, and ask for pages of 2 MiB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt, of glibc's malloc.h
KEPT, MAPPED = 2**31 - 1, 2**30  # bytes: at the heap's end that are kept; from which an array is mapped
TUNABLES = f"glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold={KEPT}:glibc.malloc.mmap_threshold={MAPPED}"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def keep_memory(environ: Mapping[str, str]) -> None:
    """Let glibc's malloc keep freed memory. Settings of the environment prevail; on other systems it does nothing."""
    if _configures_malloc(environ):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT)
        if not mallopt(M_MMAP_THRESHOLD, MAPPED):
            mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc before 2.35 takes


def restart_with_huge_pages(environ: Mapping[str, str]) -> None:
    """Execute the process's command again with TUNABLES, which glibc reads at the start of a process alone.

    Only where the system grants huge pages on request. Does nothing if the environment configures malloc, as after a
    restart, and under a debugger.
    """
    if more := huge_page_environ(environ):
        with suppress(OSError):
            os.execve(sys.executable, sys.orig_argv, {**environ, **more})


def huge_page_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that uses huge pages; {} if it cannot, or need not."""
    with suppress(OSError, ValueError, TypeError):
        version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
        new = tuple(map(int, version.split("."))) >= (2, 35)
        if new and "[madvise]" in HUGE_PAGES.read_text() and not _configures_malloc(environ) and not sys.gettrace():
            return {"GLIBC_TUNABLES": ":".join(filter(None, (environ.get("GLIBC_TUNABLES"), TUNABLES)))}
    return {}


def _configures_malloc(environ: Mapping[str, str]) -> bool:
    return "glibc.malloc" in environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in environ)


# Signals


@contextmanager
def listen_for_signals() -> Iterator[Callable[[], str | None]]:
    """Handle SIGINT and SIGTERM in the block -> a function that returns the name of the last signal, None before it.

    A thread receives the signals, as the main thread may be in a compilation or a collective for minutes. The first
    signal requests a save; a SIGINT after it ends the process at once.
    """
    received: list[str] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1)[0]:
            if number == signal.SIGINT and received:
                exit_now(INTERRUPTED, FAILED)
            if number in (signal.SIGINT, signal.SIGTERM):
                if not received:
                    print_error(f"{signal.Signals(number).name}: saves after this update; Ctrl-C stops at once")
                received.append(signal.Signals(number).name)

    before = {n: signal.signal(n, lambda number, frame: None) for n in (signal.SIGINT, signal.SIGTERM)}
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield lambda: received[-1] if received else None
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
