"""Darknet's networks: a .cfg says what is computed, a .weights holds the numbers, without names, layer after layer.

A .weights file begins with int32 major, minor, revision and the images seen in training, of 64 bits from version 0.2
on, else of 32. Then of each convolution float32: biases [O], with batch norm scales, means, variances [O], and weights
[O C I J]. Partial files, as darknet53.conv.74, hold the first layers.
"""

import os
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import models
from errors import UsageError
from models.darknet import Conv, sizes
from models.published import cfg as configuration
from models.published.layout import Row
from models.published.tensors import Tensors
from models.spec import flatten, unflatten
from models.yolo import Config

SUFFIX = ".weights"
PARTIAL = re.compile(r"\.conv\.(\d+)$")  # of a file with the first layers of a network


class Header(NamedTuple):
    """What stands before the numbers."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0  # images, in training

    @property
    def wide(self) -> bool:
        """Whether the images seen are of 64 bits."""
        return self.major * 10 + self.minor >= 2

    def bytes(self) -> bytes:
        """As they lie in a file."""
        version = np.array(self[:3], "<i4").tobytes()
        return version + np.array(self.seen, "<u8" if self.wide else "<u4").tobytes()


def is_darknet(path: str | Path) -> bool:
    """Whether a name is that of a file of Darknet's numbers."""
    return Path(path).suffix == SUFFIX or bool(PARTIAL.search(Path(path).name))


def header(path: str | Path) -> Header:
    """What stands before the numbers of a file. Raises UsageError for a file that cannot be read, or ends before."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(20)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    version = Header(*(int(n) for n in np.frombuffer(start[:12], "<i4"))) if len(start) >= 12 else Header()
    if len(start) < len(version.bytes()):
        raise UsageError(f"{path} has {len(start)} bytes, less than the header of a {SUFFIX} file")
    return version._replace(seen=int.from_bytes(start[12 : len(version.bytes())], "little"))


def tensors_of(c: Config) -> dict[str, tuple[int, ...]]:
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
    for name, shape in tensors_of(c).items():
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


class Weights(Tensors):
    """The arrays of a file by name, by the number of their layer: shapes, and each of them on demand."""

    def __init__(self, path: str | Path, c: Config, cutoff: int | None = None) -> None:
        """Look into the file, which holds all layers, or those before layer `cutoff`; a name may say that too.

        Raises UsageError for a file that is too short or too long, by how many numbers and at which layer.
        """
        self.path, self.header = Path(path), header(path)
        partial = PARTIAL.search(self.path.name)
        if cutoff is None and partial:
            cutoff = int(partial[1])
        if cutoff is not None and not 0 < cutoff <= len(c.layers):
            raise UsageError(f"cutoff = {cutoff} must be from 1 to {len(c.layers)}, the number of layers")
        whole = tensors_of(c)
        self.shapes = {name: s for name, s in whole.items() if cutoff is None or int(name.split(".")[0]) < cutoff}
        self.dtypes = dict.fromkeys(self.shapes, "F32")
        self._start = dict(zip(self.shapes, np.cumsum([0, *map(np.prod, self.shapes.values())]).tolist(), strict=False))
        skipped = len(self.header.bytes())
        size = self.path.stat().st_size - skipped
        if size % 4:
            raise UsageError(f"{path}: the {size:,} bytes after the header are no float32 numbers")
        self._check(size // 4, whole)
        self._numbers = np.memmap(self.path, "<f4", "r", skipped, (size // 4,)) if size else np.zeros(0, "<f4")

    def _check(self, have: int, whole: dict[str, tuple[int, ...]]) -> None:
        want = int(sum(map(np.prod, self.shapes.values())))
        if have == want:
            return
        ends, total = {}, 0  # how many numbers there are up to a layer
        for name, shape in whole.items():
            total += int(np.prod(shape))
            ends[int(name.split(".")[0])] = total
        last = max(int(name.split(".")[0]) for name in self.shapes)
        cutoffs = [at + 1 for at, end in ends.items() if end == have]
        hint = f"; it holds the first layers, which cutoff={cutoffs[0]} reads" if cutoffs else ""
        if have > want:
            raise UsageError(
                f"{self.path} holds {have - want:,} numbers more than the network takes up to layer {last}{hint}"
            )
        at = next(at for at, end in ends.items() if end > have)
        raise UsageError(f"{self.path} is {want - have:,} numbers too short: it ends before layer {at} is whole{hint}")

    def raw(self, name: str) -> np.ndarray:
        """One array."""
        start, shape = self._start[name], self.shapes[name]
        return np.asarray(self._numbers[start : start + int(np.prod(shape))]).reshape(shape)


def tensors(path: str | Path, c: Config) -> Weights:
    """A file's arrays, which `published.find` reads leaf by leaf. Raises UsageError for a file of another kind."""
    if not is_darknet(path):
        raise UsageError(f"{path} is no NAME{SUFFIX} or NAME.conv.N; in these a yolo's numbers are published")
    return Weights(path, c)


def read_cfg(cfg: str | Path, **overrides: Any) -> models.Model:
    """The model of a .cfg, fields overridden by name, as inputs=(416, 416, 3). Raises UsageError with file and line."""
    return models.build("yolo", **{**configuration.fields(cfg), **overrides})


def load(
    cfg: str | Path, weights: str | Path, *, cutoff: int | None = None, seed: int = 0, **overrides: Any
) -> tuple[models.Model, dict[str, Any]]:
    """A model and its variables from Darknet's two files -> (model, variables), float32.

    With `cutoff` the file holds the layers before that one, as 74 of darknet53.conv.74, and the others are drawn anew
    by `seed`. `overrides` are fields of the Config.

    Raises UsageError for a mistake in the .cfg, by its line, and for numbers that are too few or too many.
    """
    model = read_cfg(cfg, **overrides)
    found = Weights(weights, model.config, cutoff)
    there = {row.path: row for row in rows(model.config) if row.name in found.shapes}
    flat = {} if len(found.shapes) == len(rows(model.config)) else _paths(model.init(jax.random.key(seed)))
    flat |= {path: jnp.asarray(row.ours(found.read(row.name))) for path, row in there.items()}
    stats = {path: x for path, x in flat.items() if path.startswith("stats/")}
    params = {f"params/{path}": x for path, x in flat.items() if path not in stats}
    return model, {"params": {}, "stats": {"layers": {}}, **unflatten(params | stats)}


def save(
    model: models.Model, variables: Any, cfg: str | Path, weights: str | Path, *, header: Header | None = None
) -> None:
    """Write Darknet's two files of a model of family yolo; `header` is what the numbers begin with.

    Raises UsageError for another family.
    """
    if model.family != "yolo":
        raise UsageError(f"a {SUFFIX} file holds a model of family yolo, not {model.family}")
    leaves = _paths(variables)

    def numbers(file: BinaryIO) -> None:
        file.write((header or Header()).bytes())
        for row in rows(model.config):
            file.write(row.theirs(np.asarray(leaves[row.path], "<f4")).tobytes())

    for path, write in ((cfg, lambda file: file.write(configuration.text(model.config).encode())), (weights, numbers)):
        part = Path(f"{path}.part")
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)


def _paths(variables: Any) -> dict[str, Any]:
    """Leaves by the layout's paths."""
    return flatten(variables["params"]) | flatten({"stats": variables["stats"]})
