"""A run's checkpoints: at regular intervals, and one more if an error ends the run."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax

from configs import reader
from data import sampler
from models.core.spec import flatten
from train import checkpoint, loop, resume, together
from train.evaluate import evaluate
from train.setup.setup import Setup
from train.update import step


@dataclass
class Saver:
    """Saves a run's states with their manifests."""

    setup: Setup
    store: checkpoint.Store
    resume_point: resume.ResumePoint
    identity: list[dict[str, Any]]  # of the data
    progress: loop.Progress
    lockstep: together.Lockstep
    newest: int  # checkpoint
    _skipped: int = 0  # updates of this process, up to that checkpoint

    def save(self, n: int, state: step.State, scores: evaluate.Scores | None) -> None:
        """Start saving the state after n updates. Raises checkpoint.SaveError."""
        manifest = make_manifest(
            self.setup, n, self.resume_point, self.identity, scores, self.progress.consecutive_skipped
        )
        self.store.save(state, manifest, self.setup.tokenizer_description)
        self.newest, self._skipped = n, self.progress.skipped

    def rescue(self, state: step.State, error: BaseException) -> None:
        """Save the progress since the newest checkpoint, before an error ends the run.

        Nothing is saved after a storage failure, after a second Ctrl-C, or if other processes of the run continue.
        """
        hurried = isinstance(error, KeyboardInterrupt) and self.setup.runtime.signals() is not None
        alone = jax.process_count() > 1 and not self.lockstep.all_failed
        if isinstance(error, checkpoint.SaveError) or hurried or alone:
            return
        with suppress(Exception):  # the same error may be raised again
            self.progress.flush()
        try:
            n = int(state["step"])
            if n - self.newest > self.progress.skipped - self._skipped:
                self.save(n, state, None)
            self.store.wait()
            if self.newest > self.resume_point.start:
                self.progress.say(f"saved checkpoint {self.newest:,}, before the error that ends the run")
        except Exception as second:  # for example if an update had donated the state
            self.progress.say(f"the newest updates are not saved: {checkpoint.reason(second)}")


def describe_rows(setup: Setup) -> dict[str, Any] | None:
    """The shapes of a row's fields, the classes and the tokens of a run's data; None for texts."""
    row = setup.row_type
    if row is None or not row.shapes:
        return None
    return {"shapes": row.shapes, "classes": setup.classes, "vocab": row.vocab}


def make_manifest(
    setup: Setup,
    n: int,
    resume_point: resume.ResumePoint,
    identity: list[dict[str, Any]],
    scores: evaluate.Scores | None,
    skipped: int = 0,
) -> checkpoint.Manifest:
    """The manifest of a checkpoint, without the digests that the store adds.

    `skipped` counts the consecutive newest updates that were not finite.
    """
    table = {k: {"shape": list(s.shape), "axes": s.axes} for k, s in flatten(setup.model.specs).items()}
    return {
        "step": n,
        "config": setup.config.to_dict(),
        "code": dict(setup.config.code),
        "named_code": reader.named_code(setup.config),
        "table": table,
        "versions": together.versions(),
        "revision": setup.runtime.revision,
        "mesh": dict(setup.place.mesh.shape),
        "phases": sampler.phases_as_json(resume_point.phases),
        "history": resume_point.history,
        "skipped": skipped,
        "data": identity,
        "tokenizer": setup.tokenizer_fingerprint,
        "classes": list(setup.class_names) if setup.class_names else None,
        "rows": describe_rows(setup),
        "files": resume_point.files or None,
        "inputs": getattr(setup.model.config, "inputs", None),
        "metrics": (scores.primary_metrics or None) if scores else None,  # None for an empty held-out split
    }
