"""The model that a verb opens, and its config: a checkpoint of --workdir, or the folder of --pretrained."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from absl.flags import FlagValues

from cli.flags import Assignments
from cli.runtime import make_runtime, start_jax
from configs import unread
from configs.knobs import Knobs, RunConfig
from errors import UsageError
from train.runtime import Runtime
from train.workdir import normalize_workdir


@dataclass(frozen=True)
class CheckpointSelection:
    """The checkpoints that --workdir=W@which selects, and the knobs that the command assigns."""

    runtime: Runtime
    workdir: str
    which: str  # a step, latest, best or all
    steps: list[int]  # candidates, best first; for all: each of them
    saved_config: Callable[[int], RunConfig]  # of a step
    assignments: Assignments

    def config(self, step: int) -> RunConfig:
        """The config of a checkpoint, with the assigned knobs. Raises UsageError for a knob without effect."""
        from configs import reader

        config = reader.override(self.saved_config(step), self.assignments)
        unread.require_effect(key for key, _ in self.assignments)
        return config

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
    name = normalize_workdir(args.workdir)
    start_jax(args)
    from train import checkpoint
    from train.verbs import load_model

    workdir, which = checkpoint.split_name(name)
    runtime = make_runtime()
    steps = checkpoint.select(workdir, which, runtime.say)
    return CheckpointSelection(runtime, workdir, which, steps, load_model.config_reader(workdir, runtime), assignments)


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
    unread.require_effect(key for key, _ in assignments)
    return config
