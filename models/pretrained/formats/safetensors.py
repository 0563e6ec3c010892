"""Tensors of safetensors or .npz files, by name and read on demand; writes safetensors. Nothing is unpickled."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from documents import Json, parse_json, read_settings, reject_lfs_pointer
from errors import UsageError
from models.pretrained.formats import npz

SUFFIX = ".safetensors"
INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}  # of parameters -> bytes
SHARD = 5 * 10**9  # bytes per file, at most, if there are several


class TensorReader:
    """The tensors of a folder or a file by name: shapes, dtypes, and each tensor on demand."""

    def __init__(self, path: str | Path) -> None:
        """Read the headers only. Raises UsageError that names the file and the problem."""
        from safetensors import safe_open

        self.path = Path(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, npz.NpzFile | safe_open] = {}
        self._where: dict[str, Path] = {}
        for file in files(self.path):
            reject_lfs_pointer(file)
            try:
                opened = npz.NpzFile(file) if file.suffix == npz.SUFFIX else safe_open(file, framework="numpy")
            except Exception as error:  # zipfile, zlib, numpy and safetensors raise exceptions of many types
                form = file.suffix.removeprefix(".")
                raise UsageError(f"{file} cannot be read as {form}: {_first_line(error)}") from None
            if file.suffix == SUFFIX:
                _header(file)  # raises for a name that occurs twice, of which the library takes the last
            for name in opened.keys():  # noqa: SIM118
                if name in self._files:
                    raise UsageError(f"{path} has tensor {name!r} in several files, one is {file.name}; give one file")
                part = opened.get_slice(name)
                self._files[name], self._where[name] = opened, file
                self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
        for name, where in _index(self.path).items():
            if name not in self._files:
                raise UsageError(f"{INDEX} of {path} has {name!r} in {where}, but that file does not have it")

    def read(self, name: str) -> np.ndarray:
        """One tensor with the dtype of the file. Raises UsageError for a dtype other than DTYPES."""
        if self.dtypes[name] not in DTYPES:
            raise UsageError(f"tensor {name!r} of {self.path} is of {self.dtypes[name]}; legal: {', '.join(DTYPES)}")
        return self.raw(name)

    def raw(self, name: str) -> np.ndarray:
        """One tensor of any dtype; 8-bit floats, which safetensors does not convert to NumPy, are read from bytes."""
        file = self._where[name]
        if self.dtypes[name] == "F8_E4M3":
            data, header = _header(file)
            start, stop = header[name]["data_offsets"]
            bytes_ = np.fromfile(file, ml_dtypes.float8_e4m3fn, stop - start, offset=data + start)
            return bytes_.reshape(self.shapes[name])
        try:
            return self._files[name].get_tensor(name)
        except Exception as error:  # as above
            raise UsageError(f"tensor {name!r} of {file} cannot be read: {_first_line(error)}") from None


def files(path: Path) -> list[Path]:
    """The safetensors files of a folder, by its index if it has one, else its .npz files; or the file itself.

    Raises UsageError if there are none, or only pickled ones, and for files of the index that do not exist.
    """
    if not path.is_dir():
        if path.suffix not in (SUFFIX, npz.SUFFIX):
            raise UsageError(
                f"{path} is neither a folder nor a {SUFFIX} or {npz.SUFFIX} file; "
                f"pickled weights may run code and are not read"
            )
        return [path]
    named = sorted(set(_index(path).values()))
    if named:
        for name in named:
            if Path(name).name != name or not name.endswith(SUFFIX):
                raise UsageError(f"{INDEX} of {path} names {name!r}, which is no {SUFFIX} file of that folder")
            if not (path / name).is_file():
                raise UsageError(f"{INDEX} of {path} names {name}, which does not exist")
        return [path / name for name in named]
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    found = sorted(path.glob(f"[!.]*{SUFFIX}")) or sorted(path.glob(f"[!.]*{npz.SUFFIX}"))
    if not found:
        pickled = sorted(file.name for kind in PICKLED for file in path.glob(kind))
        more = (
            f"; {pickled[0]} is pickled, may run code when it is read, and is not read: "
            f"save the model with safe_serialization=True, the default of transformers"
            if pickled
            else ""
        )
        raise UsageError(f"{path} has no {SUFFIX} file{more}")
    return found


def _index(path: Path) -> dict[str, str]:
    """The file of each tensor, by the folder's index. Raises UsageError.

    Empty without an index, and if there is a model.safetensors, which takes precedence as in transformers.
    """
    file = path / INDEX
    if not file.is_file() or (path / SINGLE_FILE).is_file():
        return {}
    found = read_settings(file).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UsageError(f"{file} is no index of tensors: weight_map must map their names to files")
    return found


def _header(file: Path) -> tuple[int, Json]:
    """Offset of the data of a safetensors file, and its header. Raises UsageError for a name that occurs twice."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return 8 + size, parse_json(opened.read(size), f"the header of {file}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def write(folder: Path, sizes: dict[str, int], read: Callable[[str], np.ndarray], limit: int = SHARD) -> None:
    """Write tensors into a folder: one file, or several of at most `limit` bytes with an index.

    `sizes` are the tensors' bytes by name; `read` makes a tensor.
    """
    from safetensors.numpy import save_file

    shards = list(_shards(sizes, limit))
    where = {}
    for i, names in enumerate(shards):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}{SUFFIX}"
        part = folder / f"{file}.part"
        save_file({name: np.ascontiguousarray(read(name)) for name in names}, part, metadata={"format": "pt"})
        os.replace(part, folder / file)
        where.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names
