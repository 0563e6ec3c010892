"""GPT-2 style language models.

    python launch.py train --config=configs/gpt.py:shakespeare --workdir=runs/shakespeare

`shakespeare`: the CPU recipe of nanoGPT's README (Karpathy 2022): 4 layers, 4 heads, width 128, context 64, batch size
12, 2,000 updates, no dropout. Published validation loss 1.88; docs/results.md has ours. `quickstart`: bytes of Python's
documentation (built in), about a minute on two CPU cores. `gpt2`: the published size; needs a large machine.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {"model.family": "gpt", "model.width": 128, "model.depth": 4, "model.heads": 4}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quickstart": {
        **SHAKESPEARE,
        **_SMALL,
        "data.name": "pydoc_text",
        "data.tokenizer": "byte",
        "train.batch": 16,
        "train.steps": 600,
        "schedule.warmup": 50,
        "eval.every": 200,
        "checkpoint.every": 200,
    },
    "quick": {**QUICK, **_SMALL, "model.width": 64, "model.depth": 2},
    "gpt2": {
        **SMALL,
        "model.family": "gpt",
        **{f"model.{k}": v for k, v in (("width", 768), ("depth", 12), ("heads", 12), ("context", 1024))},
        "train.batch": 64,
        "train.steps": 100_000,
        "train.precision": "bf16",
        "optim.lr": 6e-4,
        "schedule.warmup": 2000,
        "checkpoint.every": 1000,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "no_warmup": {"schedule.warmup": 0},
    "no_decay": {"optim.weight_decay": 0.0},
    "relu": {"model.activation": "relu"},
    "untied": {"model.tied": False},
    "dropout": {"model.dropout": 0.1},
    "bf16": {"train.precision": "bf16"},
    "accumulate": {"train.accumulate": 4},
}


def get_config(names: str = "quickstart") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+no_warmup+relu`."""
    return base.config(names, CONFIGS, ABLATIONS)
