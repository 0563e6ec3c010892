"""gpt-oss style language models: mixtures of experts, attention sinks, a sliding window in every other layer.

    python launch.py train --config=configs/gpt_oss.py:shakespeare --workdir=runs/gpt_oss

`shakespeare`: characters, with the budget and the active parameters of `llama.py:shakespeare`. `quick`: bytes of
Python's documentation (built in), seconds on two CPU cores. `gpt_oss_20b`: the published size; needs a large machine.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {
    "model.family": "gpt_oss",
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.window": 16,
    "model.experts": 8,
    "model.experts_per_token": 2,
    "model.hidden": 176,
    "model.aux_loss_weight": 0.01,
    "model.tied": True,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quick": {**QUICK, **_SMALL, "model.width": 64, "model.depth": 2, "model.hidden": 96},
    "gpt_oss_20b": {
        **SMALL,
        "model.family": "gpt_oss",
        "model.size": "gpt_oss_20b",
        "model.aux_loss_weight": 0.001,
        "train.batch": 64,
        "train.steps": 100_000,
        "train.precision": "bf16",
        "train.remat": "full",
        "optim.lr": 3e-4,
        "optim.beta2": 0.95,
        "schedule.warmup": 2000,
        "mesh": "fsdp:*,ep:8",
        "checkpoint.every": 1000,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "no_window": {"model.window": None},
    "no_bias": {"model.attention_bias": False},
    "unbalanced": {"model.aux_loss_weight": 0.0},
    "all_experts": {"train.dispatch": "dense"},
    "bf16": {"train.precision": "bf16"},
}


def get_config(names: str = "quick") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+no_window`."""
    return base.config(names, CONFIGS, ABLATIONS)
