"""What a published network's folder decides of a config: loss, preprocessing, names of classes."""

import re
from collections.abc import Container, Sequence

from configs.knobs import RunConfig
from errors import UsageError, quote
from models import Model
from models.pretrained import class_names, preprocessing
from train.runtime import Runtime
from train.setup import inputs

PREPROCESSING_KNOBS = (
    "size",
    "crop_pct",
    "resize_mode",
    "interpolation",
    "mean",
    "std",
)  # knobs of `data` that a Hugging Face folder may set


def with_preprocessing(
    config: RunConfig, folder: str, model: Model, runtime: Runtime, given: Container[str]
) -> RunConfig:
    """The config with a folder's image preprocessing, except the knobs in `given`. Prints the settings in effect."""
    settings = {} if "detector" in model.traits else preprocessing.from_folder(folder)
    names = ("size",) if "detector" in model.traits else PREPROCESSING_KNOBS
    shape = getattr(model.config, "inputs", None)
    fixed = {"size": shape[:2]} if isinstance(shape, tuple) else {}
    keep_size = "data.size" in given and config.data.size is None
    changes = {
        f"data.{name}": value
        for name, value in {**fixed, **settings}.items()
        if f"data.{name}" not in given and not (keep_size and name in inputs.RESIZE_KNOBS)
    }
    config = config.replace(changes)
    in_effect = ", ".join(f"data.{name} = {getattr(config.data, name)}" for name in names)
    runtime.say(f"images  {in_effect}{'' if settings else f' ({folder} has no preprocessing settings)'}")
    return config


def normalise_names(names: Sequence[str]) -> list[str]:
    """Names reduced to lower-case letters and digits for comparison; unchanged if that makes two equal."""
    plain = [re.sub(r"[\W_]+", " ", name).strip().lower() for name in names]
    return plain if all(plain) and len(set(plain)) == len(plain) else list(names)


def default_loss(model: Model, folder: str) -> str:
    """The loss that evaluates a folder's network. Raises UsageError if there is none."""
    if "classifier" in model.traits and (problem := class_names.problem_type(folder)):
        if problem != "multi_label_classification":
            raise UsageError(
                f"{folder} has problem_type {quote(problem)}, by its config.json or its single output; supported are "
                f"single_label_classification and multi_label_classification"
            )
        return "sigmoid"
    tasks = (("causal language_model", "next_token"), ("classifier", "softmax"), ("detector", "detection"))
    for traits, loss in tasks:
        if set(traits.split()) <= model.traits:
            return loss
    raise UsageError(
        f"a {model.family} with head {model.config.head!r} has no task to evaluate; use its folder as init_from"
    )
