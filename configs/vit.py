"""Vision Transformers (Dosovitskiy et al. 2021, arXiv:2010.11929).

    python launch.py train --config=configs/vit.py:fashion --workdir=runs/vit

`fashion`: Fashion-MNIST in 49 patches of 4 x 4 pixels, mean pooling, six epochs: accuracy 88.6 +- 0.3 %; an MLP with as
many parameters, configs/mlp.py:fashion, has 88.9 +- 0.3 %. Ablation `long`: twelve epochs with flips and shifts, 35
minutes of CPU time: 90.3 +- 0.3 %; the MLP has 88.6 +- 0.3 %.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs

CONFIGS: dict[str, Knobs] = {
    "fashion": {
        "model.family": "vit",
        "model.patch": 4,
        "model.width": 64,
        "model.depth": 4,
        "model.heads": 4,
        "model.hidden": 128,
        "model.pool": "mean",
        "model.class_token": False,
        "model.position": "sines",
        "data.name": "fashion_mnist",
        "data.mean": 0.286,
        "data.std": 0.353,
        "train.batch": 64,
        "train.steps": 5600,
        "train.scan": False,
        "optim.lr": 2e-3,
        "optim.weight_decay": 0.05,
        "optim.clip_norm": 1.0,
        "schedule.name": "cosine",
        "schedule.warmup": 300,
        "eval.every": 1400,
        "eval.batch": 500,
        "log.every": 50,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "long": {"train.steps": 11_250, "data.augment": "flip,crop:1"},
    "class_token": {"model.pool": "first", "model.class_token": True},
    "learned": {"model.position": "learned"},
    "zero_head": {"model.zero_head": True},
    "drop_path": {"model.drop_path": 0.1},
}


def get_config(names: str = "fashion") -> ConfigDict:
    """The named config with its ablations, as `fashion+learned`."""
    return base.config(names, CONFIGS, ABLATIONS)
