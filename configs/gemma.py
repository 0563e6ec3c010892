"""Gemma style language models: alternating local and global attention, norms after each branch, soft-capped logits.

    python launch.py train --config=configs/gemma.py:shakespeare --workdir=runs/gemma

`shakespeare`: characters, with the budget and, within 2 %, the parameters of `llama.py:shakespeare`. `quick`: bytes of
Python's documentation (built in), seconds on two CPU cores. `gemma3_1b`: the published size; needs a large machine.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {
    "model.family": "gemma",
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.hidden": 352,
    "model.window": 16,
    "model.attn_logit_softcap": 50.0,
    "model.final_logit_softcap": 30.0,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quick": {**QUICK, **_SMALL, "model.width": 64, "model.depth": 2, "model.hidden": 172},
    "gemma3_1b": {
        **SMALL,
        "model.family": "gemma",
        "model.size": "gemma3_1b",
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
    "third": {
        "model.qk_norm": True,
        "model.attn_logit_softcap": None,
        "model.final_logit_softcap": None,
        "model.rope_local_base": 1e4,
    },
    "no_caps": {"model.attn_logit_softcap": None, "model.final_logit_softcap": None},
    "no_window": {"model.window": None},
    "bf16": {"train.precision": "bf16"},
}


def get_config(names: str = "quick") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+no_caps`."""
    return base.config(names, CONFIGS, ABLATIONS)
