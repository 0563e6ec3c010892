"""Facts about data, loss and model that determine which knobs have an effect; the launcher rejects the others."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

from configs.knobs import RunConfig
from data import sources
from data.source import Source
from models import Model
from train.tasks import Task, settings
from train.update import optim, param_groups

COMPUTE_KNOBS = {  # knobs of `train` that change how a model computes, not what -> the part of the model that uses it
    "attention": "attention",
    "dispatch": "experts",
    "remat": "stacked layers",
    "scan": "stacked layers",
}
Facts = Mapping[str, tuple[Collection[str], str]]  # fact -> (its values, their name in messages)
Unread = Callable[[RunConfig, Facts], list[str]]  # -> a line for each assigned knob without effect under facts


def data_facts(config: RunConfig, example: Source, task: Task) -> Facts:
    """The facts that data and loss determine, and the keys that a user's own loss and optimizer read."""
    kind, name = example.row_type().kind, config.optim.name
    resized = kind == "images" and (
        config.data.size is not None or "random_resized_crop" in (config.data.augment or "")
    )
    sets = "several sets" if len(sources.split_names(config.data.name)) > 1 else "one set"
    return {
        "data": ({kind, "resized images"} if resized else {kind}, kind),
        "sets": ({sets}, sets),
        "task": ({task.output_kind}, f"loss {config.loss}"),
        "loss": ({f"train.{name}" for name in settings(config) if hasattr(task, name)}, config.loss),
        **({} if name in optim.OPTIMIZERS or optim.takes_config(name) else {"optim.name": ((), name)}),
    }


def model_facts(model: Model) -> Facts:
    """The facts that the model determines: the parts that have knobs of their own."""
    known = {field.name for field in dataclasses.fields(model.config)}
    parts = {part for name, part in COMPUTE_KNOBS.items() if name in known}
    if param_groups.decay_mask(model.specs["params"], True) != param_groups.decay_mask(model.specs["params"], False):
        parts.add("embeddings")
    if "carried" in model.traits:
        parts.add("carried state")
    return {"parts": (parts, f"family {model.family}")}
