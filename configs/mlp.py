"""Perceptrons and multilayer perceptrons.

    python launch.py train --config=configs/mlp.py:xor --workdir=runs/xor

`xor_perceptron` and `xor`: XOR needs a hidden layer; a linear unit cannot represent it (Minsky, Papert 1969; Rumelhart
et al. 1986); seconds each. `rosenblatt`: the perceptron rule (Rosenblatt 1958), one example per update, on linearly
separable points. `micrograd`: the demo of micrograd (Karpathy 2020): two half moons, 2-16-16-1, hinge loss, 100
full-batch updates; published accuracy 100 %. The ablations `scalar` and `equations` use hand-written gradients.
`moons`: the same points with softmax; seconds. `digits`: scikit-learn's 8 x 8 digits (built in); seconds.
`multilabel`: any number of labels per row, one binary decision per class (loss `sigmoid`; built in); seconds.
`mnist`: 784-256-256-10, ReLU, five epochs; ablations `sgd`, `adam`, `muon` and `lion`.
`fashion`: as many parameters as configs/vit.py:fashion; 88.9 +- 0.3 %, top-5 99.8 %, in a minute.
`mnist_nielsen`: Nielsen 2015, chapter 1: 784-30-10 sigmoid units, quadratic cost, SGD with learning rate 3.0, batch
size 10, 30 epochs. Published accuracy 95.42 %; docs/results.md has ours.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs

_XOR: Knobs = {
    "model.family": "mlp",
    "data.name": "xor",
    "train.batch": 4,
    "train.steps": 1000,
    "optim.name": "momentum",
    "optim.lr": 0.1,
    "log.every": 100,
}

CONFIGS: dict[str, Knobs] = {
    "xor": {**_XOR, "model.hidden": (8,)},
    "xor_perceptron": {**_XOR, "model.size": "perceptron"},
    "rosenblatt": {
        "model.family": "mlp",
        "model.size": "perceptron",
        "data.name": "halves",
        "loss": "perceptron",
        "optim.name": "sgd",
        "optim.lr": 1.0,
        "train.batch": 1,
        "train.steps": 8000,
        "eval.batch": 400,
        "log.every": 400,
    },
    "micrograd": {
        "model.family": "mlp",
        "model.hidden": (16, 16),
        "model.activation": "relu",
        "model.init": "he_normal",
        "data.name": "moons",
        "loss": "hinge",
        "optim.name": "sgd",
        "optim.lr": 1.0,
        "optim.weight_decay": 2e-4,
        "schedule.name": "linear",
        "schedule.end_fraction": 0.1,
        "train.batch": 100,
        "train.steps": 100,
        "eval.split": "train",
    },
    "moons": {
        **_XOR,
        "data.name": "moons",
        "model.hidden": (16, 16),
        "model.activation": "relu",
        "model.init": "he_normal",
        "train.batch": 100,
    },
    "digits": {
        "model.family": "mlp",
        "model.hidden": (128,),
        "model.classes": 10,
        "model.activation": "relu",
        "model.init": "he_normal",
        "data.name": "digits",
        "train.batch": 64,
        "train.steps": 1000,
        "optim.lr": 2e-3,
        "schedule.name": "cosine",
        "log.every": 50,
    },
    "multilabel": {
        "model.family": "mlp",
        "model.inputs": 40,
        "model.hidden": (64,),
        "model.activation": "relu",
        "model.init": "he_normal",
        "data.name": "multilabel",
        "loss": "sigmoid",
        "train.batch": 64,
        "train.steps": 500,
        "optim.weight_decay": 0.1,
        "schedule.name": "cosine",
        "log.every": 50,
    },
    "mnist": {
        "model.family": "mlp",
        "model.hidden": (256, 256),
        "model.activation": "relu",
        "model.init": "he_normal",
        "data.name": "mnist",
        "data.mean": 0.1307,
        "data.std": 0.3081,
        "train.batch": 128,
        "train.steps": 2400,
        "optim.name": "adam",
        "schedule.name": "cosine",
        "schedule.warmup": 100,
        "eval.batch": 1000,
        "log.every": 100,
    },
    "fashion": {  # parameters, updates and images as in configs/vit.py:fashion
        "model.family": "mlp",
        "model.hidden": (144, 144),
        "model.activation": "relu",
        "model.init": "he_normal",
        "data.name": "fashion_mnist",
        "data.mean": 0.286,
        "data.std": 0.353,
        "train.batch": 64,
        "train.steps": 5600,
        "optim.weight_decay": 0.05,
        "schedule.name": "cosine",
        "schedule.warmup": 300,
        "eval.every": 1400,
        "eval.batch": 500,
        "log.every": 50,
    },
    "mnist_nielsen": {
        "model.family": "mlp",
        "model.size": "nielsen",
        "data.name": "mnist",
        "loss": "quadratic",
        "optim.name": "sgd",
        "optim.lr": 3.0,
        "train.batch": 10,
        "train.steps": 180_000,
        "eval.every": 30_000,
        "eval.batch": 1000,
        "checkpoint.every": 60_000,
        "log.every": 2000,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "relu": {"model.activation": "relu", "model.init": "he_normal"},
    "sgd": {"optim.name": "sgd", "optim.lr": 0.1},
    "adam": {"optim.name": "adam", "optim.lr": 1e-3},
    "muon": {"optim.name": "muon", "optim.lr": 2e-3, "optim.momentum": 0.95},
    "lion": {"optim.name": "lion", "optim.lr": 1e-4, "optim.beta2": 0.99},
    "dropout": {"model.dropout": 0.2},
    "long": {"train.steps": 11_250, "data.augment": "flip,crop:1"},
    "equations": {"train.gradient": "equations"},
    "scalar": {"train.gradient": "scalar"},
}


def get_config(names: str = "xor") -> ConfigDict:
    """The named config with its ablations, as `xor+adam`."""
    return base.config(names, CONFIGS, ABLATIONS)
