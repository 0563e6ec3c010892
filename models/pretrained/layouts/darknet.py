"""Darknet's detectors: a .cfg says what is computed, a .weights file holds the numbers, a .names file names classes.

Of each convolution there are biases [O], with batch norm scales, means, variances [O], and weights [O C I J].
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
from models.families.yolo import Config
from models.pretrained.formats import darknet_cfg as configuration
from models.pretrained.formats.darknet_weights import SUFFIX, Header, WeightsReader
from models.pretrained.mapping import Row
from models.registry import Model, build

CFG = ".cfg"
NAMES = "obj.names"  # as it is written; any *.names is read
OTHER_FORMATS = ("config.json", "[!.]*.safetensors", "[!.]*.npz")  # beside which a .cfg is none of Darknet's


def array_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The arrays of a whole file, in its order: shapes by the layer's number and what they are, as `0.weights`."""
    shapes, found = sizes(c.layers, c.image, 5 + c.classes), dict[str, tuple[int, ...]]()
    for at, layer in enumerate(c.layers):
        if isinstance(layer, Conv):
            C, O = (shapes[at - 1] if at else c.image)[2], shapes[at][2]
            for name in ("biases", *(("scales", "means", "variances") if layer.norm else ())):
                found[f"{at}.{name}"] = (O,)
            found[f"{at}.weights"] = (O, C, layer.size, layer.size)
    return found


def rows(c: Config) -> list[Row]:
    """The layout."""
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
    """A file's arrays, which `published.find` reads leaf by leaf. Raises UsageError."""
    return WeightsReader(path, array_shapes(c), len(c.layers), cutoff)


def find_pair(folder: str | Path) -> tuple[Path, Path] | None:
    """The description and the numbers that lie in a folder; None where there is no description, or what others have.

    Raises UsageError where there are several of either, or no numbers.
    """
    found = [_files(folder, suffix) for suffix in (CFG, SUFFIX)]
    if not found[0] or any(next(Path(folder).glob(other), None) for other in OTHER_FORMATS):
        return None
    for suffix, files in zip((CFG, SUFFIX), found, strict=True):
        if len(files) != 1:
            names = f": {', '.join(file.name for file in files)}" if files else ""
            raise UsageError(f"{folder} must hold one {suffix} file of Darknet's, and holds {len(files)}{names}")
    return found[0][0], found[1][0]


def class_names(folder: str | Path) -> tuple[str, ...] | None:
    """The names of the classes, one a line of the .names file beside the .cfg; None where the folder has no such file.

    Of several files the one that a .data file calls `names` counts, or else the one called as the .cfg. Raises
    UsageError where neither picks one, and for other than one name for each class of the .cfg.
    """
    found = find_pair(folder)
    files = _files(folder, ".names")
    if found is None or not files:
        return None
    told = {Path(line).name for data in _files(folder, ".data") for line in _settings(data, "names")}
    chosen = [f for f in files if f.name in told] or [f for f in files if f.stem == found[0].stem] or files
    if len(chosen) > 1:
        listed = ", ".join(f.name for f in chosen)
        raise UsageError(f"{folder} has {listed}: keep one, or name one by `names = ` in a .data file")
    lines = [line.strip() for line in read_lines(chosen[0])]
    while lines and not lines[-1]:
        lines.pop()
    count = configuration.fields(found[0])["classes"]
    if len(lines) != count or "" in lines:
        raise UsageError(f"{chosen[0]} must have {count} names, one a line, for the classes of {found[0].name}")
    return tuple(lines)


def _files(folder: str | Path, suffix: str) -> list[Path]:
    """The files of a folder with a suffix in any case, without hidden ones, as a Mac's `._` files."""
    files = (file for file in Path(folder).glob("[!.]*") if file.suffix.lower() == suffix)
    return sorted(files)


def _settings(file: Path, key: str) -> list[str]:
    """What a .data file sets a key to."""
    pairs = (line.partition("=") for line in read_lines(file))
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def read_cfg(cfg: str | Path, **overrides: Any) -> Model:
    """The model of a .cfg, fields overridden by name, as inputs=(416, 416, 3). Raises UsageError with file and line."""
    return build("yolo", **{**configuration.fields(cfg), **overrides})


def load(
    cfg: str | Path, weights: str | Path, *, cutoff: int | None = None, seed: int = 0, **overrides: Any
) -> tuple[Model, dict[str, Any]]:
    """A model and its variables from Darknet's two files -> (model, variables), float32.

    With `cutoff` the layers before that one are read, as 74 of darknet53.conv.74, and the others are drawn anew by
    `seed`. `overrides` are fields of the Config.

    Raises UsageError for a mistake in the .cfg, by its line, and for numbers that are too few or too many.
    """
    model = read_cfg(cfg, **overrides)
    found = open_weights(weights, model.config, cutoff)
    there = {row.path: row for row in rows(model.config) if row.name in found.shapes}
    flat = {} if len(found.shapes) == len(rows(model.config)) else _leaves_by_path(model.init(jax.random.key(seed)))
    flat |= {path: jnp.asarray(row.to_leaf(found.read(row.name))) for path, row in there.items()}
    stats = {path: x for path, x in flat.items() if path.startswith("stats/")}
    params = {f"params/{path}": x for path, x in flat.items() if path not in stats}
    return model, {"params": {}, "stats": {"layers": {}}, **unflatten(params | stats)}


def save(model: Model, variables: Any, cfg: str | Path, weights: str | Path, *, header: Header | None = None) -> None:
    """Write Darknet's two files of a model of family yolo; `header` is what the numbers begin with.

    Raises UsageError for another family.
    """
    if model.family != "yolo":
        raise UsageError(f"a {SUFFIX} file holds a model of family yolo, not {model.family}")
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


def save_folder(model: Model, variables: Any, folder: Path, classes: Sequence[str] = ()) -> None:
    """Write Darknet's files, yolo.cfg and yolo.weights, and obj.names of names of classes, into a folder."""
    save(model, variables, folder / f"yolo{CFG}", folder / f"yolo{SUFFIX}")
    if classes:
        (folder / NAMES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def _leaves_by_path(variables: Any) -> dict[str, Any]:
    """Leaves by the layout's paths."""
    return flatten(variables["params"]) | flatten({"stats": variables["stats"]})
