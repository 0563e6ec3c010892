"""ResNet in torchvision and timm: `layer1.0.conv1.weight`, `layer2.0.downsample.0.weight`, `fc.bias`."""

from collections.abc import Iterable
from functools import partial

from models.families.resnet import SIZES, Config, ConvNorm, conv_norms, widths
from models.pretrained.layouts import timm
from models.pretrained.mapping import Row, affine, batch_norm, conv

NAMED = {name: size for name, size in SIZES.items() if "stem" not in size}
TYPES, HARMLESS = tuple(NAMED), timm.HARMLESS


fields = partial(timm.fields, sizes=NAMED)
config = partial(timm.config, sizes=NAMED, free=("zero_init", "momentum", "remat", "scan"))


def rows(c: Config) -> list[Row]:
    """The rows of the layout. The stem comes last, since other names end as its names do."""
    found = []
    for unit in sorted(conv_norms(c), key=lambda unit: unit.path == "stem"):
        kernel, norm, layers = _names(unit)
        found.append(conv(unit.path, kernel, unit.inputs, unit.outputs, unit.size, layers=layers))
        found += batch_norm(unit.path, norm, unit.outputs, layers=layers)
    head = affine("head", "fc", (widths(c)[-1],), (c.classes,)) if c.head == "classes" else []
    return found + head


def _names(unit: ConvNorm) -> tuple[str, str, tuple[int, ...] | None]:
    """The names of a convolution and of its norm, and the layers of their Rows."""
    if unit.path == "stem":
        return "conv1", "bn1", None
    _, stage, _, name = unit.path.split("/")
    at = f"layer{int(stage) + 1}.{'{}' if unit.blocks else 0}"
    if name == "shortcut":
        return f"{at}.downsample.0", f"{at}.downsample.1", None
    layers = tuple(range(1, unit.blocks + 1)) if unit.blocks else None
    return f"{at}.{name}", f"{at}.{name.replace('conv', 'bn')}", layers


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the batch counts of torch, which our moments do not use, and of a head that this network lacks."""
    return ("*.num_batches_tracked", *(("fc.*",) if c.head == "none" else ()))
