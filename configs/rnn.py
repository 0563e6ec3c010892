"""Recurrent networks.

    python launch.py train --config=configs/rnn.py:shakespeare --workdir=runs/rnn

`shakespeare`, `shakespeare_gru`, `shakespeare_elman`: characters, with the recurrent state kept between updates
(backpropagation through time truncated at 64 steps), 1,000 updates of 32 rows. The three have 351,000 parameters
within 0.2 %. `adding`: the adding problem of length 100, `adding_long` of length 400 (Hochreiter, Schmidhuber 1997,
experiment 4); always predicting 1 gives an error of 0.1667. `sst2`: sentiment of sentences, word tokens, bidirectional;
Flax's example for this set reaches 85.21 %. docs/results.md has ours.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs

_SHAKESPEARE: Knobs = {
    "model.family": "rnn",
    "model.embed": 64,
    "model.context": 64,
    "loss": "next_token",
    "data.name": "tiny_shakespeare",
    "data.tokenizer": "char",
    "train.stateful": True,
    "train.batch": 32,
    "train.steps": 1000,
    "optim.lr": 4e-3,
    "optim.clip_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.warmup": 50,
    "schedule.end_fraction": 0.05,
    "eval.split": "validation",
    "eval.overlap": 32,
    "eval.batch": 128,
    "log.every": 50,
}

_ADDING: Knobs = {
    "model.family": "rnn",
    "model.head": "values",
    "model.width": 64,
    "data.name": "adding:100",
    "loss": "mse",
    "train.batch": 64,
    "train.steps": 3000,
    "optim.clip_norm": 1.0,
    "schedule.name": "cosine",
    "eval.batch": 500,
    "log.every": 50,
}

CONFIGS: dict[str, Knobs] = {
    "shakespeare": {**_SHAKESPEARE, "model.cell": "lstm", "model.width": 256},
    "shakespeare_gru": {**_SHAKESPEARE, "model.cell": "gru", "model.width": 299},
    "shakespeare_elman": {**_SHAKESPEARE, "model.cell": "elman", "model.width": 526, "optim.lr": 1e-3},
    "adding": {**_ADDING, "model.forget_bias": 1.0, "optim.lr": 3e-3, "schedule.warmup": 100, "eval.every": 500},
    "adding_long": {
        **_ADDING,
        "model.chrono_max": 400,  # see docs/log.md: with a forget bias of 1 or 5 it was not solved
        "data.name": "adding:400",
        "train.steps": 1500,
        "optim.lr": 1e-2,
        "schedule.warmup": 50,
        "eval.every": 250,
    },
    "sst2": {
        "model.family": "rnn",
        "model.head": "classes",
        "model.bidirectional": True,
        "model.pool": "max",
        "model.embed": 128,
        "model.embed_std": 0.1,  # at 1 random embeddings persist for two epochs, and the model memorises them
        "model.width": 128,
        "model.context": 48,
        "model.dropout": 0.4,
        "data.name": "glue/sst2",
        "data.tokenizer": "word",
        "data.vocab_size": 12_000,
        "train.batch": 64,
        "train.steps": 1500,
        "optim.lr": 1e-3,
        "optim.clip_norm": 1.0,
        "schedule.name": "cosine",
        "schedule.warmup": 100,
        "eval.split": "validation",
        "eval.batch": 218,
        "eval.every": 500,
        "log.every": 50,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "gru": {"model.cell": "gru", "model.forget_bias": 0.0},
    "elman": {"model.cell": "elman", "model.forget_bias": 0.0, "model.chrono_max": None},
}


def get_config(names: str = "shakespeare") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+gru`."""
    return base.config(names, CONFIGS, ABLATIONS)
