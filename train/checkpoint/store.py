"""Saving checkpoints asynchronously and atomically."""

import json
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from models.core.types import Tree
from train.checkpoint.digests import describe
from train.checkpoint.folder import any_process, check_writable, checkpoint_dir, reason
from train.checkpoint.manifest import Manifest, dump_manifest
from train.checkpoint.restore import as_dict


class SaveError(RuntimeError):
    """A checkpoint that could not be written."""


class _ManifestHandler(ocp.CheckpointHandler):
    """Writes the tokenizer's folder and, last before Orbax commits the checkpoint, the manifest beside it."""

    def save(self, directory: epath.Path, args: "_ManifestArgs") -> None:
        """Keep the manifest until `finalize`; write the tokenizer."""
        self._manifest = args.manifest
        if args.tokenizer is not None and jax.process_index() == 0:
            (directory / "tokenizer.json").write_text(args.tokenizer)

    def restore(self, directory: epath.Path, args: object = None) -> None:
        """Nothing: `load_manifest` and `load_tokenizer` read the files."""

    def finalize(self, directory: epath.Path) -> None:
        """Write the manifest, after checking that the checkpoint's arrays can be found."""
        state = directory.parent / "state"
        try:
            with closing(ocp.PyTreeCheckpointHandler()) as reader:
                reader.metadata(state)
        except (OSError, ValueError, TypeError) as error:
            raise SaveError(f"the arrays written to {state} cannot be read back") from error
        (directory.parent / "manifest.json").write_text(self._manifest)


@ocp.args.register_with_handler(_ManifestHandler, for_save=True, for_restore=True)
@dataclass
class _ManifestArgs(ocp.args.CheckpointArgs):
    manifest: str
    tokenizer: str | None


class Store:
    """Saves a run's checkpoints asynchronously, and keeps the newest `keep` and the `keep_best` with the lowest loss.

    A checkpoint is committed at the latest when the next one is saved. A failed write raises SaveError.
    """

    def __init__(self, workdir: str, keep: int, keep_best: int) -> None:
        policies = ocp.checkpoint_managers
        finite = lambda m: m["loss"] if math.isfinite(m["loss"]) else math.inf  # noqa: E731
        best = policies.BestN(get_metric_fn=finite, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),  # so that its failure is seen now
        )
        self._folder = checkpoint_dir(workdir)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._step: int | None = None  # of the newest save

    def save(self, state: Tree, manifest: Manifest, tokenizer: dict[str, Any] | None) -> None:
        """Start saving a state as step manifest["step"]. Its arrays may be donated once this returns.

        manifest["metrics"], if not None, holds the held-out `loss` that selects the best checkpoints. The first save
        waits until it is committed, so that faulty storage ends a run early.
        """
        self.wait()
        first, self._step = self._step is None, manifest["step"]
        with self._fail_together():
            check_writable(self._folder)
        tree = as_dict(state)
        text = dump_manifest({**manifest, "state": describe(tree)})
        notes = _ManifestArgs(text, None if tokenizer is None else json.dumps(tokenizer))
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), tokenizer=notes)
        with self._fail_together():
            self._manager.save(self._step, args=items, metrics=manifest["metrics"], force=True)
        if first:
            self.wait()

    def check(self) -> None:
        """Raise SaveError if the pending save has failed. With several processes, the next save raises instead."""
        if jax.process_count() == 1 and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until the pending save is committed. All processes wait together."""
        with self._fail_together():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for this process's part, then release Orbax's threads."""
        try:
            with self._name_failures():
                self._manager.wait_until_finished()
        finally:
            self._manager.close()

    @contextmanager
    def _name_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many types
            raise self._save_error(reason(error)) from error

    @contextmanager
    def _fail_together(self) -> Iterator[None]:
        """If one process fails, all raise: none waits for a process that has ended."""
        problem = None
        try:
            with self._name_failures():
                yield
        except SaveError as error:
            problem = error
        if any_process(problem is not None):
            raise problem or self._save_error("another process has failed")

    def _save_error(self, why: str) -> SaveError:
        return SaveError(f"checkpoint {self._step} could not be written to {self._folder}: {why}")
