"""Checkpoints that explain themselves: `W/checkpoints/<n>/{state/, manifest.json, tokenizer/}`, n finished updates.

Orbax writes the arrays asynchronously and commits a checkpoint by one rename, manifest and tokenizer included. The
manifest holds a digest of each leaf, computed on device at the save; a restore computes it again, and compares shape
and dtype too, so that nothing is restored changed, or in part, without a word.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization
from jax.experimental import multihost_utils

from data import tokenizers
from errors import UsageError
from models.spec import flatten
from train.digests import describe, digests

SCHEMA = 1
Manifest = dict[str, Any]


class Damaged(RuntimeError):
    """A checkpoint whose files do not hold what its manifest says."""


# Saving


def as_dict(state: Any) -> Any:
    """A state as nested dicts alone: Optax's tuples become dicts by field or index."""
    return serialization.to_state_dict(state)


class _NotesHandler(ocp.CheckpointHandler):
    """Writes the tokenizer's folder, and the manifest beside it, before Orbax commits the checkpoint."""

    def save(self, directory: epath.Path, args: "_Notes") -> None:
        """Keep the manifest until `finalize`; write the tokenizer."""
        self._manifest = args.manifest
        if args.tokenizer is not None and jax.process_index() == 0:
            (directory / "tokenizer.json").write_text(args.tokenizer)

    def restore(self, directory: epath.Path, args: Any = None) -> None:
        """Nothing: `load_manifest` and `load_tokenizer` read the files."""

    def finalize(self, directory: epath.Path) -> None:
        """Write the manifest into the checkpoint that is about to be committed."""
        (directory.parent / "manifest.json").write_text(self._manifest)


@ocp.args.register_with_handler(_NotesHandler, for_save=True, for_restore=True)
@dataclass
class _Notes(ocp.args.CheckpointArgs):
    manifest: str
    tokenizer: str | None


class Store:
    """Saves a run's checkpoints, asynchronously, and keeps the newest `keep` and the `keep_best` of least loss."""

    def __init__(self, workdir: str, keep: int, keep_best: int) -> None:
        policies = ocp.checkpoint_managers
        finite = lambda m: m["loss"] if math.isfinite(m["loss"]) else math.inf  # noqa: E731
        best = policies.BestN(get_metric_fn=finite, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._workdir = workdir
        self._manager = ocp.CheckpointManager(_folder(workdir), options=options)

    def save(self, state: Any, manifest: Manifest, tokenizer: dict[str, Any] | None) -> None:
        """Begin to save a state under manifest["step"]; its arrays may be donated once this returns.

        manifest["metrics"], where not None, holds the held-out `loss` by which the best is chosen.
        """
        tree = as_dict(state)
        manifest = {"schema": SCHEMA, **manifest, "state": describe(tree)}
        notes = _Notes(json.dumps(manifest, indent=1), None if tokenizer is None else json.dumps(tokenizer))
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), tokenizer=notes)
        with self._told():
            self._manager.save(manifest["step"], args=items, metrics=manifest["metrics"], force=True)

    def wait(self) -> None:
        """Return when what was begun is committed. Raises RuntimeError where it could not be written."""
        with self._told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(f"a checkpoint could not be written to {self._workdir}: {first[:200]}") from error


# Finding and restoring


def _folder(workdir: str) -> epath.Path:
    path = epath.Path(workdir)
    return (path if "://" in workdir else path.absolute()) / "checkpoints"


def steps(workdir: str) -> list[int]:
    """The checkpoints of a workdir, oldest first, damaged ones among them."""
    folder = _folder(workdir)
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def readable(workdir: str) -> dict[int, Manifest]:
    """The manifests that can be read, newest first."""
    found = {}
    for step in reversed(steps(workdir)):
        with suppress(Damaged):
            found[step] = load_manifest(workdir, step)
    return found


def split_name(name: str) -> tuple[str, str]:
    """`W@n` -> (W, n); a bare W, or a folder whose own name has an @, stands for W@latest."""
    workdir, at, which = name.rpartition("@")
    return (workdir, which) if at and not epath.Path(name).exists() else (name, "latest")


def select(workdir: str, which: str) -> list[int]:
    """The steps that `latest`, `best`, `all` or a number names; of `latest`, candidates from the newest on.

    Raises UsageError where there is none, with those that there are.
    """
    found = steps(workdir)
    if not found:
        raise UsageError(f"no checkpoint in {workdir!r}; train writes them to WORKDIR/checkpoints")
    if which == "latest":
        return found[::-1]
    if which == "all":
        return found
    if which == "best":
        losses = {n: (manifest["metrics"] or {}).get("loss") for n, manifest in readable(workdir).items()}
        scored = {n: loss for n, loss in losses.items() if loss is not None and math.isfinite(loss)}
        if not scored:
            raise UsageError(f"no checkpoint in {workdir!r} has a finite loss from when it was saved, so none is @best")
        return [min(scored, key=lambda n: (scored[n], n))]
    if re.fullmatch(r"\d+", which) and int(which) in found:
        return [int(which)]
    names = ", ".join(map(str, found))
    raise UsageError(f"no checkpoint {which!r} in {workdir!r}; there are {names}, and @latest, @best, @all")


def load_manifest(workdir: str, step: int) -> Manifest:
    """The manifest of a checkpoint. Raises Damaged where it cannot be read, UsageError for another schema."""
    try:
        manifest = json.loads((_folder(workdir) / str(step) / "manifest.json").read_text())
        schema = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"checkpoint {step} of {workdir}: its manifest.json cannot be read ({error})") from None
    if schema != SCHEMA:
        raise UsageError(f"checkpoint {step} of {workdir} has schema {schema}; this version reads {SCHEMA}")
    return manifest


def note_metrics(workdir: str, step: int, metrics: dict[str, float]) -> None:
    """Write into the manifest of a checkpoint what was measured after it was saved; process 0 alone."""
    if jax.process_index():
        return
    manifest = {**load_manifest(workdir, step), "metrics": metrics or None}
    write_whole(_folder(workdir) / str(step) / "manifest.json", json.dumps(manifest, indent=1))


def write_whole(path: epath.Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, never a part."""
    draft = path.parent / f"{path.name}.draft"
    draft.write_text(text)
    draft.replace(path)


def load_tokenizer(workdir: str, step: int) -> dict[str, Any] | None:
    """The description of the tokenizer that travels in a checkpoint, None where it is of no text.

    Raises Damaged where it is not the one that the manifest names.
    """
    wanted = load_manifest(workdir, step)["tokenizer"]
    if wanted is None:
        return None
    path = _folder(workdir) / str(step) / "tokenizer" / "tokenizer.json"
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"checkpoint {step} of {workdir}: its tokenizer cannot be read ({error})") from None
    if tokenizers.fingerprint(description) != wanted:
        raise Damaged(f"checkpoint {step} of {workdir} is damaged: its tokenizer is another than its manifest's")
    return description


def restore(workdir: str, step: int, target: Any) -> Any:
    """What `target` has of a checkpoint: a state, or some of its entries, in ShapeDtypeStructs with shardings.

    Raises UsageError where a leaf is missing, surplus, or of another shape or dtype than the target's, and Damaged
    where the files do not hold what the manifest says. Each message names the leaf.
    """
    manifest, wanted = load_manifest(workdir, step), as_dict(target)
    saved, leaves = manifest["state"], flatten(wanted)
    inside = [k for k in saved if k.split("/")[0] in wanted]
    for name in sorted({*inside, *leaves}):
        where = f"checkpoint {step} of {workdir}: {name}"
        if name not in saved:
            raise UsageError(f"{where} is not in it; the config asks for a leaf {leaves[name].shape}")
        if name not in leaves:
            raise UsageError(f"{where} {tuple(saved[name]['shape'])} is in it, but the config has no such leaf")
        have = tuple(saved[name]["shape"]), saved[name]["dtype"]
        want = leaves[name].shape, str(leaves[name].dtype)
        if have != want:
            raise UsageError(f"{where} is {have[0]} {have[1]}, the config asks for {want[0]} {want[1]}")
    return serialization.from_state_dict(target, _verified(workdir, step, wanted, saved))


def restore_leaves(workdir: str, step: int, shardings: dict[str, Any]) -> Any:
    """Some leaves of a checkpoint, by path, on the given shardings -> a nested dict. Raises as `restore` does."""
    saved = load_manifest(workdir, step)["state"]
    wanted: dict[str, Any] = {}
    for name, sharding in shardings.items():
        *folders, leaf = name.split("/")
        inside = wanted
        for folder in folders:
            inside = inside.setdefault(folder, {})
        shape, dtype = tuple(saved[name]["shape"]), jnp.dtype(saved[name]["dtype"])
        inside[leaf] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    return _verified(workdir, step, wanted, saved)


def _verified(workdir: str, step: int, wanted: Any, saved: dict[str, Any]) -> Any:
    tree, problem = _read(_folder(workdir) / str(step) / "state", wanted), None
    if isinstance(tree, Exception):
        first = (str(tree).strip().splitlines() or [type(tree).__name__])[0]
        problem = f"its arrays cannot be read ({first[:200]})"
    else:
        differ = [name for name, code in digests(tree).items() if code != saved[name]["digest"]]
        problem = f"digest of {differ[0]} differs ({len(differ)} leaves in all)" if differ else None
    if _anywhere(problem is not None):
        raise Damaged(f"checkpoint {step} of {workdir} is damaged: {problem or 'another process could not read it'}")
    return tree


def _read(path: epath.Path, wanted: Any) -> Any:
    """The arrays, or the exception: Orbax and TensorStore raise many kinds for a broken file."""
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
            return reader.restore(path, args=ocp.args.PyTreeRestore(wanted, arguments, partial_restore=True))
    except Exception as error:
        return error


def _anywhere(flag: bool) -> bool:
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray([flag])).any())


def first_good(
    workdir: str, candidates: list[int], read: Callable[[int], Any], say: Callable[[str], None]
) -> tuple[int, Any]:
    """The first candidate that `read` restores; each damaged one before it is named and passed over."""
    for step in candidates:
        try:
            return step, read(step)
        except Damaged as error:
            say(f"{error}; passing over it")
    raise Damaged(f"no checkpoint of {workdir} can be restored; tried {', '.join(map(str, candidates))}")


def set_aside(workdir: str, newer_than: int) -> None:
    """Move checkpoints newer than the one restored to `W/damaged`, so that the run can save those steps again."""
    if jax.process_index() == 0:
        folder = _folder(workdir)
        for step in (n for n in steps(workdir) if n > newer_than):
            home = folder.parent / "damaged"
            home.mkdir(parents=True, exist_ok=True)
            count = sum(p.name.split("-")[0] == str(step) for p in home.iterdir())
            (folder / str(step)).rename(home / (f"{step}-{count}" if count else str(step)))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("set aside damaged checkpoints")


@contextmanager
def lock(workdir: str) -> Iterator[None]:
    """Hold `W/lock` while a run writes there; process 0 alone, local folders alone.

    Raises UsageError where another run holds it.
    """
    if jax.process_index() or "://" in workdir:
        yield
        return
    import fcntl

    with open(epath.Path(workdir) / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run is writing to {workdir}; wait for it, or take another --workdir") from None
        yield
