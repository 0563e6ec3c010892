"""Knobs that several config files share: training recipes of small models."""

from configs.knobs import Knobs

SMALL: Knobs = {  # language models of every family
    "loss": "next_token",
    "optim.beta2": 0.99,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.warmup": 100,
    "schedule.end_fraction": 0.1,
    "eval.split": "validation",
}
SHAKESPEARE: Knobs = {  # characters; the CPU budget of nanoGPT's README (Karpathy 2022)
    **SMALL,
    "data.name": "tiny_shakespeare",
    "data.tokenizer": "char",
    "model.context": 64,
    "train.batch": 12,
    "train.steps": 2000,
    "optim.lr": 3e-3,
    "eval.every": 500,
    "eval.batch": 64,
    "checkpoint.every": 500,
}
QUICK: Knobs = {  # bytes of Python's documentation, seconds on two CPU cores
    **SMALL,
    "model.context": 64,
    "train.batch": 8,
    "train.steps": 100,
    "schedule.warmup": 10,
    "eval.batch": 64,
}
FASHION: Knobs = {  # Fashion-MNIST with a convolutional network, ten epochs
    "data.name": "fashion_mnist",
    "data.augment": "flip,crop:2",
    "data.mean": 0.286,
    "data.std": 0.353,
    "train.batch": 128,
    "train.steps": 4690,
    "optim.lr": 2e-3,
    "optim.weight_decay": 0.05,
    "schedule.name": "cosine",
    "schedule.warmup": 200,
    "eval.every": 938,
    "eval.batch": 500,
    "log.every": 50,
}
MULTI30K: Knobs = {  # image captions, English to German, seven epochs
    "model.context": 64,
    "model.dropout": 0.1,
    "data.name": "multi30k_en_de",
    "data.field": "en:de",
    "data.tokenizer": "bpe",
    "data.vocab_size": 4000,
    "data.max_length": 32,
    "loss": "translation",
    "train.label_smoothing": 0.1,
    "train.batch": 128,
    "train.steps": 1600,
    "optim.name": "adam",
    "optim.lr": 2e-3,
    "optim.clip_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.warmup": 300,
    "schedule.end_fraction": 0.05,
    "eval.split": "validation",
    "eval.every": 400,
    "log.every": 50,
}
