"""Parameters as others publish them: safetensors files, read and written by one layout a family.

A layout lists for each leaf of a family's table the foreign tensor's name and how the two are laid out; it serves both
directions. Nothing is unpickled.
"""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

import models
from errors import UsageError, unknown
from models.published import rnn
from models.published.layout import Row
from models.spec import flatten

LAYOUTS: dict[str, ModuleType] = {"rnn": rnn}
SUFFIX = ".safetensors"


def files(path: str | Path) -> list[Path]:
    """The safetensors files that a path names: one, or those of a folder; none where it is neither."""
    path = Path(path)
    if path.is_dir():
        return sorted(path.glob(f"*{SUFFIX}"))
    return [path] if path.suffix == SUFFIX else []


def leaves(model: models.Model, path: str | Path) -> dict[str, np.ndarray]:
    """What files hold for a model of a family with a layout: leaf -> value, in the leaf's own dims, by its path.

    A tensor that the layout does not know keeps its name. What all known names begin with, as `lstm.`, is left out.

    Raises UsageError for files that cannot be read, and where several such networks lie in them.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in files(path):
        for name, value in read(file).items():
            if name in tensors:
                raise UsageError(
                    f"{path} has the tensor {name!r} in several files, {file.name} among them; give one file"
                )
            tensors[name] = value
    rows = _layout(model.family).rows(model.config)
    prefixes = sorted(
        {name.removesuffix(row.name) for row in rows for name in tensors if name.endswith(f".{row.name}")}
    )
    if len(prefixes) > 1:
        raise UsageError(f"{path} holds several networks: {', '.join(prefixes)}")
    start = prefixes[0] if prefixes else ""
    known = {start + row.name: row for row in rows}
    found = {}
    for name, value in tensors.items():
        row = known.get(name)
        found[row.path if row else name] = row.ours(value) if row and value.shape == row.shape else value
    return found


def load(family: str, file: str | Path, *, prefix: str = "", **overrides: Any) -> tuple[models.Model, dict[str, Any]]:
    """A model and its variables from a safetensors file; the tensors' shapes tell the config -> (model, variables).

    `prefix` is what the tensors' names begin with, as `lstm.`; tensors without it are not looked at. `overrides` are
    fields of the family's Config that no shape tells.

    Raises UsageError for a file that is no safetensors, and for a tensor that is missing, surplus or misshapen.
    """
    tensors = {k.removeprefix(prefix): v for k, v in read(file).items() if k.startswith(prefix)}
    layout = _layout(family)
    model = models.build(family, **{**layout.fields({k: v.shape for k, v in tensors.items()}), **overrides})
    leaves = flatten(model.specs["params"])
    rows = _rows(model, leaves)
    names = {row.name for row in rows.values()}
    for name in sorted(names ^ set(tensors)):
        state = "is missing" if name in names else "is not part of this network"
        raise UsageError(f"{file}: tensor {prefix + name!r} {state}")
    params: dict[str, Any] = {}
    for path, spec in leaves.items():
        row = rows[path]
        if tensors[row.name].shape != row.shape:
            raise UsageError(f"{file}: tensor {prefix + row.name!r} is {tensors[row.name].shape}, not {row.shape}")
        value = row.ours(tensors[row.name])
        assert value.shape == spec.shape, path
        _put(params, path, jax.numpy.asarray(value, jax.numpy.float32))
    return model, {"params": params}


def save(model: models.Model, variables: Any, file: str | Path, *, prefix: str = "") -> None:
    """Write a model's parameters under the names that others give them. Raises UsageError for a leaf that has none."""
    from safetensors.numpy import save_file

    leaves = flatten(jax.device_get(variables["params"]))
    rows = _rows(model, leaves).values()
    save_file({prefix + r.name: np.ascontiguousarray(r.theirs(leaves[r.path])) for r in rows}, file)


def _rows(model: models.Model, leaves: Iterable[str]) -> dict[str, Row]:
    """The layout's rows by path, one for each leaf."""
    rows = {row.path: row for row in _layout(model.family).rows(model.config)}
    for path in leaves:
        if path not in rows:
            raise UsageError(f"the published layout of family {model.family!r} has no tensor for {path}")
    return rows


def read(file: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, by name."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} cannot be read as safetensors: {str(error).splitlines()[0]}") from None


def _layout(family: str) -> ModuleType:
    if family not in LAYOUTS:
        raise unknown("family with a published layout", family, LAYOUTS)
    return LAYOUTS[family]


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *folders, leaf = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = value
