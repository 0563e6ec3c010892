"""Gemma 4 style language models: wider heads in global layers, whose values are computed from the key projection.

    python launch.py train --config=configs/gemma4.py:shakespeare --workdir=runs/gemma4

`shakespeare`: characters, with the budget and the active parameters of `llama.py:shakespeare`. `quick`: bytes of
Python's documentation (built in), seconds on two CPU cores. `gemma4_26b_a4b`: the published size; needs a large
machine.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {
    "model.family": "gemma4",
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.kv_heads": 2,
    "model.head_dim": 32,
    "model.full_head_dim": 64,
    "model.full_kv_heads": 1,
    "model.k_eq_v": True,
    "model.hidden": 176,
    "model.window": 16,
    "model.sliding_pattern": 4,
    "model.final_logit_softcap": 30.0,
    "model.enable_moe_block": True,
    "model.experts": 8,
    "model.expert_hidden": 112,
    "model.aux_loss_weight": 0.01,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quick": {
        **QUICK,
        **_SMALL,
        "model.width": 64,
        "model.depth": 2,
        "model.head_dim": 16,
        "model.full_head_dim": 32,
        "model.hidden": 96,
        "model.expert_hidden": 48,
    },
    "gemma4_26b_a4b": {
        **SMALL,
        "model.family": "gemma4",
        "model.size": "gemma4_26b_a4b",
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
    "no_experts": {"model.enable_moe_block": False, "model.aux_loss_weight": 0.0, "model.hidden": 352},
    "own_values": {"model.k_eq_v": False},
    "all_turn": {"model.partial_rotary_factor": 1.0},
    "no_window": {"model.window": None},
    "bf16": {"train.precision": "bf16"},
}


def get_config(names: str = "quick") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+own_values`."""
    return base.config(names, CONFIGS, ABLATIONS)
