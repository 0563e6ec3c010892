"""The config of a training run: from --config, the run's checkpoints or the folder of --pretrained."""

import os

from absl.flags import FlagValues

from cli.flags import Assignments
from configs.knobs import RunConfig
from errors import UsageError
from train.runtime import Runtime


def run_config(args: FlagValues, assignments: Assignments, runtime: Runtime, saved: RunConfig | None) -> RunConfig:
    """The config of a run; `saved` is that of its checkpoints, if it has any. Raises UsageError for no config."""
    from configs import reader

    if args.pretrained:
        return fine_tuning_config(args, assignments, runtime, saved)
    if args.config:
        config = reader.read(args.config)
    elif saved is not None:
        config = saved
    else:
        raise UsageError(
            "--config is missing: which model to train, as --config=configs/gpt.py:quickstart; "
            "or --pretrained, a Hugging Face folder to fine-tune"
        )
    return reader.override(config, assignments)


def fine_tuning_config(
    args: FlagValues, assignments: Assignments, runtime: Runtime, saved: RunConfig | None
) -> RunConfig:
    """The config of a run that fine-tunes a folder: with the training knobs of --config, else defaults.

    Knobs that an ablation such as `+window` changes override the folder, like assigned knobs.
    """
    from configs import reader
    from train.setup import tuning
    from train.verbs import evaluate as evaluate_verb

    given = {key for key, _ in assignments}
    given |= reader.ablation_keys(args.config) if args.config else set()
    config = reader.read(args.config) if args.config else saved or RunConfig()
    plain = not args.config and saved is None
    config = reader.override(config.replace(tuning.DEFAULTS) if plain else config, assignments)
    if plain and "data.name" not in given:
        raise UsageError("--dataset is missing: what to train on, as --dataset=pydoc_text; or give --config")
    if plain and "eval.split" not in given:
        config = config.replace({"eval.split": evaluate_verb.default_split(config, runtime)})
    return tuning.configure(config, os.path.expanduser(args.pretrained), runtime, args.ignore_key, given, saved)
