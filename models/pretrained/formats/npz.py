"""NumPy's .npz files with the interface of safetensors: names, shapes, and each array on demand."""

import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

SUFFIX = ".npz"
NAMES = {  # NumPy dtype -> its name in safetensors
    **{"float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16", "void16": "BF16"},
    **{"int8": "I8", "uint8": "U8", "int32": "I32", "int64": "I64", "bool": "BOOL"},
}


class ArrayInfo(NamedTuple):
    """Shape and dtype of an array that has not been read."""

    shape: tuple[int, ...]
    dtype: str

    def get_shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.shape

    def get_dtype(self) -> str:
        """The name of its dtype in safetensors."""
        return self.dtype


class NpzFile:
    """An .npz file. Nothing is unpickled. Two bytes without a dtype, NumPy's form of bfloat16, are read as bfloat16."""

    def __init__(self, file: Path) -> None:
        """Read the headers. Raises exceptions of many types for a file that cannot be read, or is truncated."""
        self.zip = zipfile.ZipFile(file)
        self.slices = {name.removesuffix(".npy"): self._slice(name) for name in self.zip.namelist()}

    def keys(self) -> list[str]:
        """The names of the arrays."""
        return list(self.slices)

    def get_slice(self, name: str) -> ArrayInfo:
        """An array's shape and dtype."""
        return self.slices[name]

    def get_tensor(self, name: str) -> np.ndarray:
        """An array. Raises ValueError for one of Python objects."""
        with self.zip.open(f"{name}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array

    def _slice(self, name: str) -> ArrayInfo:
        with self.zip.open(name) as member:
            version: Any = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
            have = self.zip.getinfo(name).file_size - member.tell()
            want = math.prod(shape) * dtype.itemsize
        if have < want and not dtype.hasobject:
            raise ValueError(f"array {name!r} has {have:,} bytes; {shape} of {dtype} needs {want:,}")
        return ArrayInfo(shape, NAMES.get(dtype.name, dtype.name))
