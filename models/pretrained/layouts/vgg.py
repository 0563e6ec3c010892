"""VGG in torchvision: `features.0.weight`, `features.1.running_mean`, `classifier.6.bias`, and so on.

The rows of the first `classifier` weight are channel by channel, [F, C*Y*X]; ours are [Y X C F].
"""

from collections.abc import Iterable

from models.families.vgg import Config
from models.pretrained.layouts import vgg_darknet, vgg_timm
from models.pretrained.layouts.vgg_timm import feature_rows
from models.pretrained.mapping import Row, affine, same

DIALECTS = {"timm": vgg_timm, "darknet": vgg_darknet}


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    found = feature_rows(c)
    widths = (*c.hidden, c.classes)
    for i, width in enumerate(widths):
        path = "head" if i == len(c.hidden) else f"hidden/{i}"
        name = f"classifier.{3 * i}"
        if i == 0:
            split = (width, c.channels[-1], c.pool, c.pool)
            shape = (width, c.channels[-1] * c.pool**2)
            found.append(Row(f"{path}/kernel", f"{name}.weight", split, (2, 3, 1, 0), shape))
            found.append(same(f"{path}/bias", f"{name}.bias", width))
        else:
            found += affine(path, name, (widths[i - 1],), (width,))
    return found


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the batch counts of torch, which our moments do not use."""
    return ("features.*.num_batches_tracked",)
