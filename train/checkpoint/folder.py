"""The folder of a run's checkpoints: its path, its steps, and whether it is writable."""

import os
import re

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from documents import require_regular_file
from errors import UsageError

UNUSABLE = re.compile(r"[][*?\\\0\ud800-\udfff]")  # glob characters to Orbax, separators or invalid to TensorStore
LOCK = "lock"  # the file of a workdir that a run locks while it writes there
STEP = re.compile(r"0|[1-9][0-9]*")  # the name of a checkpoint's folder


def checkpoint_dir(workdir: str) -> epath.Path:
    """The folder of a workdir's checkpoints, absolute."""
    path = epath.Path(workdir)
    return (path if "://" in workdir else path.absolute()) / "checkpoints"


def steps(workdir: str) -> list[int]:
    """The checkpoints of a workdir, oldest first, including corrupt ones. Other names are skipped."""
    folder = checkpoint_dir(workdir)
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if STEP.fullmatch(path.name) and path.is_dir())


def prepare(workdir: str) -> None:
    """Create a workdir, and check that it, its checkpoint folder and its lock file are writable.

    Raises UsageError for a path that cannot hold checkpoints, and for a folder that cannot be written, with the reason.
    """
    folder = checkpoint_dir(workdir)
    wrong = UNUSABLE.search(str(folder))
    if wrong:
        raise UsageError(f"--workdir={workdir}: a path with {wrong[0]!r} cannot hold checkpoints; take another name")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for place in (folder.parent, folder):
            if place.exists():
                check_writable(place)
        if "://" not in workdir:
            lock = folder.parent / LOCK
            if lock.exists():
                require_regular_file(lock)
            open(lock, "a").close()
    except Exception as error:  # every kind of storage raises its own type
        raise UsageError(f"--workdir={workdir} cannot hold checkpoints: {reason(error)}") from None


def check_writable(folder: epath.Path) -> None:
    """Write a small file into a folder and remove it. Raises the storage's own errors."""
    trial = folder / f"trial-{jax.process_index()}"
    trial.write_bytes(bytes(4096))
    trial.unlink()


def reason(error: BaseException) -> str:
    """One line that says why storage failed: the operating system's message if there is one, and the file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore puts it behind a long description
    if code:
        return os.strerror(int(code[1]))
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def any_process(flag: bool) -> bool:
    """Whether a flag is set in any process. All processes must call this."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray([flag])).any())


def read_text(path: epath.Path) -> str:
    """The text of a file. Raises OSError or ValueError if it cannot be read, or is a pipe, which would block."""
    if "://" not in str(path):
        require_regular_file(path)
    return path.read_text()


def write_atomic(path: epath.Path, text: str) -> None:
    """Write a file so that a kill leaves the old or the new one, never a part. Raises OSError with the file's name."""
    draft = path.parent / f"{path.name}.draft"
    try:
        draft.write_text(text)
        draft.replace(path)
    except OSError as error:  # the error of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
