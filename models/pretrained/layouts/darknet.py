"""Darknet's detectors: a .cfg describes the network, a .weights file has the parameters, a .names file the classes.

Each convolution has biases [O], with batch norm also scales, means and variances [O], and then weights [O C I J].
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from documents import read_lines
from errors import UsageError
from models.blocks.vision.darknet import Conv, sizes
from models.core.spec import flatten, unflatten
from models.core.types import Leaf, Variables
from models.families.yolo import Config
from models.pretrained.formats import darknet_cfg as configuration
from models.pretrained.formats.darknet_weights import SUFFIX, Header, WeightsReader
from models.pretrained.mapping import Row
from models.registry import Model, build

CFG = ".cfg"
NAMES = "obj.names"  # written; any *.names is read
OTHER_FORMATS = ("config.json", "[!.]*.safetensors", "[!.]*.npz")  # beside these a .cfg is not Darknet's


def array_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of all arrays in the order of a complete file, by layer number and kind, as `0.weights`."""
    outputs = sizes(c.layers, c.image, 5 + c.classes)
    shapes = dict[str, tuple[int, ...]]()
    for at, layer in enumerate(c.layers):
        if isinstance(layer, Conv):
            C, O = (outputs[at - 1] if at else c.image)[2], outputs[at][2]
            for name in ("biases", *(("scales", "means", "variances") if layer.norm else ())):
                shapes[f"{at}.{name}"] = (O,)
            shapes[f"{at}.weights"] = (O, C, layer.size, layer.size)
    return shapes


def rows(c: Config) -> list[Row]:
    """The rows of the layout, in the order of the file."""
    found = []
    for name, shape in array_shapes(c).items():
        at, kind = name.split(".")
        norm = "norm/" if c.layers[int(at)].norm else ""  # type: ignore[union-attr]
        path = {
            "biases": f"layers/{at}/{norm}bias",
            "scales": f"layers/{at}/norm/scale",
            "means": f"stats/layers/{at}/mean",
            "variances": f"stats/layers/{at}/var",
            "weights": f"layers/{at}/kernel",
        }[kind]
        found.append(Row(path, name, shape, (2, 3, 1, 0) if kind == "weights" else (0,), shape))
    return found


def open_weights(path: str | Path, c: Config, cutoff: int | None = None) -> WeightsReader:
    """A reader of a file's arrays, for `pretrained.find`. Raises UsageError."""
    return WeightsReader(path, array_shapes(c), len(c.layers), cutoff)


def find_pair(folder: str | Path) -> tuple[Path, Path] | None:
    """The .cfg and the .weights of a folder; None if it has no .cfg, or files of another format.

    Raises UsageError for several files of either kind, and for a .cfg without .weights.
    """
    found = [_files(folder, suffix) for suffix in (CFG, SUFFIX)]
    if not found[0] or any(next(Path(folder).glob(other), None) for other in OTHER_FORMATS):
        return None
    for suffix, files in zip((CFG, SUFFIX), found, strict=True):
        if len(files) != 1:
            names = f": {', '.join(file.name for file in files)}" if files else ""
            raise UsageError(f"{folder} must have one {suffix} file of Darknet's, not {len(files)}{names}")
    return found[0][0], found[1][0]


def class_names(folder: str | Path) -> tuple[str, ...] | None:
    """The class names, one per line of the .names file beside the .cfg; None without such a file.

    Of several files the one that a .data file sets as `names` is read, else the one named like the .cfg. Raises
    UsageError if neither decides, and unless there is one name for each class of the .cfg.
    """
    found = find_pair(folder)
    files = _files(folder, ".names")
    if found is None or not files:
        return None
    named = set()
    for data in _files(folder, ".data"):
        named |= {Path(line).name for line in _settings(data, "names")}
    chosen = [f for f in files if f.name in named] or [f for f in files if f.stem == found[0].stem] or files
    if len(chosen) > 1:
        listed = ", ".join(f.name for f in chosen)
        raise UsageError(f"{folder} has {listed}: keep one, or name one with `names = ` in a .data file")
    lines = [line.strip() for line in read_lines(chosen[0])]
    while lines and not lines[-1]:
        lines.pop()
    count = configuration.fields(found[0])["classes"]
    if len(lines) != count or "" in lines:
        raise UsageError(f"{chosen[0]} must have {count} names, one per line, for the classes of {found[0].name}")
    return tuple(lines)


def _files(folder: str | Path, suffix: str) -> list[Path]:
    """The files of a folder with a suffix in any case, without hidden ones such as macOS's `._` files."""
    files = (file for file in Path(folder).glob("[!.]*") if file.suffix.lower() == suffix)
    return sorted(files)


def _settings(file: Path, key: str) -> list[str]:
    """The values of a key in a .data file."""
    pairs = (line.partition("=") for line in read_lines(file))
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def read_cfg(cfg: str | Path, **overrides: Any) -> Model:
    """The model of a .cfg, with fields overridden, as inputs=(416, 416, 3). Raises UsageError with file and line."""
    return build("yolo", **{**configuration.fields(cfg), **overrides})


def load(
    cfg: str | Path, weights: str | Path, *, cutoff: int | None = None, seed: int = 0, **overrides: Any
) -> tuple[Model, Variables]:
    """A model and its variables, float32, from Darknet's two files.

    With `cutoff`, the layers before it are read, as 74 for darknet53.conv.74, and the others are initialized from
    `seed`. `overrides` are fields of the Config.

    Raises UsageError for a mistake in the .cfg, with its line, and for a .weights file of the wrong length.
    """
    model = read_cfg(cfg, **overrides)
    reader = open_weights(weights, model.config, cutoff)
    present = {row.path: row for row in rows(model.config) if row.name in reader.shapes}
    complete = len(reader.shapes) == len(rows(model.config))
    flat = {} if complete else _leaves_by_path(model.init(jax.random.key(seed)))
    flat |= {path: jnp.asarray(row.to_leaf(reader.read(row.name))) for path, row in present.items()}
    stats = {path: x for path, x in flat.items() if path.startswith("stats/")}
    params = {f"params/{path}": x for path, x in flat.items() if path not in stats}
    return model, {"params": {}, "stats": {"layers": {}}, **unflatten(params | stats)}


def save(
    model: Model, variables: Variables, cfg: str | Path, weights: str | Path, *, header: Header | None = None
) -> None:
    """Write Darknet's two files of a model of family yolo, with `header` in the .weights.

    Raises UsageError for another family.
    """
    if model.family != "yolo":
        raise UsageError(f"a {SUFFIX} file has a model of family yolo, not {model.family}")
    leaves = _leaves_by_path(variables)

    def numbers(file: BinaryIO) -> None:
        file.write((header or Header()).bytes())
        for row in rows(model.config):
            file.write(row.to_tensor(np.asarray(leaves[row.path], "<f4")).tobytes())

    for path, write in (
        (cfg, lambda file: file.write(configuration.to_text(model.config).encode())),
        (weights, numbers),
    ):
        part = Path(f"{path}.part")
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)


def save_folder(model: Model, variables: Variables, folder: Path, classes: Sequence[str] = ()) -> None:
    """Write yolo.cfg, yolo.weights and, with class names, obj.names into a folder."""
    save(model, variables, folder / f"yolo{CFG}", folder / f"yolo{SUFFIX}")
    if classes:
        (folder / NAMES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def _leaves_by_path(variables: Variables) -> dict[str, Leaf]:
    """Leaves by the layout's paths."""
    return flatten(variables["params"]) | flatten({"stats": variables["stats"]})
