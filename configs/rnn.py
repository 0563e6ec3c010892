"""Recurrent networks.

    python launch.py train --config=configs/rnn.py:shakespeare --workdir=runs/rnn

`shakespeare`: characters, rows that go on where they ended (truncated backpropagation through time, 64 steps); 2,000
updates of 32 rows; by ablation `gru` or `elman`, their widths such that all three have about as many parameters.
`adding`: the adding problem at length 100, by ablation `long` at 400 (Hochreiter, Schmidhuber 1997, experiment 4); who
always answers 1 has an error of 0.1667. `sst2`: sentiment of sentences, words, two directions; Flax's example for the
set reaches 85.21 %. README has our figures.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

CONFIGS: dict[str, dict[str, Any]] = {
    "shakespeare": {
        "model.family": "rnn",
        "model.cell": "lstm",
        "model.embed": 64,
        "model.width": 256,
        "model.context": 64,
        "loss": "next_token",
        "data.name": "tiny_shakespeare",
        "data.tokenizer": "char",
        "train.carry": True,
        "train.batch": 32,
        "train.steps": 2000,
        "optim.lr": 4e-3,
        "optim.clip": 1.0,
        "schedule.name": "cosine",
        "schedule.warmup": 100,
        "schedule.end": 0.05,
        "eval.split": "validation",
        "eval.overlap": 32,
        "eval.batch": 128,
        "log.every": 50,
    },
    "adding": {
        "model.family": "rnn",
        "model.head": "values",
        "model.width": 64,
        "model.forget": 1.0,
        "data.name": "adding:100",
        "loss": "squared",
        "train.batch": 64,
        "train.steps": 3000,
        "optim.lr": 3e-3,
        "optim.clip": 1.0,
        "schedule.name": "cosine",
        "schedule.warmup": 100,
        "eval.batch": 500,
        "eval.every": 500,
        "log.every": 50,
    },
    "sst2": {
        "model.family": "rnn",
        "model.head": "classes",
        "model.bidirectional": True,
        "model.pool": "max",
        "model.embed": 128,
        "model.width": 128,
        "model.context": 64,
        "model.dropout": 0.5,
        "data.name": "glue/sst2",
        "data.tokenizer": "word",
        "data.vocab": 12_000,
        "train.batch": 64,
        "train.steps": 3000,
        "optim.lr": 1e-3,
        "optim.clip": 1.0,
        "schedule.name": "cosine",
        "schedule.warmup": 100,
        "eval.split": "validation",
        "eval.batch": 218,
        "eval.every": 500,
        "log.every": 50,
    },
}

ABLATIONS: dict[str, dict[str, Any]] = {
    "gru": {"model.cell": "gru"},
    "elman": {"model.cell": "elman"},
    "long": {"data.name": "adding:400"},
}


def get_config(names: str = "shakespeare") -> ConfigDict:
    """The named config with its ablations, as `shakespeare+gru`."""
    return base.config(names, CONFIGS, ABLATIONS)
