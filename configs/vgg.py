"""VGG.

    python launch.py train --config=configs/vgg.py:fashion --workdir=runs/vgg

`fashion`: stages of 3 x 3 convolutions with batch norm, narrower and fewer than in Simonyan, Zisserman 2015, on
Fashion-MNIST.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

CONFIGS: dict[str, dict[str, Any]] = {
    "fashion": {
        "model.family": "vgg",
        "model.channels": (32, 64, 128),
        "model.depths": (2, 2, 2),
        "model.norm": "batch",
        "model.pool": 1,
        "model.hidden": (128,),
        "model.dropout": 0.3,
        "data.name": "fashion_mnist",
        "data.augment": "flip,crop:2",
        "data.mean": 0.286,
        "data.deviation": 0.353,
        "train.batch": 128,
        "train.steps": 4690,
        "optim.lr": 2e-3,
        "optim.decay": 0.05,
        "schedule.name": "cosine",
        "schedule.warmup": 200,
        "eval.every": 938,
        "eval.batch": 500,
        "log.every": 50,
    },
}

ABLATIONS: dict[str, dict[str, Any]] = {
    "no_norm": {"model.norm": "none"},
    "no_dropout": {"model.dropout": 0.0},
    "no_hidden": {"model.hidden": ()},
    "wide": {"model.channels": (64, 128, 256)},
    "shallow": {"model.depths": (1, 1, 1)},
}


def get_config(names: str = "fashion") -> ConfigDict:
    """The named config with its ablations, as `fashion+no_norm`."""
    return base.config(names, CONFIGS, ABLATIONS)
