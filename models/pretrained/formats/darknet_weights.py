"""Darknet's .weights files: numbers without names, array after array, in the order of a network's layers.

A file begins with int32 major, minor, revision and the images seen in training, of 64 bits from version 0.2 on, else of
32; the rest is float32. Partial files, as darknet53.conv.74, hold the first layers.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from documents import reject_lfs_pointer
from errors import UsageError
from models.pretrained.formats.safetensors import TensorReader

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


def is_weights(path: str | Path) -> bool:
    """Whether a name is that of a file of Darknet's numbers."""
    return Path(path).suffix.lower() == SUFFIX or bool(PARTIAL.search(Path(path).name))


def header(path: str | Path) -> Header:
    """What stands before the numbers of a file. Raises UsageError for a file that cannot be read, or ends before."""
    reject_lfs_pointer(path)
    with Path(path).open("rb") as file:
        start = file.read(20)
    version = Header(*(int(n) for n in np.frombuffer(start[:12], "<i4"))) if len(start) >= 12 else Header()
    if len(start) < len(version.bytes()):
        raise UsageError(f"{path} has {len(start)} bytes, less than the header of a {SUFFIX} file")
    return version._replace(seen=int.from_bytes(start[12 : len(version.bytes())], "little"))


class WeightsReader(TensorReader):
    """The arrays of a file by name, `LAYER.KIND` by the layer's number: shapes, and each of them on demand."""

    def __init__(self, path: str | Path, whole: dict[str, tuple[int, ...]], layers: int, cutoff: int | None) -> None:
        """Look into a file with the arrays of all layers, in their order, or of those before layer `cutoff`.

        A name may say the cutoff too. Raises UsageError for a file too short, or too long where no cutoff is given, by
        how many numbers and at which layer.
        """
        self.path, self.header = Path(path), header(path)
        partial, asked = PARTIAL.search(self.path.name), cutoff is not None
        if cutoff is None and partial:
            cutoff = int(partial[1])
        if cutoff is not None and not 0 < cutoff <= layers:
            raise UsageError(f"cutoff = {cutoff} must be from 1 to {layers}, the number of layers")
        self.shapes = {name: s for name, s in whole.items() if cutoff is None or int(name.split(".")[0]) < cutoff}
        self.dtypes = dict.fromkeys(self.shapes, "F32")
        self._start = dict(zip(self.shapes, np.cumsum([0, *map(np.prod, self.shapes.values())]).tolist(), strict=False))
        skipped = len(self.header.bytes())
        size = self.path.stat().st_size - skipped
        if size % 4:
            raise UsageError(f"{path}: the {size:,} bytes after the header are no float32 numbers")
        self._check(size // 4, whole, (cutoff or layers) - 1, asked)
        self._numbers = np.memmap(self.path, "<f4", "r", skipped, (size // 4,)) if size else np.zeros(0, "<f4")

    def _check(self, have: int, whole: dict[str, tuple[int, ...]], last: int, asked: bool) -> None:
        want = int(sum(map(np.prod, self.shapes.values())))
        if have == want or (asked and have > want):
            return
        ends, total = {}, 0  # how many numbers there are up to a layer
        for name, shape in whole.items():
            total += int(np.prod(shape))
            ends[int(name.split(".")[0])] = total
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
