"""A lock: one run at a time writes to a workdir."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from etils import epath

from errors import UsageError
from train.checkpoint.folder import LOCK


@contextmanager
def lock(workdir: str) -> Iterator[None]:
    """Hold `W/lock` while a run writes there. Only process 0 locks, and only local folders.

    Raises UsageError if another run holds it.
    """
    if jax.process_index() or "://" in workdir:
        yield
        return
    import fcntl

    with open(epath.Path(workdir) / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run is writing to {workdir}; wait for it, or take another --workdir") from None
        yield
