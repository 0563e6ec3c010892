"""Mixtral style language models: mixtures of experts.

    python launch.py train --config=configs/mixtral.py:shakespeare --workdir=runs/mixtral

`shakespeare`: characters, with the budget and the active parameters of `llama.py:shakespeare`; eight experts, two per
token. `quick`: bytes of Python's documentation (built in), seconds on two CPU cores. `qwen3_30b_a3b`: the published
size; needs a large machine.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {
    "model.family": "mixtral",
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.experts": 8,
    "model.experts_per_token": 2,
    "model.expert_hidden": 176,
    "model.aux_loss_weight": 0.01,
    "model.tied": True,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quick": {**QUICK, **_SMALL, "model.width": 64, "model.depth": 2, "model.expert_hidden": 96},
    "qwen3_30b_a3b": {
        **SMALL,
        "model.family": "mixtral",
        "model.size": "qwen3_30b_a3b",
        "model.aux_loss_weight": 0.001,
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
    "one_expert": {"model.experts_per_token": 1, "model.expert_hidden": 352},
    "unbalanced": {"model.aux_loss_weight": 0.0},
    "as_they_are": {"model.norm_topk": False},
    "qk_norm": {"model.qk_norm": True},
    "dense_first": {"model.dense_layers": (0,), "model.hidden": 352},
    "all_experts": {"train.dispatch": "dense"},
    "bf16": {"train.precision": "bf16"},
}


def get_config(names: str = "quick") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+unbalanced`."""
    return base.config(names, CONFIGS, ABLATIONS)
