"""The config of a training run: from --config, the run's checkpoints or the folder of --pretrained."""

import os

from absl.flags import FlagValues

from cli.checkpoints import Config
from cli.flags import Assignments
from errors import UsageError
from train.runtime import Runtime


def run_config(args: FlagValues, assignments: Assignments, runtime: Runtime, saved: str | None) -> Config:
    """The config of a run; `saved` is that of its checkpoints, if it has any. Raises UsageError for no config."""
    from configs import reader

    if args.pretrained:
        return fine_tuning_config(args, assignments, runtime, saved)
    if args.config:
        cfg = reader.read(args.config)
    elif saved is not None:
        cfg = reader.from_json(saved)
    else:
        raise UsageError(
            "--config is missing: which model to train, as --config=configs/gpt.py:quickstart; "
            "or --pretrained, a Hugging Face folder to fine-tune"
        )
    return reader.override(cfg, assignments)


def fine_tuning_config(args: FlagValues, assignments: Assignments, runtime: Runtime, saved: str | None) -> Config:
    """The config of a run that fine-tunes a folder: with the training knobs of --config, else defaults.

    Knobs that an ablation such as `+window` changes override the folder, like assigned knobs.
    """
    from configs import base, reader
    from train.setup import tuning
    from train.verbs import evaluate as evaluate_verb

    known, given = reader.from_json(saved) if saved else None, {key for key, _ in assignments}
    given |= reader.ablation_keys(args.config) if args.config else set()
    cfg = reader.read(args.config) if args.config else known.copy_and_resolve_references() if known else base.defaults()
    plain = not args.config and known is None
    for key, value in tuning.DEFAULTS.items() if plain else ():
        base.assign(cfg, key, value)
    cfg = reader.override(cfg, assignments)
    if plain and "data.name" not in given:
        raise UsageError("--dataset is missing: what to train on, as --dataset=pydoc_text; or give --config")
    if plain and "eval.split" not in given:
        cfg.eval.split = evaluate_verb.default_split(cfg, runtime)
    tuning.configure(cfg, os.path.expanduser(args.pretrained), runtime, args.ignore_key, given, known)
    return cfg
