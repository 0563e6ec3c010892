"""The config.json of timm, which names an architecture and has few other keys."""

from collections.abc import Mapping

from documents import Json
from errors import UsageError, unknown
from models.core.types import Fields
from models.families import resnet, vgg
from models.pretrained.config_keys import Keys

HARMLESS = ("num_features", "pretrained_cfg", "label_names", "label_descriptions")
ARGUMENTS = {"in_chans": "inputs", "num_classes": "classes"}  # of model_args


def fields(keys: Keys, sizes: Mapping[str, Fields]) -> Fields:
    """Config fields: those of the architecture's size, with the number of classes and of image channels.

    Raises UsageError for an architecture that is not among the sizes, and for other arguments.
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


def config(c: resnet.Config | vgg.Config, sizes: Mapping[str, Fields], free: tuple[str, ...]) -> Json:
    """The config.json of a Config that equals one of the sizes except for the fields `free`. Raises UsageError."""
    free = (*free, "classes", "inputs", "compute")
    kept = {name: getattr(c, name) for name in free}
    name = next((name for name, size in sizes.items() if type(c)(**{**size, **kept}) == c), None)
    if name is None:
        raise UsageError(f"timm has {', '.join(sizes)}, with any {', '.join(free)}, but not {c}")
    return {
        "architecture": name,
        "num_classes": c.classes,
        "model_args": {"in_chans": c.inputs} if c.inputs != 3 else {},
    }
