"""What processes that train together must have alike, beside their config: versions, data, the folder, and an end."""

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
    """Another process of the run has failed, which says why."""


@dataclass
class Lockstep:
    """Holds processes together where they read: none begins an update for which another has no batch."""

    runtime: Runtime
    all_failed: bool = False  # one had none: all have raised before the same update

    def batches(self, batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
        """The batches of this process. Raises what reading raises, and OtherProcessFailed in all other processes."""
        while True:
            error = None
            try:
                batch = next(batches)
            except StopIteration:  # of all processes alike
                return
            except Exception as found:
                error = found
            self.all_failed = self.runtime.any_process(error is not None)
            if error is not None:
                raise error
            if self.all_failed:
                raise OtherProcessFailed("another process has failed")
            yield batch


def versions() -> dict[str, str]:
    """The versions of what a run's numbers come from."""
    found = {m.__name__: m.__version__ for m in (jax, flax, optax, np)} | {"python": platform.python_version()}
    return {**found, "orbax": orbax.checkpoint.__version__}


def check_same_data(runtime: Runtime, data: Mapping[tuple[str, str], Any]) -> None:
    """Hold all processes to the same versions and data, identities by name and split. Raises UsageError."""
    facts = {f"the version of {name}": found for name, found in versions().items()}
    runtime.agree({**facts, **{f"the data {name}, {split}": identity for (name, split), identity in data.items()}})


def check_shared_workdir(workdir: str, runtime: Runtime) -> None:
    """Hold all processes to one folder: they look for a mark that process 0 leaves there. Raises UsageError."""
    if jax.process_count() == 1 or "://" in workdir:
        return
    mark = Path(workdir) / "mark"
    if jax.process_index() == 0:
        mark.write_text(secrets.token_hex(8))
    try:
        runtime.agree({})  # the mark is there now
        runtime.agree({"mark": mark.read_text() if mark.exists() else None})
    except UsageError:
        text = f"--workdir={workdir} is not one folder for all processes: give one that they share"
        raise UsageError(text) from None
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)
