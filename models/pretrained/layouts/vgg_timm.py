"""VGG in timm: the hidden layers are convolutions `pre_logits.fc1` and `fc2`, and the head is `head.fc`.

For images larger than 224 x 224, timm slides the hidden layers over a larger map; Canon pools the map.
"""

from collections.abc import Iterable
from functools import partial

from models.families.vgg import SIZES, Config
from models.pretrained.layouts import timm
from models.pretrained.mapping import Row, affine, batch_norm, conv, same

TYPES, HARMLESS = tuple(SIZES), timm.HARMLESS


fields = partial(timm.fields, sizes=SIZES)
config = partial(timm.config, sizes=SIZES, free=("dropout", "momentum"))


def feature_rows(c: Config) -> list[Row]:
    """The rows of the convolutions, which are numbered together with the norms, activations and pools between them."""
    found = []
    C = c.inputs
    n = 0
    for i, (O, depth) in enumerate(zip(c.channels, c.depths, strict=True)):
        for j in range(depth):
            path = f"stages/{i}/{j}"
            found += [conv(path, f"features.{n}", C, O, 3), same(f"{path}/bias", f"features.{n}.bias", O)]
            if c.norm == "batch":
                found += batch_norm(path, f"features.{n + 1}", O)
            C = O
            n = n + (3 if c.norm == "batch" else 2)
        n += 1
    return found


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    found = feature_rows(c)
    inputs = c.channels[-1]
    size = c.pool
    for i, F in enumerate(c.hidden):
        shape = (F, inputs, size, size)
        name = f"pre_logits.fc{i + 1}"
        if i == 0:
            found.append(conv("hidden/0", name, inputs, F, size))
        else:
            found.append(Row(f"hidden/{i}/kernel", f"{name}.weight", shape[:2], (1, 0), shape))
        found.append(same(f"hidden/{i}/bias", f"{name}.bias", F))
        inputs, size = F, 1
    return found + (affine("head", "head.fc", (inputs,), (c.classes,)) if c.hidden else [])


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the batch counts of torch, which our moments do not use."""
    return ("features.*.num_batches_tracked",)
