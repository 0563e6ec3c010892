"""ResNet on the Hugging Face hub: `resnet.encoder.stages.0.layers.1.layer.0.convolution.weight`, and so on."""

from collections.abc import Iterable

from documents import Json
from errors import UsageError, unknown
from models.core.types import Fields
from models.families.resnet import BLOCKS, Config, ConvNorm, conv_norms, widths
from models.pretrained.config_keys import Keys, hf_activation, label_keys, placeholder_names
from models.pretrained.layouts import resnet_timm
from models.pretrained.mapping import Row, affine, batch_norm, conv

TYPES = ("resnet",)
ARCHITECTURE = {"none": "ResNetModel", "classes": "ResNetForImageClassification"}
HEADS = {theirs: ours for ours, theirs in ARCHITECTURE.items()}
PREFIX = "resnet."
HARMLESS = ("out_features", "out_indices", "stage_names")  # of a backbone
DIALECTS = {"timm": resnet_timm}


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers' ResNetConfig."""
    has_classifier = any("classifier." in name for name in keys.tensors)
    head = keys.architecture(HEADS, "classes" if has_classifier else "none")
    block = keys.take("layer_type", default="bottleneck")
    if block not in BLOCKS:
        raise unknown("layer_type of config.json", block, BLOCKS)
    return {
        "inputs": keys.take("num_channels", default=3),
        "stem_channels": keys.take("embedding_size", default=64),
        "block": block,
        "depths": tuple(keys.take("depths", default=[3, 4, 6, 3], kind=list)),
        "channels": tuple(keys.take("hidden_sizes", default=[256, 512, 1024, 2048], kind=list)),
        "stride_first": keys.take("downsample_in_bottleneck", default=False, kind=bool),
        "halve_first": keys.take("downsample_in_first_stage", default=False, kind=bool),
        "activation": keys.activation("hidden_act", default="relu"),
        "head": head,
        "classes": keys.classes(),
    }


def config(c: Config) -> Json:
    """The config.json of a Config, without fields that only training uses: `momentum` and `zero_init`.

    Raises UsageError for a Config that transformers' ResNet cannot express.
    """
    fixed = dict(stem="imagenet", shortcut="projection", norm="batch", inner_activation="relu", eps=1e-5)
    if c.block == "bottleneck":
        fixed["widening"] = 1
    for name, value in fixed.items():
        if getattr(c, name) != value:
            raise UsageError(f"a ResNet of transformers has {name} = {value!r}, not {getattr(c, name)!r}")
    return {
        "model_type": "resnet",
        "architectures": [ARCHITECTURE[c.head]],
        "num_channels": c.inputs,
        "embedding_size": c.stem_channels,
        "layer_type": c.block,
        "depths": list(c.depths),
        "hidden_sizes": widths(c)[1:],
        "downsample_in_bottleneck": c.stride_first,
        "downsample_in_first_stage": c.halve_first,
        "hidden_act": hf_activation(c.activation),
        **label_keys(placeholder_names(c.classes)),
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    found = []
    for unit in conv_norms(c):
        name, layers = _name(unit)
        found.append(conv(unit.path, f"{name}.convolution", unit.inputs, unit.outputs, unit.size, layers=layers))
        found += batch_norm(unit.path, f"{name}.normalization", unit.outputs, layers=layers)
    head = affine("head", "classifier.1", (widths(c)[-1],), (c.classes,)) if c.head == "classes" else []
    return found + head


def _name(unit: ConvNorm) -> tuple[str, tuple[int, ...] | None]:
    """The name before `.convolution`, and the layers of its Row."""
    if unit.path == "stem":
        return f"{PREFIX}embedder.embedder", None
    _, stage, _, name = unit.path.split("/")
    part = "shortcut" if name == "shortcut" else f"layer.{int(name.removeprefix('conv')) - 1}"
    layers = tuple(range(1, unit.blocks + 1)) if unit.blocks else None
    return f"{PREFIX}encoder.stages.{stage}.layers.{'{}' if unit.blocks else 0}.{part}", layers


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the batch counts of torch, which our moments do not use, and of a head that this network lacks."""
    return ("*.num_batches_tracked", *(("classifier.1.*",) if c.head == "none" else ()))
