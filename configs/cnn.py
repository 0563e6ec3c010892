"""Convolutional networks.

    python launch.py train --config=configs/cnn.py:mnist_lenet5 --workdir=runs/lenet5

`mnist_lenet5`: LeNet-5 on MNIST (LeCun et al. 1998, section III). Published test error 0.95 % (0.8 % with distorted
images); here 12 epochs with shifts of up to one pixel; docs/results.md has ours. `mnist`: two convolutions with batch
norm. `fashion`: the same on Fashion-MNIST, eight epochs with flips and shifts; the data set's own benchmark reports
91.6 % for two such layers (Xiao et al. 2017). `digits`: the same on scikit-learn's 8 x 8 digits (built in); seconds.
Ablation `focal`: the focal loss (Lin et al. 2017); `class_weights`: the first class counts twice in the loss;
`contrastive`: embeddings of 32 numbers without labels, from two views of an image (Chen et al. 2020).
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs

CONFIGS: dict[str, Knobs] = {
    "digits": {
        "model.family": "cnn",
        "model.channels": (16, 32),
        "model.hidden": (64,),
        "data.name": "digits",
        "train.batch": 64,
        "train.steps": 400,
        "schedule.name": "cosine",
        "log.every": 20,
    },
    "mnist": {
        "model.family": "cnn",
        "data.name": "mnist",
        "data.mean": 0.1307,
        "data.std": 0.3081,
        "train.batch": 128,
        "train.steps": 2400,
        "schedule.name": "cosine",
        "schedule.warmup": 100,
        "optim.weight_decay": 0.05,
        "eval.every": 800,
        "eval.batch": 500,
        "log.every": 50,
    },
    "fashion": {
        "model.family": "cnn",
        "model.dropout": 0.1,
        "data.name": "fashion_mnist",
        "data.augment": "flip,crop:1",
        "data.mean": 0.286,
        "data.std": 0.353,
        "train.batch": 128,
        "train.steps": 3750,
        "optim.lr": 2e-3,
        "optim.weight_decay": 0.05,
        "schedule.name": "cosine",
        "schedule.warmup": 100,
        "eval.every": 1250,
        "eval.batch": 500,
        "log.every": 50,
    },
    "mnist_lenet5": {
        "model.family": "cnn",
        "model.size": "lenet5",
        "data.name": "mnist",
        "data.augment": "crop:1",
        "data.mean": 0.0784,  # with std below: background -0.1, ink 1.175, as in the paper
        "data.std": 0.784,
        "train.batch": 64,
        "train.steps": 11_250,
        "optim.lr": 1e-3,
        "optim.weight_decay": 0.05,
        "schedule.name": "cosine",
        "schedule.warmup": 200,
        "eval.every": 1875,
        "eval.batch": 500,
        "checkpoint.every": 3750,
        "log.every": 200,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "no_norm": {"model.norm": "none"},
    "shift": {"data.augment": "crop:2"},
    "average_pool": {"model.pools": ("average", "average")},
    "linear_head": {"model.head": "linear"},
    "focal": {"loss": "focal"},
    "contrastive": {
        "loss": "contrastive",
        "data.augment": "crop:1",
        "model.head": "linear",
        "model.classes": 32,
    },
    "class_weights": {"train.class_weights": (2.0, *[1.0] * 9)},
}


def get_config(names: str = "digits") -> ConfigDict:
    """The named config with its ablations, as `mnist+no_norm`."""
    return base.config(names, CONFIGS, ABLATIONS)
