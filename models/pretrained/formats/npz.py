"""Arrays of numpy's .npz files, looked at as safetensors' files are: names, shapes, each array on demand."""

import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

SUFFIX = ".npz"
NAMES = {  # of dtypes in safetensors
    **{"float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16", "void16": "BF16"},
    **{"int8": "I8", "uint8": "U8", "int32": "I32", "int64": "I64", "bool": "BOOL"},
}


class ArrayInfo(NamedTuple):
    """What is known of an array that is not read."""

    shape: tuple[int, ...]
    dtype: str

    def get_shape(self) -> tuple[int, ...]:
        """Its dims."""
        return self.shape

    def get_dtype(self) -> str:
        """The name of its dtype in safetensors."""
        return self.dtype


class NpzFile:
    """An .npz file. Nothing is unpickled; bfloat16, of which numpy saves two bytes without a name, is known by them."""

    def __init__(self, file: Path) -> None:
        """Look into the file. Raises many kinds for one that cannot be read, or has an array cut off."""
        self.zip = zipfile.ZipFile(file)
        self.slices = {name.removesuffix(".npy"): self._slice(name) for name in self.zip.namelist()}

    def keys(self) -> list[str]:
        """The names of the arrays."""
        return list(self.slices)

    def get_slice(self, name: str) -> ArrayInfo:
        """An array's shape and dtype."""
        return self.slices[name]

    def get_tensor(self, name: str) -> np.ndarray:
        """An array. Raises ValueError for one of Python's objects."""
        with self.zip.open(f"{name}.npy") as member:
            found = np.lib.format.read_array(member, allow_pickle=False)
        return found.view(ml_dtypes.bfloat16) if found.dtype == np.dtype("V2") else found

    def _slice(self, name: str) -> ArrayInfo:
        with self.zip.open(name) as member:
            version: Any = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
            have, want = self.zip.getinfo(name).file_size - member.tell(), math.prod(shape) * dtype.itemsize
        if have < want and not dtype.hasobject:
            raise ValueError(f"array {name!r} has {have:,} bytes, and {shape} of {dtype} takes {want:,}")
        return ArrayInfo(shape, NAMES.get(dtype.name, dtype.name))
