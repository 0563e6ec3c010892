"""Residual networks.

    python launch.py train --config=configs/resnet.py:fashion --workdir=runs/resnet

`fashion`: ResNet-20 (He et al. 2015, section 4.2) on Fashion-MNIST, ten epochs with flips and shifts: accuracy 93.05 +-
0.25 %, 49 minutes of CPU time. `cifar10`: the same on CIFAR-10 with the paper's settings: 64,000 updates of SGD with
momentum, the learning rate divided by 10 at 32,000 and 48,000; published accuracy 91.25 % (table 6).
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import FASHION

CONFIGS: dict[str, Knobs] = {
    "fashion": {
        **FASHION,
        "model.family": "resnet",
        "model.size": "resnet20",
    },
    "cifar10": {
        "model.family": "resnet",
        "model.size": "resnet20",
        "data.name": "cifar10",
        "data.augment": "flip,crop:4",
        "data.mean": 0.473,  # over all channels together, as is std
        "data.std": 0.251,
        "train.batch": 128,
        "train.steps": 64_000,
        "optim.name": "momentum",
        "optim.lr": 0.1,
        "optim.weight_decay": 1e-4,
        "schedule.name": "piecewise",
        "schedule.milestones": "32000:0.1,48000:0.1",
        "eval.every": 8000,
        "eval.batch": 500,
        "checkpoint.every": 8000,
        "log.every": 100,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "no_norm": {"model.norm": "none", "model.zero_init": True},
    "option_b": {"model.shortcut": "projection"},
    "zero_init": {"model.zero_init": True},
    "bottleneck": {"model.block": "bottleneck", "model.channels": (64, 128, 256), "model.depths": (2, 2, 2)},
    "wide": {"model.widening": 2},
    "deeper": {"model.depths": (9, 9, 9)},
}


def get_config(names: str = "fashion") -> ConfigDict:
    """The named config with its ablations, as `fashion+option_b`."""
    return base.config(names, CONFIGS, ABLATIONS)
