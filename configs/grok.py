"""Grok-1 style language models: mixtures of experts, soft-capped attention scores, norms before and after each branch.

    python launch.py train --config=configs/grok.py:shakespeare --workdir=runs/grok

`shakespeare`: characters, with the budget and the active parameters of `llama.py:shakespeare`. `quick`: bytes of
Python's documentation (built in), seconds on two CPU cores. `grok_1`: the published size; needs a large machine.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {
    "model.family": "grok",
    "model.attn_logit_softcap": 30.0,
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.hidden": 176,
    "model.aux_loss_weight": 0.01,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quick": {**QUICK, **_SMALL, "model.width": 64, "model.depth": 2, "model.hidden": 96},
    "grok_1": {
        **SMALL,
        "model.family": "grok",
        "model.size": "grok_1",
        "model.aux_loss_weight": 0.001,
        "model.pad_token": None,  # of the release's tokenizer; in another 0 is a token like any
        "train.batch": 256,
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
    "no_cap": {"model.attn_logit_softcap": None},
    "unscaled": {"model.embed_multiplier": 1.0, "model.output_multiplier": 1.0},
    "unbalanced": {"model.aux_loss_weight": 0.0},
    "all_experts": {"train.dispatch": "dense"},
    "bf16": {"train.precision": "bf16"},
}


def get_config(names: str = "quick") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+no_cap`."""
    return base.config(names, CONFIGS, ABLATIONS)
