"""The legal values of a config's knobs, and the tables of the words that knobs can be."""

from collections.abc import Collection, Iterator

import imports
import models
import renamed
from configs import reader
from configs.knobs import RunConfig, get
from configs.section import Value
from configs.unread import OWN
from data.images.resize import INTERPOLATIONS, RESIZE_MODES
from data.text import tokenizers
from errors import join_problems, raise_with, unknown
from models.blocks.attention import attention
from models.blocks.moe.dispatch import DISPATCH
from models.core.checks import REMAT
from train.evaluate.callbacks import CALLBACKS
from train.setup import inputs
from train.tasks import TASKS
from train.update import optim, schedules
from train.update.precision import PRECISIONS

MINIMUM = {  # minimum -> knobs that are counts
    1: (
        *("train.steps", "log.every", "data.prefetch", "eval.every", "eval.batch", "eval.limit", "eval.context"),
        *("checkpoint.every", "checkpoint.keep", "data.vocab_size", "data.max_length", "eval.num_beams"),
    ),
    0: ("checkpoint.keep_best", "data.workers", "train.max_skipped", "eval.length_penalty"),
}


CHOICES: dict[str, Collection[str]] = {  # knob -> the table that implements its words
    "model.family": models.FAMILIES,
    "data.resize_mode": RESIZE_MODES,
    "data.interpolation": INTERPOLATIONS,
    "loss": TASKS,
    "optim.name": optim.OPTIMIZERS,
    "schedule.name": schedules.SCHEDULES,
    "train.precision": PRECISIONS,
    "train.attention": attention.CHOICES,
    "train.dispatch": DISPATCH,
    "train.remat": REMAT,
    "eval.callbacks": CALLBACKS,
    "resume": reader.RESUME,
}


def check(config: RunConfig) -> None:
    """Raise one UsageError that names each knob with an illegal value."""
    with raise_with(find_problems(config)):
        check_choices(config)


def check_choices(config: RunConfig) -> None:
    """Raise UsageError if a knob, or a word of a tuple, is not a word of its table in CHOICES."""
    values = {key: get(config, key) for key in CHOICES}
    words = [(key, str(word)) for key, value in values.items() for word in _words(value)]
    wrong = [
        str(unknown(key, word, CHOICES[key], renamed.WORDS.get(key)))
        for key, word in words
        if word not in CHOICES[key] and not (key in OWN and imports.NAME.fullmatch(word))
    ]
    if wrong:
        raise join_problems(wrong)


def _words(value: Value) -> tuple[Value, ...]:
    if isinstance(value, tuple):
        return value
    return () if value is None else (value,)


def find_problems(config: RunConfig) -> Iterator[str]:
    """One line for each knob that is out of range, with key, legal range and value."""
    yield from schedules.find_problems(config.schedule, config.train.steps)
    yield from optim.find_problems(config.optim)
    for least, keys in MINIMUM.items():
        for key in keys:
            value = get(config, key)
            if isinstance(value, int | float) and value < least:
                yield f"config key {key!r} must be {least} or more{_or_none(key)}, not {value}"
    if not 0 <= config.seed < 2**32:
        yield f"seed must lie between 0 and 2^32 - 1, not {config.seed}"
    if config.optim.name == "schedule_free":
        if config.optim.ema is not None:
            text = "must be None for schedule_free, which keeps an average"
            yield f"config key 'optim.ema' {text}, not {config.optim.ema}"
        if config.train.precision == "bf16_params":
            yield "optim.name = 'schedule_free' needs float32 parameters: train.precision f32 or bf16, not bf16_params"
    if config.optim.ema is not None and not 0 < config.optim.ema < 1:
        yield f"config key 'optim.ema' must lie between 0 and 1, or be None, not {config.optim.ema}"
    if config.data.vocab_size is None and config.data.tokenizer == tokenizers.BPE:
        yield "config key 'data.tokenizer' = 'bpe' wants data.vocab_size, how many tokens to learn"
    yield from inputs.find_problems(config)


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
