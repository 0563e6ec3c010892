"""The config.json of timm: it names an architecture of a list, and says little more."""

from collections.abc import Mapping
from typing import Any

from errors import UsageError, unknown
from models.pretrained.mapping import Keys

HARMLESS = ("num_features", "pretrained_cfg", "label_names", "label_descriptions")
ARGUMENTS = {"in_chans": "inputs", "num_classes": "classes"}  # of model_args


def fields(keys: Keys, sizes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Fields of a Config: those of the architecture's size, with its classes and its channels of an image.

    Raises UsageError for an architecture that is not among the sizes, and for arguments that may change it otherwise.
    """
    name = str(keys.require("architecture"))
    if name not in sizes:
        raise unknown("architecture of config.json", name, sizes)
    keys.require_value("global_pool", "avg")
    arguments = keys.take("model_args", default={}, kind=dict)
    for key in arguments:
        if key not in ARGUMENTS:
            raise unknown("key in model_args of config.json", key, ARGUMENTS)
    given = Keys({"num_classes": keys.count("num_classes", default=1000), **arguments})
    return {**sizes[name], "classes": given.count("num_classes"), "inputs": given.count("in_chans", default=3)}


def config(c: Any, sizes: Mapping[str, dict[str, Any]], free: tuple[str, ...]) -> dict[str, Any]:
    """A config.json of a Config that is one of the sizes but for the fields `free`. Raises UsageError for another."""
    free = (*free, "classes", "inputs", "compute")
    kept = {name: getattr(c, name) for name in free}
    name = next((name for name, size in sizes.items() if type(c)(**{**size, **kept}) == c), None)
    if name is None:
        raise UsageError(f"a network of timm is one of {', '.join(sizes)}, but for {', '.join(free)}; this one is {c}")
    return {
        "architecture": name,
        "num_classes": c.classes,
        "model_args": {"in_chans": c.inputs} if c.inputs != 3 else {},
    }
