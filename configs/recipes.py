"""Knobs that several files set alike: how small language models are trained, and for how long."""

from typing import Any

SMALL: dict[str, Any] = {  # a language model of any family
    "loss": "next_token",
    "optim.beta2": 0.99,
    "optim.decay": 0.1,
    "optim.clip": 1.0,
    "schedule.name": "cosine",
    "schedule.warmup": 100,
    "schedule.end": 0.1,
    "eval.split": "validation",
}
SHAKESPEARE: dict[str, Any] = {  # characters; the CPU budget of nanoGPT's README (Karpathy 2022)
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
QUICK: dict[str, Any] = {  # bytes of Python's own documentation, seconds on two cores
    **SMALL,
    "model.context": 64,
    "train.batch": 8,
    "train.steps": 100,
    "schedule.warmup": 10,
    "eval.batch": 64,
}
