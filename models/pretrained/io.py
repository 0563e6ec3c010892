"""Pretrained models: reads and writes folders of the Hugging Face hub, safetensors files and Darknet's; reads .npz.

models/pretrained/layouts maps each family to the names and layouts of these files. Nothing is unpickled.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from documents import read_settings
from errors import UsageError, prefix_errors, unknown
from models.core.types import Leaf, Variables
from models.pretrained import class_names, multimodal, preprocessing
from models.pretrained.config_keys import Keys
from models.pretrained.formats import darknet_weights, npz
from models.pretrained.formats.quantised import DequantisingReader
from models.pretrained.formats.safetensors import INDEX, SUFFIX, TensorReader, write
from models.pretrained.layouts import LAYOUTS, TYPES, darknet, dialects, folder_layout, get_layout
from models.pretrained.mapping import Row
from models.pretrained.match import find, leaves
from models.registry import Model, build

DTYPES = ("float32", "bfloat16")


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a file of safetensors, .npz or Darknet's weights, or a folder with one of them or a .cfg."""
    path = Path(path)
    suffixes = (SUFFIX, npz.SUFFIX)
    inside = path.is_dir() and any(file.suffix.lower() in (*suffixes, darknet.CFG) for file in path.glob("[!.]*"))
    return path.suffix in suffixes or inside or darknet_weights.is_weights(path)


def load(family: str, file: str | Path, *, prefix: str = "", **overrides: Any) -> tuple[Model, Variables]:
    """A model and its variables, float32, from a safetensors or .npz file, without a config.json.

    `prefix` is the beginning of the tensors' names, such as `lstm.`; tensors without it are ignored. `overrides` are
    fields of the family's Config that cannot be inferred from tensor shapes: some for torch.nn.LSTM, all for most
    families, for example size="vgg16".

    Raises UsageError for a file that cannot be read, and for a tensor that is missing, superfluous or misshapen.
    """
    shapes = {k.removeprefix(prefix): v for k, v in TensorReader(file).shapes.items() if k.startswith(prefix)}
    layout = dialects(family)["own"]
    for field in getattr(layout, "REQUIRED_FIELDS", ()):
        if field not in overrides and "size" not in overrides:
            raise UsageError(f"{file}: cannot infer {field!r} of a {family} from tensor shapes; pass {field}=")
    inferred = layout.fields_from_shapes(shapes) if hasattr(layout, "fields_from_shapes") else {}
    model = build(family, **{**inferred, **overrides})
    return model, find(model, file, prefix=prefix).variables()


def save(model: Model, variables: Variables, file: str | Path, *, prefix: str = "", dialect: str | None = None) -> None:
    """Write a model's parameters to a safetensors file, under the names of its layout.

    `dialect` names a layout other than the family's own. Raises UsageError for a leaf that the layout has no name for.
    """
    from safetensors.numpy import save_file

    tensors = _tensors(model, variables, get_layout(model.family, dialect, "rows"))
    save_file({prefix + name: np.ascontiguousarray(read()) for name, (_, read) in tensors.items()}, file)


def load_pretrained(
    directory: str | Path,
    *,
    dtype: str = "float32",
    shardings: Callable[[Model], PyTree] | None = None,
    ignore: Iterable[str] = (),
    **overrides: Any,
) -> tuple[Model, Variables]:
    """A model and its variables from a folder of the Hugging Face hub, or with Darknet's .cfg and .weights.

    `dtype`, of the parameters, is float32 or bfloat16. Tensors are read one at a time, so that the host holds at most
    the model and its largest tensor. `shardings` is a function from the model to a tree of shardings for `variables`;
    None is the first device. `ignore` names keys of config.json to ignore. `overrides` are fields of the Config, for
    example pool="mean".

    Raises UsageError for a config.json of an unknown type, or with unknown keys that may change what is computed; for
    pickled files; and for a tensor that is missing, superfluous, misshapen or of integers.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    model = read_config(directory, ignore, **overrides)
    return model, find(model, directory).variables(shardings and shardings(model), dtype)


def read_config(directory: str | Path, ignore: Iterable[str] = (), **overrides: Any) -> Model:
    """The model that a folder's config.json or .cfg describes, with fields overridden by name. Raises UsageError."""
    with prefix_errors(str(directory)):
        return _read_config(directory, ignore, **overrides)


def _read_config(directory: str | Path, ignore: Iterable[str], **overrides: Any) -> Model:
    file = Path(directory) / "config.json"
    if not file.is_file():
        pair = darknet.find_pair(directory)
        if pair is None:
            raise UsageError(f"{directory} is no folder of the Hugging Face hub: it has no config.json")
        if ignored := next(iter(ignore), None):
            raise UsageError(f"ignore = {ignored!r} names a key of config.json, but {directory} has {pair[0].name}")
        return darknet.read_cfg(pair[0], **overrides)
    values = read_settings(file)
    kind = values.get("model_type", values.get("architecture"))  # the latter is timm's
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
    if depth > len(keys.tensors):  # checked before anything is built per layer
        raise UsageError(f"{directory} has {len(keys.tensors)} tensors, too few for {depth} layers")
    return model


def save_pretrained(
    model: Model,
    variables: Variables,
    directory: str | Path,
    *,
    dialect: str | None = None,
    classes: Sequence[str] = (),
    images: preprocessing.Settings | None = None,
    **keys: object,
) -> None:
    """Write a folder of the Hugging Face hub, which `transformers` loads, or Darknet's files for family yolo.

    `dialect` names a layout other than the family's first one with a config.json. `classes` are the names of the
    classes. `images` are the preprocessing settings that preprocessing.from_folder returns. `keys` are further keys of
    config.json, for example eos_token_id=2. Darknet's files have neither these keys nor `images`.
    Raises UsageError for a family or a Config that the format cannot express, for a folder that has a model already,
    and for another number of class names than classes.
    """
    layout = folder_layout(model.family, dialect)
    folder = Path(directory)
    if classes and len(classes) != (count := getattr(model.config, "classes", 0)):
        raise UsageError(f"classes = {[*classes]} has {len(classes)} names; the model has {count} classes")
    names = ("config.json", INDEX)
    suffixes = (SUFFIX, darknet.CFG, darknet_weights.SUFFIX)
    existing = [f.name for f in sorted(folder.glob("*")) if f.name in names or f.suffix.lower() in suffixes]
    if existing:
        raise UsageError(f"{folder} has {existing[0]} already; give a folder without a model")
    if hasattr(layout, "save_folder"):
        if keys:
            raise UsageError(f"family {model.family!r} is written without a config.json: no place for {[*keys]}")
        folder.mkdir(parents=True, exist_ok=True)
        layout.save_folder(model, variables, folder, classes)
        return
    settings = layout.config(model.config)
    tensors = _tensors(model, variables, layout)
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


def _tensors(model: Model, variables: Variables, layout: ModuleType) -> dict[str, tuple[int, Callable[[], np.ndarray]]]:
    """The file's tensors for the variables: name -> (bytes, a function that makes the tensor)."""
    rows = {row.path: row for row in layout.rows(model.config)}
    parts: dict[str, list[tuple[Row, Leaf, tuple[int, ...]]]] = {}
    for path, leaf in leaves(variables).items():
        if path not in rows:
            raise UsageError(f"the published layout of family {model.family!r} has no tensor for {path}")
        row = rows[path]
        for index, name in zip(np.ndindex(leaf.shape[: row.stacked_dims]), row.names(leaf.shape), strict=True):
            parts.setdefault(name, []).append((row, leaf, index))
    sizes = {name: math.prod(each[0][0].shape) * each[0][1].dtype.itemsize for name, each in parts.items()}
    tensors = {name: (sizes[name], partial(_assemble, each)) for name, each in parts.items()}
    copies = layout.copies(model.config) if hasattr(layout, "copies") else {}
    return tensors | {name: tensors[other] for name, other in copies.items()}


def _assemble(parts: list[tuple[Row, Leaf, tuple[int, ...]]]) -> np.ndarray:
    """A tensor of the file from its parts: (row, leaf, index of the stacked dims in the leaf) each."""
    row, leaf, _ = parts[0]
    assert sum(math.prod(row.size) for row, _, _ in parts) == math.prod(row.shape)
    tensor = np.empty(row.shape, leaf.dtype)
    for row, leaf, index in parts:
        row.write(np.asarray(leaf[index] if index else leaf), tensor)
    return tensor
