"""Checks that the processes of a run agree on versions, data and workdir, and fail together."""

import platform
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax
import orbax.checkpoint

from errors import UsageError
from train.runtime import Runtime


class OtherProcessFailed(RuntimeError):
    """Another process of the run has failed; it reports the reason."""


@dataclass
class Lockstep:
    """Keeps processes in step: none starts an update for which another has no batch, or after another has failed."""

    runtime: Runtime
    all_failed: bool = False  # a process failed, and all raised before the same update

    def batches(self, batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
        """This process's batches. Raises the error of reading, and OtherProcessFailed in all other processes."""
        while True:
            error = None
            try:
                batch = next(batches)
            except StopIteration:  # in all processes at once
                return
            except Exception as found:
                error = found
            self.raise_together(error)
            yield batch

    def raise_together(self, error: Exception | None) -> None:
        """Raise the error of this process, or OtherProcessFailed if another has one. All processes must call this."""
        self.all_failed = self.runtime.any_process(error is not None)
        if error is not None:
            raise error
        if self.all_failed:
            raise OtherProcessFailed("another process has failed")


def versions() -> dict[str, str]:
    """The versions of the libraries that determine a run's numbers."""
    found = {m.__name__: m.__version__ for m in (jax, flax, optax, np)} | {"python": platform.python_version()}
    return {**found, "orbax": orbax.checkpoint.__version__}


def check_same_data(runtime: Runtime, data: Mapping[tuple[str, str], Any]) -> None:
    """Raise UsageError if versions or data differ between processes; `data` maps (name, split) to an identity."""
    facts = {f"the version of {name}": found for name, found in versions().items()}
    runtime.agree({**facts, **{f"the data {name}, {split}": identity for (name, split), identity in data.items()}})


def check_shared_workdir(workdir: str, runtime: Runtime) -> None:
    """Raise UsageError unless all processes see one workdir: they look for a file that process 0 writes there."""
    if jax.process_count() == 1 or "://" in workdir:
        return
    mark = Path(workdir) / "mark"
    if jax.process_index() == 0:
        mark.write_text(secrets.token_hex(8))
    try:
        runtime.agree({})  # a barrier: process 0 has written the file
        runtime.agree({"mark": mark.read_text() if mark.exists() else None})
    except UsageError:
        text = f"--workdir={workdir} is not the same folder for all processes; give one that they share"
        raise UsageError(text) from None
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)
