"""Reads Darknet's .weights files: arrays without names, in the order of a network's layers.

A file begins with int32 major, minor, revision and the number of images seen in training, of 64 bits from version 0.2
on, else of 32; the rest is float32. Partial files, such as darknet53.conv.74, have the first layers.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from documents import reject_lfs_pointer
from errors import UsageError
from models.pretrained.formats.safetensors import TensorReader

SUFFIX = ".weights"
PARTIAL = re.compile(r"\.conv\.(\d+)$")  # end of the name of a file with the first layers


class Header(NamedTuple):
    """The header of a file."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0  # images seen in training

    @property
    def wide(self) -> bool:
        """Whether `seen` has 64 bits."""
        return self.major * 10 + self.minor >= 2

    def bytes(self) -> bytes:
        """The header as bytes of a file."""
        version = np.array(self[:3], "<i4").tobytes()
        return version + np.array(self.seen, "<u8" if self.wide else "<u4").tobytes()


def is_weights(path: str | Path) -> bool:
    """Whether a file has the name of a .weights or a partial file."""
    return Path(path).suffix.lower() == SUFFIX or bool(PARTIAL.search(Path(path).name))


def header(path: str | Path) -> Header:
    """The header of a file. Raises UsageError for a file that cannot be read, or is shorter than its header."""
    reject_lfs_pointer(path)
    with Path(path).open("rb") as file:
        start = file.read(20)
    version = Header(*(int(n) for n in np.frombuffer(start[:12], "<i4"))) if len(start) >= 12 else Header()
    if len(start) < len(version.bytes()):
        raise UsageError(f"{path} has {len(start)} bytes, fewer than the header of a {SUFFIX} file")
    return version._replace(seen=int.from_bytes(start[12 : len(version.bytes())], "little"))


class WeightsReader(TensorReader):
    """The arrays of a file by name, `LAYER.KIND` with the layer's number: shapes, and each array on demand."""

    def __init__(self, path: str | Path, complete: dict[str, tuple[int, ...]], layers: int, cutoff: int | None) -> None:
        """Open a file with the arrays of all layers, in their order, or of the layers before `cutoff`.

        `complete` are the shapes of a complete file. The name of a partial file gives a cutoff too. Raises UsageError
        for a file that is too short, or too long without a given cutoff, with the number of values and the layer.
        """
        self.path = Path(path)
        self.header = header(path)
        partial = PARTIAL.search(self.path.name)
        asked = cutoff is not None
        if cutoff is None and partial:
            cutoff = int(partial[1])
        if cutoff is not None and not 0 < cutoff <= layers:
            raise UsageError(f"cutoff = {cutoff} must be from 1 to {layers}, the number of layers")
        self.shapes = {name: s for name, s in complete.items() if cutoff is None or int(name.split(".")[0]) < cutoff}
        self.dtypes = dict.fromkeys(self.shapes, "F32")
        self._start = dict(zip(self.shapes, np.cumsum([0, *map(np.prod, self.shapes.values())]).tolist(), strict=False))
        skipped = len(self.header.bytes())
        size = self.path.stat().st_size - skipped
        if size % 4:
            raise UsageError(f"{path}: the {size:,} bytes after the header are not a multiple of 4, as of float32")
        self._check(size // 4, complete, (cutoff or layers) - 1, asked)
        self._numbers = np.memmap(self.path, "<f4", "r", skipped, (size // 4,)) if size else np.zeros(0, "<f4")

    def _check(self, have: int, complete: dict[str, tuple[int, ...]], last: int, asked: bool) -> None:
        want = int(sum(map(np.prod, self.shapes.values())))
        if have == want or (asked and have > want):
            return
        ends, total = {}, 0  # layer -> the number of values up to it
        for name, shape in complete.items():
            total += int(np.prod(shape))
            ends[int(name.split(".")[0])] = total
        cutoffs = [at + 1 for at, end in ends.items() if end == have]
        hint = f"; it has the first layers, which cutoff={cutoffs[0]} reads" if cutoffs else ""
        if have > want:
            raise UsageError(
                f"{self.path} has {have - want:,} values more than the network up to layer {last} needs{hint}"
            )
        at = next(at for at, end in ends.items() if end > have)
        raise UsageError(f"{self.path} is {want - have:,} values too short: it ends in layer {at}{hint}")

    def raw(self, name: str) -> np.ndarray:
        """One array."""
        start = self._start[name]
        shape = self.shapes[name]
        return np.asarray(self._numbers[start : start + int(np.prod(shape))]).reshape(shape)
