"""Selecting a checkpoint, and reading and verifying its arrays."""

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from data.text import tokenizers
from errors import UsageError
from models.core.spec import flatten
from models.core.types import Tree
from train.checkpoint.digests import LeafRecord, digests
from train.checkpoint.folder import any_process, checkpoint_dir, read_text, reason, steps
from train.checkpoint.manifest import CorruptCheckpoint, load_manifest, readable_manifests

T = TypeVar("T")


def as_dict(state: Tree) -> Tree:
    """A state as nested dicts. Optax's tuples become dicts by field or index."""
    return serialization.to_state_dict(state)


def split_name(name: str) -> tuple[str, str]:
    """`W@n` -> (W, n). A bare W, or an existing folder with an @ in its name, means W@latest."""
    workdir, at, which = name.rpartition("@")
    return (workdir, which) if at and not epath.Path(name).exists() else (name, "latest")


def select(workdir: str, which: str, say: Callable[[str], None] = lambda line: None) -> list[int]:
    """The steps that `latest`, `best`, `all` or a number selects. For `latest` and `best`: candidates, best first.

    `say` reports the corrupt checkpoints that `best` cannot compare.
    Raises UsageError, with the existing steps, if there is none.
    """
    found = steps(workdir)
    if not found:
        raise UsageError(f"no checkpoint in {workdir!r}: train writes them to WORKDIR/checkpoints")
    if which == "latest":
        return found[::-1]
    if which == "all":
        return found
    if which == "best":
        losses = {
            n: (manifest["metrics"] or {}).get("loss") for n, manifest in readable_manifests(workdir, say).items()
        }
        scored = {n: loss for n, loss in losses.items() if loss is not None and math.isfinite(loss)}
        if not scored:
            raise UsageError(f"no checkpoint in {workdir!r} is @best: none was saved with a finite held-out loss")
        return sorted(scored, key=lambda n: (scored[n], n))
    if which in map(str, found):
        return [int(which)]
    names = ", ".join(map(str, found))
    raise UsageError(f"no checkpoint {which!r} in {workdir!r}; it has {names}, or use @latest, @best, @all")


def load_tokenizer(workdir: str, step: int) -> dict[str, Any] | None:
    """The description of a checkpoint's tokenizer, or None if the model reads no text.

    Raises CorruptCheckpoint if its fingerprint differs from the manifest's.
    """
    wanted = load_manifest(workdir, step)["tokenizer"]
    if wanted is None:
        return None
    path = checkpoint_dir(workdir) / str(step) / "tokenizer" / "tokenizer.json"
    try:
        description = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"checkpoint {step} of {workdir} is damaged: its tokenizer cannot be read ({error})"
        ) from None
    if tokenizers.fingerprint(description) != wanted:
        raise CorruptCheckpoint(
            f"checkpoint {step} of {workdir} is damaged: its tokenizer differs from its manifest's fingerprint"
        )
    return description


def restore(workdir: str, step: int, target: Tree) -> Tree:
    """Restore `target` from a checkpoint: a state, or some of its entries, as ShapeDtypeStructs with shardings.

    Raises UsageError if a leaf is missing, surplus, or has another shape or dtype than the target's, and
    CorruptCheckpoint if the files differ from the manifest. Each message names the leaf.
    """
    manifest, wanted = load_manifest(workdir, step), as_dict(target)
    saved, leaves = manifest["state"], flatten(wanted)
    inside = [k for k in saved if k.split("/")[0] in wanted]
    for name in sorted({*inside, *leaves}):
        where = f"checkpoint {step} of {workdir}: {name}"
        if name not in saved:
            raise UsageError(f"{where} is missing; the config needs shape {leaves[name].shape}")
        if name not in leaves:
            raise UsageError(f"{where} {tuple(saved[name]['shape'])} has no counterpart in the config's model")
        have = tuple(saved[name]["shape"]), saved[name]["dtype"]
        want = leaves[name].shape, str(leaves[name].dtype)
        if have != want:
            raise UsageError(f"{where} is {have[0]} {have[1]}; the config needs {want[0]} {want[1]}")
    return serialization.from_state_dict(target, _read_and_verify(workdir, step, wanted, saved))


def restore_leaves(workdir: str, step: int, shardings: dict[str, Sharding]) -> Tree:
    """Restore some leaves by path, on the given shardings -> a nested dict. Raises CorruptCheckpoint as `restore`."""
    saved = load_manifest(workdir, step)["state"]
    wanted: Tree = {}
    for name, sharding in shardings.items():
        *folders, leaf = name.split("/")
        inside = wanted
        for folder in folders:
            inside = inside.setdefault(folder, {})
        shape, dtype = tuple(saved[name]["shape"]), jnp.dtype(saved[name]["dtype"])
        inside[leaf] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    return _read_and_verify(workdir, step, wanted, saved)


def _read_and_verify(workdir: str, step: int, wanted: Tree, saved: dict[str, LeafRecord]) -> Tree:
    tree = _read_arrays(checkpoint_dir(workdir) / str(step) / "state", wanted)
    problem = None
    if isinstance(tree, Exception):
        problem = f"its arrays cannot be read ({reason(tree)})"
    else:
        differ = [name for name, code in digests(tree).items() if code != saved[name]["digest"]]
        problem = f"digest of {differ[0]} differs ({len(differ)} leaves in all)" if differ else None
    if any_process(problem is not None) or isinstance(tree, Exception):
        raise CorruptCheckpoint(
            f"checkpoint {step} of {workdir} is damaged: {problem or 'another process could not read it'}"
        )
    return tree


def _read_arrays(path: epath.Path, wanted: Tree) -> Tree | Exception:
    """The arrays, or the exception: Orbax and TensorStore raise many types for a broken file."""
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
            return reader.restore(path, args=ocp.args.PyTreeRestore(wanted, arguments, partial_restore=True))
    except Exception as error:
        return error


def first_restorable(
    workdir: str, candidates: list[int], read: Callable[[int], T], say: Callable[[str], None]
) -> tuple[int, T]:
    """The first candidate that `read` restores -> (step, result of `read`). Corrupt ones before it are reported.

    Raises CorruptCheckpoint if all are corrupt.
    """
    for step in candidates:
        try:
            return step, read(step)
        except CorruptCheckpoint as error:
            if len(candidates) == 1:
                raise
            say(f"{error}; skipping it")
    raise CorruptCheckpoint(f"no checkpoint of {workdir} can be restored; tried {', '.join(map(str, candidates))}")


def quarantine(workdir: str, newer_than: int) -> None:
    """Move the checkpoints newer than the restored one to `W/damaged`, so that the run can save those steps again."""
    if jax.process_index() == 0:
        folder = checkpoint_dir(workdir)
        for step in (n for n in steps(workdir) if n > newer_than):
            home = folder.parent / "damaged"
            home.mkdir(parents=True, exist_ok=True)
            count = sum(p.name.split("-")[0] == str(step) for p in home.iterdir())
            (folder / str(step)).rename(home / (f"{step}-{count}" if count else str(step)))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("set aside damaged checkpoints")
