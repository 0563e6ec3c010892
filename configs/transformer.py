"""The Transformer (Vaswani et al. 2017, arXiv:1706.03762).

    python launch.py train --config=configs/transformer.py:multi30k --workdir=runs/transformer

`multi30k`: captions of images, English to German, 29,000 pairs; 4.5 million parameters at a joint vocabulary of 8,000,
as many as `multi30k` of configs/seq2seq.py within 1 %.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

CONFIGS: dict[str, dict[str, Any]] = {
    "multi30k": {
        "model.family": "transformer",
        "model.width": 192,
        "model.depth": 4,
        "model.heads": 4,
        "model.hidden": 384,
        "model.context": 64,
        "model.dropout": 0.3,
        "data.name": "multi30k_en_de",
        "data.field": "en:de",
        "data.tokenizer": "bpe",
        "data.vocab": 8000,
        "data.length": 32,
        "loss": "translation",
        "train.smoothing": 0.1,
        "train.batch": 128,
        "train.steps": 4000,
        "optim.name": "adam",
        "optim.lr": 2e-3,
        "optim.beta2": 0.98,
        "optim.eps": 1e-9,
        "optim.clip": 1.0,
        "schedule.name": "inverse_sqrt",
        "schedule.warmup": 800,
        "eval.split": "validation",
        "eval.every": 500,
        "log.every": 50,
    },
}

ABLATIONS: dict[str, dict[str, Any]] = {
    "pre_norm": {"model.pre_norm": True},
    "learned_positions": {"model.positions": "learned"},
    "untied": {"model.tied": "none"},
    "no_smoothing": {"train.smoothing": 0.0},
}


def get_config(names: str = "multi30k") -> ConfigDict:
    """The named config with its ablations, as `multi30k+pre_norm`."""
    return base.config(names, CONFIGS, ABLATIONS)
