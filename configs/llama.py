"""Llama style language models.

    python launch.py train --config=configs/llama.py:shakespeare --workdir=runs/llama

`shakespeare`: characters, with the budget and, within 1 %, the parameters of `gpt.py:shakespeare`. `quick`: bytes of
Python's documentation (built in), seconds on two CPU cores. `llama3.2_1b`: the published size; needs a large machine.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {
    "model.family": "llama",
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.hidden": 352,
    "model.tied": True,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quick": {**QUICK, **_SMALL, "model.width": 64, "model.depth": 2, "model.hidden": 172},
    "llama3.2_1b": {
        **SMALL,
        "model.family": "llama",
        "model.size": "llama3.2_1b",
        "train.batch": 64,
        "train.steps": 100_000,
        "train.precision": "bf16",
        "train.remat": "full",
        "optim.lr": 3e-4,
        "optim.beta2": 0.95,
        "schedule.warmup": 2000,
        "checkpoint.every": 1000,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "grouped": {"model.kv_heads": 2},
    "qk_norm": {"model.qk_norm": True},
    "window": {"model.window": 16},
    "untied": {"model.tied": False},
    "gelu": {"model.activation": "gelu"},
    "bf16": {"train.precision": "bf16"},
}


def get_config(names: str = "quick") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+grouped+qk_norm`."""
    return base.config(names, CONFIGS, ABLATIONS)
