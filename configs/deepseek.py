"""DeepSeek style language models: multi-head latent attention, fine-grained and shared experts, multi-token prediction.

    python launch.py train --config=configs/deepseek.py:shakespeare --workdir=runs/deepseek

`shakespeare`: characters, with the budget and the active parameters of `llama.py:shakespeare`; a bias balances the
experts. `quick`: bytes of Python's documentation (built in), seconds on two CPU cores. `deepseek_v2_lite`: the
published size; needs a large machine.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import QUICK, SHAKESPEARE, SMALL

_SMALL: Knobs = {
    "model.family": "deepseek",
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.q_rank": 64,
    "model.kv_rank": 32,
    "model.nope_dim": 32,
    "model.rope_dim": 16,
    "model.value_dim": 32,
    "model.hidden": 352,
    "model.dense_layers": (0,),
    "model.experts": 16,
    "model.experts_per_token": 3,
    "model.expert_hidden": 100,
    "model.expert_groups": 4,
    "model.topk_groups": 2,
    "model.router": "sigmoid",
    "model.norm_topk": True,
    "model.bias_update_speed": 0.001,
    "model.tied": True,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**SHAKESPEARE, **_SMALL},
    "quick": {**QUICK, **_SMALL, "model.width": 64, "model.depth": 2, "model.hidden": 172, "model.expert_hidden": 48},
    "deepseek_v2_lite": {
        **SMALL,
        "model.family": "deepseek",
        "model.size": "deepseek_v2_lite",
        "model.aux_loss_weight": 0.001,
        "train.batch": 64,
        "train.steps": 100_000,
        "train.precision": "bf16",
        "train.remat": "full",
        "optim.lr": 4.2e-4,
        "optim.beta2": 0.95,
        "schedule.warmup": 2000,
        "mesh": "fsdp:*,ep:8",
        "checkpoint.every": 1000,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "mtp": {"model.mtp": 1},
    "by_loss": {"model.bias_update_speed": 0.0, "model.aux_loss_weight": 0.01},
    "unbalanced": {"model.bias_update_speed": 0.0},
    "no_shared": {"model.shared": 0, "model.experts_per_token": 4},
    "no_q_rank": {"model.q_rank": None},
    "all_experts": {"train.dispatch": "dense"},
    "bf16": {"train.precision": "bf16"},
}


def get_config(names: str = "quick") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+mtp`."""
    return base.config(names, CONFIGS, ABLATIONS)
