"""VGG in Darknet: a .weights file with biases, then weights, of each convolutional and connected layer.

Layers with parameters are numbered from 0. Batch norm is not supported: ours has a bias before it too. The published
file has none. It expects pixels in [-1, 1], as its `[crop]` makes them.
"""

from pathlib import Path

from errors import UsageError
from models.families.vgg import Config
from models.pretrained.formats.darknet_weights import WeightsReader
from models.pretrained.mapping import Row


def rows(c: Config) -> list[Row]:
    """The rows of the layout, in the order of the file. Raises UsageError for a Config with batch norm."""
    if c.norm != "none":
        raise UsageError(f"vgg: norm = {c.norm!r} must be 'none' for Darknet's files")
    found: list[Row] = []

    def layer(path: str, split: tuple[int, ...], order: tuple[int, ...]) -> None:
        at = len(found) // 2
        found.append(Row(f"{path}/bias", f"{at}.biases", split[:1], (0,), split[:1]))
        found.append(Row(f"{path}/kernel", f"{at}.weights", split, order, split))

    C = c.inputs
    widths = (*c.hidden, c.classes)
    for i, (O, depth) in enumerate(zip(c.channels, c.depths, strict=True)):
        for j in range(depth):
            layer(f"stages/{i}/{j}", (O, C, 3, 3), (2, 3, 1, 0))
            C = O
    for i, F in enumerate(widths):
        path = "head" if i == len(c.hidden) else f"hidden/{i}"
        layer(path, (F, widths[i - 1]) if i else (F, C, c.pool, c.pool), (1, 0) if i else (2, 3, 1, 0))
    return found


def open_weights(path: str | Path, c: Config) -> WeightsReader:
    """A reader of a file's arrays. Raises UsageError."""
    layout = rows(c)
    return WeightsReader(path, {row.name: row.shape for row in layout}, len(layout) // 2, None)
