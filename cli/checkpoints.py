"""The model that a verb opens, and its config: a checkpoint of --workdir, or the folder of --pretrained."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from absl.flags import FlagValues

from cli.flags import Assignments
from cli.runtime import make_runtime, start_jax
from configs import unread
from configs.knobs import Knobs, RunConfig
from errors import UsageError
from train.runtime import Runtime

STORES = ("gs", "s3", "az")  # schemes of object storage that etils.epath supports
KNOBS_WITH_EFFECT = (  # outside training, besides data, eval, model and rules
    "mesh",
    *(f"train.{name}" for name in ("precision", "attention", "dispatch", "batch", "scan")),
)


@dataclass(frozen=True)
class CheckpointSelection:
    """The checkpoints that --workdir=W@which selects, and the knobs that the command assigns."""

    runtime: Runtime
    workdir: str
    which: str  # a step, latest, best or all
    steps: list[int]  # candidates, best first; for all: each of them
    assignments: Assignments

    def config(self, step: int) -> RunConfig:
        """The config of a checkpoint, with the assigned knobs. Raises UsageError for a knob without effect."""
        from configs import reader
        from train.verbs import load_model

        config = load_model.checkpoint_config(self.workdir, step, self.runtime)
        for key, _ in self.assignments:
            _require_effect(key)
        return reader.override(config, self.assignments)

    def require_one(self, verb: str) -> None:
        """Raise UsageError for @all."""
        if self.which == "all":
            raise UsageError(f"{verb} takes one checkpoint, not @all")

    def use_first(self, use: Callable[[RunConfig, Runtime, str, int], None]) -> None:
        """Call `use(config, runtime, workdir, step)` for the first checkpoint that can be restored."""
        from train import checkpoint

        def use_step(step: int) -> None:
            use(self.config(step), self.runtime, self.workdir, step)

        checkpoint.first_restorable(self.workdir, self.steps, use_step, self.runtime.say)


def select_checkpoints(args: FlagValues, assignments: Assignments) -> CheckpointSelection:
    """The checkpoints of --workdir. Raises UsageError if there are none."""
    check_ignore_key(args)
    name = require_workdir(args)
    start_jax(args)
    from train import checkpoint

    workdir, which = checkpoint.split_name(name)
    runtime = make_runtime()
    return CheckpointSelection(runtime, workdir, which, checkpoint.select(workdir, which, runtime.say), assignments)


def require_workdir(args: FlagValues) -> str:
    """The normalised path of --workdir. Raises UsageError."""
    if not args.workdir:
        raise UsageError("--workdir is missing: the folder of the run, as --workdir=runs/a")
    scheme, remote, _ = args.workdir.partition("://")
    if remote and scheme not in STORES:
        stores = ", ".join(f"{name}://" for name in STORES)
        raise UsageError(f"--workdir={args.workdir} must be a local path, or start with one of {stores}")
    if remote:
        return args.workdir
    workdir = os.path.expanduser(args.workdir)
    linked = ".." in Path(workdir).parts  # after a symbolic link, .. differs from the text's parent
    return os.path.realpath(workdir) if linked else os.path.normpath(workdir)


def check_ignore_key(args: FlagValues) -> None:
    """Raise UsageError for --ignore_key without --pretrained."""
    if args.ignore_key and not args.pretrained:
        raise UsageError(f"--ignore_key={args.ignore_key[0]} goes with --pretrained: it names a key of its config.json")


def pretrained_folder(args: FlagValues) -> str | None:
    """The folder of --pretrained, or None if --workdir is given instead. Raises UsageError for both or neither."""
    if args.pretrained and args.workdir:
        raise UsageError("--pretrained and --workdir name two models; give one of them")
    if not args.pretrained and not args.workdir:
        raise UsageError(
            "--workdir is missing: the folder of the run, as --workdir=runs/a; or --pretrained, a Hugging Face folder"
        )
    return os.path.expanduser(args.pretrained) if args.pretrained else None


def pretrained_config(assignments: Assignments, knobs: Knobs | None = None) -> RunConfig:
    """The config for --pretrained: default knobs, with the changes in `knobs` and `assignments`."""
    from configs import reader
    from train.verbs import load_model

    config = RunConfig().replace({"data.tokenizer": load_model.FOLDER_TOKENIZER, **(knobs or {})})
    config = reader.override(config, assignments)
    for key, _ in assignments:
        if key in ("model.family", "model.size"):
            raise UsageError(f"--config.{key} cannot be set: the folder's config.json determines it")
        _require_effect(key)
    return config


def _require_effect(key: str) -> None:
    if not key.startswith(("data.", "eval.", "model.", "rules.")) and key not in KNOBS_WITH_EFFECT:
        raise UsageError(f"--config.{key} has no effect here: it is read in training only")


def find_unread(assignments: Assignments, **facts: str) -> Callable[[RunConfig, unread.Facts], list[str]]:
    """A function from a config and facts about it to the assigned knobs without effect; `facts` are the call's."""
    known = {key for key, _ in assignments}
    own = {name: ({value}, value) for name, value in facts.items()}
    return lambda config, found: unread.unread(config, {**found, **own}, known, only_given=True)
