"""VGG as Darknet has it: of each convolution and each connected layer biases, then weights, in a .weights file.

Layers are numbered from 0 by those that have numbers. There is no other way from names to a batch norm of ours, which
has a bias before it too; the published file has none. It wants pixels from -1 to 1, as its `[crop]` makes them.
"""

from pathlib import Path

from errors import UsageError
from models.families.vgg import Config
from models.pretrained.formats.darknet_weights import WeightsReader
from models.pretrained.mapping import Row


def rows(c: Config) -> list[Row]:
    """The layout, in the order of the file. Raises UsageError for a Config with batch norm."""
    if c.norm != "none":
        raise UsageError(f"vgg: norm = {c.norm!r} has no place in Darknet's files; there it is 'none'")
    found: list[Row] = []

    def layer(path: str, split: tuple[int, ...], order: tuple[int, ...]) -> None:
        at = len(found) // 2
        found.append(Row(f"{path}/bias", f"{at}.biases", split[:1], (0,), split[:1]))
        found.append(Row(f"{path}/kernel", f"{at}.weights", split, order, split))

    C, widths = c.inputs, (*c.hidden, c.classes)
    for i, (O, depth) in enumerate(zip(c.channels, c.depths, strict=True)):
        for j in range(depth):
            layer(f"stages/{i}/{j}", (O, C, 3, 3), (2, 3, 1, 0))
            C = O
    for i, F in enumerate(widths):
        path = "head" if i == len(c.hidden) else f"hidden/{i}"
        layer(path, (F, widths[i - 1]) if i else (F, C, c.pool, c.pool), (1, 0) if i else (2, 3, 1, 0))
    return found


def open_weights(path: str | Path, c: Config) -> WeightsReader:
    """A file's arrays. Raises UsageError."""
    layout = rows(c)
    return WeightsReader(path, {row.name: row.shape for row in layout}, len(layout) // 2, None)
