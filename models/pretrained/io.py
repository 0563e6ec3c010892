"""Parameters as others publish them: safetensors files (and .npz), or Darknet's, read and written.

How each family's lie there, models/pretrained/layouts/__init__.py says. Nothing is unpickled.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from documents import read_settings
from errors import UsageError, prefix_errors, unknown
from models.pretrained import class_names, multimodal, preprocessing
from models.pretrained.formats import darknet_weights, npz
from models.pretrained.formats.quantised import DequantisingReader
from models.pretrained.formats.safetensors import INDEX, SUFFIX, TensorReader, write
from models.pretrained.layouts import LAYOUTS, TYPES, darknet, dialects, folder_layout, get_layout
from models.pretrained.mapping import Keys, Row
from models.pretrained.match import find, leaves
from models.registry import Model, build

DTYPES = ("float32", "bfloat16")


def is_pretrained(path: str | Path) -> bool:
    """Whether a path names safetensors or .npz, a file or a folder that holds some, or Darknet's."""
    path = Path(path)
    forms = (SUFFIX, npz.SUFFIX)
    inside = path.is_dir() and any(file.suffix.lower() in (*forms, darknet.CFG) for file in path.glob("[!.]*"))
    return path.suffix in forms or inside or darknet_weights.is_weights(path)


def load(family: str, file: str | Path, *, prefix: str = "", **overrides: Any) -> tuple[Model, dict[str, Any]]:
    """A model and its variables from safetensors, whose shapes may tell the config -> (model, variables), float32.

    `prefix` is what the tensors' names begin with, as `lstm.`; tensors without it are not looked at. `overrides` are
    fields of the family's Config that no shape tells: some for torch.nn.LSTM's, all for most families, as size="vgg16".

    Raises UsageError for a file that is no safetensors, and for a tensor that is missing, surplus or misshapen.
    """
    shapes = {k.removeprefix(prefix): v for k, v in TensorReader(file).shapes.items() if k.startswith(prefix)}
    layout = dialects(family)["own"]
    for field in getattr(layout, "REQUIRED_FIELDS", ()):
        if field not in overrides and "size" not in overrides:
            raise UsageError(f"{file}: no shape gives the {field} of a {family}; give {field}=")
    told = layout.fields_from_shapes(shapes) if hasattr(layout, "fields_from_shapes") else {}
    model = build(family, **{**told, **overrides})
    return model, find(model, file, prefix=prefix).variables()


def save(model: Model, variables: Any, file: str | Path, *, prefix: str = "", dialect: str | None = None) -> None:
    """Write a model's parameters under the names that others give them. Raises UsageError for a leaf that has none.

    `dialect` names a layout other than the family's own.
    """
    from safetensors.numpy import save_file

    tensors = _tensors(model, variables, get_layout(model.family, dialect, "rows"))
    save_file({prefix + name: np.ascontiguousarray(read()) for name, (_, read) in tensors.items()}, file)


def load_pretrained(
    directory: str | Path,
    *,
    dtype: str = "float32",
    shardings: Any = None,
    ignore: Iterable[str] = (),
    **overrides: Any,
) -> tuple[Model, dict[str, Any]]:
    """A model and its variables from a folder as the Hugging Face hub has it, or with Darknet's two files.

    Parameters come as float32 or bfloat16; tensor by tensor, so that the host holds the model and its largest tensor at
    most. `shardings` is a function from the model to a tree of shardings for `variables`; None is the first device.
    `ignore` names keys of config.json to pass over. `overrides` are fields of the Config, as pool="mean".

    Raises UsageError for a config.json of an unknown type, or with keys that may change what is computed; for pickled
    files; and for a tensor that is missing, surplus, misshapen or of integers.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    model = read_config(directory, ignore, **overrides)
    return model, find(model, directory).variables(shardings and shardings(model), dtype)


def read_config(directory: str | Path, ignore: Iterable[str] = (), **overrides: Any) -> Model:
    """The model of a folder's config.json or .cfg, its fields overridden by name. Raises UsageError."""
    with prefix_errors(str(directory)):
        return _read_config(directory, ignore, **overrides)


def _read_config(directory: str | Path, ignore: Iterable[str], **overrides: Any) -> Model:
    file = Path(directory) / "config.json"
    if not file.is_file():
        pair = darknet.find_pair(directory)
        if pair is None:
            raise UsageError(f"{directory} is no folder of the Hugging Face hub: it has no config.json")
        if ignored := next(iter(ignore), None):
            raise UsageError(f"ignore = {ignored!r} is of keys in a config.json, and {directory} has {pair[0].name}")
        return darknet.read_cfg(pair[0], **overrides)
    values = read_settings(file)
    kind = values.get("model_type", values.get("architecture"))  # as timm has it
    if kind is None:
        run = ", but a run: it goes to --workdir, or to --config.init_from" if "optim" in values else ""
        raise UsageError(f"{directory} is no folder of the Hugging Face hub{run or ': config.json has no model_type'}")
    kind = str(kind)
    if kind in multimodal.TEXT_TYPES:
        values = multimodal.text_config(values, ignore)
        kind = values["model_type"]
    if kind not in TYPES:
        raise unknown("model_type of config.json", kind, [*TYPES, *multimodal.TEXT_TYPES])
    layout = next(one for one in dialects(TYPES[kind]).values() if kind in getattr(one, "TYPES", ()))
    keys = Keys(values, DequantisingReader(directory).shapes, ignore)
    fields = layout.fields(keys)
    keys.refuse_unread(layout.HARMLESS)
    model = build(TYPES[kind], **{**fields, **overrides})
    if hasattr(LAYOUTS[TYPES[kind]], "check_overrides"):
        LAYOUTS[TYPES[kind]].check_overrides(fields, model.config)
    depth = getattr(model.config, "depth", 0)
    if depth > len(keys.tensors):  # before anything is made for each layer
        raise UsageError(f"{directory} holds {len(keys.tensors)} tensors, too few for {depth} layers")
    return model


def save_pretrained(
    model: Model,
    variables: Any,
    directory: str | Path,
    *,
    dialect: str | None = None,
    classes: Sequence[str] = (),
    images: dict[str, Any] | None = None,
    **keys: Any,
) -> None:
    """Write a folder as the Hugging Face hub has it, which `transformers` loads, or of family yolo Darknet's files.

    `dialect` names a layout other than the first of the family's that has a place there. `classes` are the names of the
    classes; `images` says how images were made ready, as preprocessing.from_folder does. `keys` are further ones of
    config.json, as eos_token_id=2. Darknet's files have no place for these and for `images`.
    Raises UsageError for a family or a Config that has no place there, for a folder that holds a model already, and for
    names of another number of classes.
    """
    layout, folder = folder_layout(model.family, dialect), Path(directory)
    if classes and len(classes) != (count := getattr(model.config, "classes", 0)):
        raise UsageError(f"classes = {[*classes]} are {len(classes)} names; the network tells {count} apart")
    names, endings = ("config.json", INDEX), (SUFFIX, darknet.CFG, darknet_weights.SUFFIX)
    held = [f.name for f in sorted(folder.glob("*")) if f.name in names or f.suffix.lower() in endings]
    if held:
        raise UsageError(f"{folder} holds {held[0]} already; give a folder without a model")
    if hasattr(layout, "save_folder"):
        if keys:
            raise UsageError(f"family {model.family!r} is written without a config.json, which {[*keys]} are keys of")
        folder.mkdir(parents=True, exist_ok=True)
        layout.save_folder(model, variables, folder, classes)
        return
    settings, tensors = layout.config(model.config), _tensors(model, variables, layout)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(variables["params"])}
    settings |= {"torch_dtype": min(dtypes), **class_names.keys(settings, classes)}
    folder.mkdir(parents=True, exist_ok=True)
    if images:
        channels = int(np.atleast_1d(model.config.inputs)[-1])
        if "architecture" in settings:
            settings |= preprocessing.timm_keys(images, channels)
        else:
            preprocessing.write(folder, images, channels)
    settings |= keys
    write(folder, {name: size for name, (size, _) in tensors.items()}, lambda name: tensors[name][1]())
    part = folder / "config.json.part"
    part.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    os.replace(part, folder / "config.json")


def _tensors(model: Model, variables: Any, layout: ModuleType) -> dict[str, tuple[int, Any]]:
    """The foreign tensors of parameters, by name: bytes, and a function that fetches each."""
    rows = {row.path: row for row in layout.rows(model.config)}
    parts: dict[str, list[tuple[Row, Any, tuple[int, ...]]]] = {}
    for path, leaf in leaves(variables).items():
        if path not in rows:
            raise UsageError(f"the published layout of family {model.family!r} has no tensor for {path}")
        row = rows[path]
        for at, name in zip(np.ndindex(leaf.shape[: row.stacked_dims]), row.names(leaf.shape), strict=True):
            parts.setdefault(name, []).append((row, leaf, at))
    sizes = {name: math.prod(each[0][0].shape) * each[0][1].dtype.itemsize for name, each in parts.items()}
    found = {name: (sizes[name], partial(_assemble, each)) for name, each in parts.items()}
    more = layout.copies(model.config) if hasattr(layout, "copies") else {}
    return found | {name: found[other] for name, other in more.items()}


def _assemble(parts: list[tuple[Row, Any, tuple[int, ...]]]) -> np.ndarray:
    """A foreign tensor of which each leaf has a part: of (row, leaf, where in the leaf) each."""
    row, leaf, _ = parts[0]
    assert sum(math.prod(row.size) for row, _, _ in parts) == math.prod(row.shape)
    tensor = np.empty(row.shape, leaf.dtype)
    for row, leaf, at in parts:
        row.write(np.asarray(leaf[at] if at else leaf), tensor)
    return tensor
