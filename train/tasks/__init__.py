"""Tasks: losses, metrics and predictions. A task is a class of a module here, and an entry of TASKS."""

import dataclasses
from typing import Any

import imports
import renamed
from configs.knobs import RunConfig
from errors import UsageError, quote, unknown
from train.tasks.classification import Focal, Hinge, Perceptron, Quadratic, Softmax
from train.tasks.contrastive import Contrastive
from train.tasks.detection import Detection
from train.tasks.forward import Batch, Forward, Frozen, WeightedSums
from train.tasks.language import NextToken, Translation
from train.tasks.multilabel import Sigmoid
from train.tasks.regression import MSE
from train.tasks.task import SingleForwardTask, Task

__all__ = [
    "TASKS",
    "Batch",
    "Forward",
    "Frozen",
    "SingleForwardTask",
    "Task",
    "WeightedSums",
    "get_task",
    "make_task",
    "settings",
    "with_options",
]

TASKS: dict[str, Task] = {
    "softmax": Softmax(),
    "focal": Focal(),
    "sigmoid": Sigmoid(),
    "quadratic": Quadratic(),
    "hinge": Hinge(),
    "perceptron": Perceptron(),
    "mse": MSE(),
    "next_token": NextToken(),
    "translation": Translation(),
    "detection": Detection(),
    "contrastive": Contrastive(),
}


def get_task(name: str) -> Task:
    """A task by name, or of a user's class, `package.file:Class`. Raises UsageError for an unknown one."""
    if name in TASKS:
        return TASKS[name]
    if not imports.NAME.fullmatch(name):
        raise unknown("loss", name, TASKS, renamed.WORDS["loss"])
    key = f"config key 'loss' = {name!r}"
    make = imports.load_name(name, key)
    with imports.code_errors(key, name.rpartition(":")[0]):
        task = make()
    if not isinstance(task, Task):
        raise UsageError(f"{key} is {quote(task)}, not a train.tasks.Task")
    return task


def make_task(config: RunConfig) -> Task:
    """The task of a config, with the settings that hold in training and in evaluation.

    Raises UsageError for an unknown loss and for a value out of range.
    """
    task = get_task(config.loss)
    return _replace(task, {name: value for name, value in settings(config).items() if hasattr(task, name)})


def settings(config: RunConfig) -> dict[str, object]:
    """The knobs of `train` that are fields of the tasks that read them, by name."""
    return {
        "class_weights": config.train.class_weights,
        "focal_gamma": config.train.focal_gamma,
        "temperature": config.train.temperature,
    }


def with_options(task: Task, **options: float) -> Task:
    """The task with label smoothing, z-loss, … in training. Raises UsageError for an unsupported option."""
    for name, value in options.items():
        if value and not hasattr(task, name):
            able = ", ".join(k for k, other in TASKS.items() if hasattr(other, name))
            raise UsageError(f"config key 'train.{name}' = {value} needs one of the losses {able}")
        if not 0 <= value < 1:
            raise UsageError(f"config key 'train.{name}' must be in [0, 1), not {value}")
    return _replace(task, {name: value for name, value in options.items() if value})


def _replace(task: Any, fields: dict[str, Any]) -> Task:
    """The task with fields replaced; one without fields need not be a dataclass."""
    return dataclasses.replace(task, **fields) if fields else task
