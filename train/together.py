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
from train.host import Host


class Elsewhere(RuntimeError):
    """Another process of the run has failed, which says why."""


@dataclass
class Lockstep:
    """Holds processes together where they read: none begins an update for which another has no batch."""

    host: Host
    ended: bool = False  # one had none: all have raised before the same update

    def batches(self, batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
        """The batches of this process. Raises what reading raises, and Elsewhere in all other processes."""
        while True:
            error = None
            try:
                batch = next(batches)
            except StopIteration:  # of all processes alike
                return
            except Exception as found:
                error = found
            self.ended = self.host.anywhere(error is not None)
            if error is not None:
                raise error
            if self.ended:
                raise Elsewhere("another process has failed")
            yield batch


def versions() -> dict[str, str]:
    """The versions of what a run's numbers come from."""
    found = {m.__name__: m.__version__ for m in (jax, flax, optax, np)} | {"python": platform.python_version()}
    return {**found, "orbax": orbax.checkpoint.__version__}


def compare(host: Host, data: Mapping[tuple[str, str], Any]) -> None:
    """Hold all processes to the same versions and data, identities by name and split. Raises UsageError."""
    facts = {f"the version of {name}": found for name, found in versions().items()}
    host.agree({**facts, **{f"the data {name}, {split}": identity for (name, split), identity in data.items()}})


def share(workdir: str, host: Host) -> None:
    """Hold all processes to one folder: they look for a mark that process 0 leaves there. Raises UsageError."""
    if jax.process_count() == 1 or "://" in workdir:
        return
    mark = Path(workdir) / "mark"
    if jax.process_index() == 0:
        mark.write_text(secrets.token_hex(8))
    try:
        host.agree({})  # the mark is there now
        host.agree({"mark": mark.read_text() if mark.exists() else None})
    except UsageError:
        text = f"--workdir={workdir} is not one folder for all processes: give one that they share"
        raise UsageError(text) from None
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)
