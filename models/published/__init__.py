"""Parameters as others publish them: safetensors files, read and written by one layout a family.

A layout lists for each leaf of a family's table the foreign tensor's name and how the two are laid out; it serves both
directions. Nothing is unpickled.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

import models
from errors import UsageError, unknown
from models.published import rnn
from models.spec import flatten

LAYOUTS: dict[str, ModuleType] = {"rnn": rnn}


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
    rows = {row.path: row for row in layout.rows(model.config)}
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
        _put(params, path, jax.numpy.asarray(value))
    return model, {"params": params}


def save(model: models.Model, variables: Any, file: str | Path, *, prefix: str = "") -> None:
    """Write a model's parameters under the names that others give them."""
    from safetensors.numpy import save_file

    leaves = flatten(jax.device_get(variables["params"]))
    rows = _layout(model.family).rows(model.config)
    save_file({prefix + r.name: np.ascontiguousarray(r.theirs(leaves[r.path])) for r in rows}, file)


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
