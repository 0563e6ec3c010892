"""Legal ranges of a config's numbers; those of optimizer and schedule are in their own modules."""

from collections.abc import Iterator
from typing import Any

from data.text import tokenizers
from train.setup import inputs

Config = Any  # an ml_collections ConfigDict with the knobs of configs/base.py

MINIMUM = {  # minimum -> knobs that are counts
    1: (
        *("train.steps", "log.every", "data.prefetch", "eval.every", "eval.batch", "eval.limit", "eval.context"),
        *("checkpoint.every", "checkpoint.keep", "data.vocab_size", "data.max_length", "eval.num_beams"),
    ),
    0: ("checkpoint.keep_best", "data.workers", "train.max_skipped", "eval.length_penalty"),
}


def find_problems(cfg: Config) -> Iterator[str]:
    """One line for each knob that is out of range, with key, legal range and value."""
    for least, keys in MINIMUM.items():
        for key in keys:
            section, name = key.split(".")
            value = cfg[section][name]
            if value is not None and value < least:
                yield f"config key {key!r} must be {least} or more{_or_none(key)}, not {value}"
    if not 0 <= cfg.seed < 2**32:
        yield f"seed must lie between 0 and 2^32 - 1, not {cfg.seed}"
    if cfg.optim.name == "schedule_free":  # its average x is kept as the difference of the parameters y and the steps z
        if cfg.optim.ema is not None:
            yield f"config key 'optim.ema' must be None for schedule_free, which keeps an average, not {cfg.optim.ema}"
        if cfg.train.precision == "bf16_params":
            yield "optim.name = 'schedule_free' needs float32 parameters: train.precision f32 or bf16, not bf16_params"
    if cfg.optim.ema is not None and not 0 < cfg.optim.ema < 1:
        yield f"config key 'optim.ema' must lie between 0 and 1, or be None, not {cfg.optim.ema}"
    if cfg.data.vocab_size is None and cfg.data.tokenizer == tokenizers.BPE:
        yield "config key 'data.tokenizer' = 'bpe' wants data.vocab_size, how many tokens to learn"
    yield from inputs.find_problems(cfg)


OR_NONE = (
    "eval.every",
    "eval.batch",
    "eval.limit",
    "eval.context",
    "checkpoint.every",
    "data.vocab_size",
    "data.max_length",
)


def _or_none(key: str) -> str:
    return ", or None" if key in OR_NONE else ""
