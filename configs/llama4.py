"""Llama 4 style language models: chunked attention with RoPE, full attention without it, routed and shared experts.

    python launch.py train --config=configs/llama4.py:shakespeare --workdir=runs/llama4

`shakespeare`: characters, with the budget and the active parameters of `llama.py:shakespeare`. `quick`: bytes of
Python's documentation (built in), seconds on two CPU cores. `llama4_scout`: the published size; needs several large
machines.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {
    "model.family": "llama4",
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.chunk": 16,
    "model.nope_layers": (3,),
    "model.floor_scale": 32,
    "model.experts": 8,
    "model.hidden": 352,
    "model.expert_hidden": 176,
    "model.aux_loss_weight": 0.01,
    "model.tied": True,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quick": {
        **QUICK,
        **_SMALL,
        "model.width": 64,
        "model.depth": 2,
        "model.nope_layers": (1,),
        "model.hidden": 172,
        "model.expert_hidden": 96,
    },
    "llama4_scout": {
        **SMALL,
        "model.family": "llama4",
        "model.size": "llama4_scout",
        "model.aux_loss_weight": 0.001,
        "model.context": 8192,
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
    "positions_everywhere": {"model.nope_layers": ()},
    "no_chunk": {"model.chunk": None},
    "no_qk_norm": {"model.qk_norm": False},
    "dense_by_turns": {"model.dense_layers": (0, 2)},
    "unbalanced": {"model.aux_loss_weight": 0.0},
    "all_experts": {"train.dispatch": "dense"},
    "bf16": {"train.precision": "bf16"},
}


def get_config(names: str = "quick") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+no_chunk`."""
    return base.config(names, CONFIGS, ABLATIONS)
