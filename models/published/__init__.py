"""Parameters as others publish them: safetensors files (and .npz), read and written by one layout a family.

A layout lists for each leaf of a family's table the foreign tensor's name and how the two are laid out; it serves both
directions. A layout of the Hugging Face hub has also

- TYPES, the `model_type`s it reads, and HARMLESS, keys to pass over;
- `fields(keys)`, a Config's fields from a config.json and the tensors' shapes, and `config(c)`, a config.json's from a
  Config;
- perhaps `overridden(fields, c)`, which refuses a Config that those fields do not go with;
- PREFIX, which files of the bare network leave out, `ignored(c, names)`, patterns of those tensors that are no
  parameters, TIED, of tensors that may be copies of others, and perhaps `copies(c)`, of tensors to write under a second
  name too.

One that is read without a config.json may have `fields_of(shapes)`, a Config's fields from the shapes alone.

Where others name one family's tensors in several ways, its layout has DIALECTS: further layouts, by name. What is read
is in that of which most names are there; what is written, in the first that serves, or in the one that is asked for.

Nothing is unpickled.
"""

import fnmatch
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from errors import UsageError, unknown
from models.published import (
    bert,
    beside,
    darknet,
    deepseek,
    gemma,
    gemma4,
    gpt,
    gpt_oss,
    grok,
    llama,
    llama4,
    mixtral,
    npz,
    resnet,
    rnn,
    transformer,
    vgg,
    vit,
    weights,
)
from models.published.layout import Keys, Row
from models.published.quantised import Plain
from models.published.tensors import INDEX, SUFFIX, Tensors, write
from models.spec import flatten, unflatten

LAYOUTS: dict[str, ModuleType] = {
    **{"rnn": rnn, "gpt": gpt, "llama": llama, "mixtral": mixtral, "gpt_oss": gpt_oss, "bert": bert},
    **{"gemma": gemma, "deepseek": deepseek, "llama4": llama4, "grok": grok},
    "gemma4": gemma4,
    **{"vgg": vgg, "resnet": resnet, "vit": vit, "yolo": darknet, "transformer": transformer},
}


def dialects(family: str) -> dict[str, ModuleType]:
    """The layouts of a family by name, first its `own`. Raises UsageError for a family without any."""
    if family not in LAYOUTS:
        raise unknown("family with a published layout", family, LAYOUTS)
    return {"own": LAYOUTS[family], **getattr(LAYOUTS[family], "DIALECTS", {})}


TYPES = {
    kind: family for family in LAYOUTS for layout in dialects(family).values() for kind in getattr(layout, "TYPES", ())
}
DTYPES = ("float32", "bfloat16")
STATS = "stats/"


def is_published(path: str | Path) -> bool:
    """Whether a path names safetensors or .npz, a file or a folder that holds some, or a file of Darknet's."""
    path = Path(path)
    forms = (SUFFIX, npz.SUFFIX)
    inside = path.is_dir() and any(file.suffix in forms for file in path.iterdir())
    return path.suffix in forms or inside or weights.is_weights(path)


@dataclass(frozen=True)
class Found:
    """What files hold for a model: the tensors of each leaf, and those that are for none."""

    model: models.Model
    tensors: Tensors
    rows: dict[str, Row]  # by the leaf's path
    names: dict[str, list[str]]  # of the leaf's tensors, in the files, in the order of its stack
    left: tuple[str, ...]  # names that no leaf has a place for
    passed: tuple[str, ...] = ()  # names that are known, and not of this network's parameters

    def read(self, path: str, sharding: jax.sharding.Sharding | None = None, dtype: Any = jnp.float32) -> jax.Array:
        """One leaf, placed tensor by tensor where it is to be; what is beyond the tensors, padding, is 0."""
        row, shape = self.rows[path], self.shape(path)
        stack = np.array(self.names[path], object).reshape(shape[: row.stacked])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            cut = np.asarray(stack[index[: row.stacked]], object)
            sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
            made = _aligned(tuple(sizes), np.dtype(dtype))
            inner = index[row.stacked :]
            for at in np.ndindex(cut.shape):
                value = row.ours(self.tensors.read(str(cut[at])))[inner]
                made[(*at, *(slice(n) for n in value.shape))] = value
            return made

        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.make_array_from_callback(shape, sharding, part)

    def shape(self, path: str) -> tuple[int, ...]:
        """Of a leaf."""
        return leaves(self.model.specs)[path].shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What there is: leaves all of whose tensors are there, with their own shape if a tensor does not fit.

        Tensors that are for no leaf, or for one that is not whole, have their own names.
        """
        have = self.tensors.shapes
        found = {name: have[name] for name in self.left}
        for path, names in self.names.items():
            there = {name: have[name] for name in names if name in have}
            wrong = [shape for shape in there.values() if not self.rows[path].takes(shape)]
            if len(there) < len(names):
                found |= there
            else:
                found[path] = wrong[0] if wrong else self.shape(path)
        return found

    @property
    def held(self) -> int:
        """How many tensors there are for leaves."""
        return sum(name in self.tensors.shapes for names in self.names.values() for name in names)

    @property
    def told(self) -> str:
        """What there is in words: tensors for leaves, leaves without any, tensors for none."""
        have = self.held
        fresh = sum(map(len, self.names.values())) - have
        over = len(self.passed) + len(self.left)
        named = f" ({', '.join([*self.left, *self.passed][:4])}{', …' if over > 4 else ''})" if over else ""
        return f"{have:,} tensors, {fresh:,} fresh, {over:,} left over{named}"

    def variables(self, shardings: Any = None, dtype: str = "float32") -> dict[str, Any]:
        """All leaves, placed by a tree of shardings (on the first device where None). Raises UsageError as `check`.

        `dtype` is that of the parameters; statistics are float32.
        """
        self.check()
        where = leaves(shardings) if shardings is not None else {}
        read = {
            path: self.read(path, where.get(path), "float32" if path.startswith(STATS) else dtype) for path in self.rows
        }
        params = {"params": unflatten({path: x for path, x in read.items() if not path.startswith(STATS)})}
        return params | unflatten({path: x for path, x in read.items() if path.startswith(STATS)})

    def check(self) -> None:
        """Raise UsageError for the first tensors that are missing, surplus or misshapen."""
        wrong = []
        for path in leaves(self.model.specs):
            if path not in self.rows:
                raise UsageError(f"the published layout of family {self.model.family!r} has no tensor for {path}")
            row = self.rows[path]
            have = [name for name in self.names[path] if name in self.tensors.shapes]
            wrong += [f"tensor {name!r} is missing" for name in self.names[path] if name not in self.tensors.shapes]
            shapes = {name: self.tensors.shapes[name] for name in have}
            wrong += [f"tensor {k!r} is {v}, not {row.shape}" for k, v in shapes.items() if not row.takes(v)]
        wrong += [f"tensor {name!r} is not part of this network" for name in self.left]
        if wrong:
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise UsageError(f"{self.tensors.path}: {'; '.join(wrong[:4])}{more}")


def leaves(variables: Any) -> dict[str, Any]:
    """Parameters by their path, and running statistics by theirs after `stats/`; of variables, or of a table."""
    stats = {f"{STATS}{path}": leaf for path, leaf in flatten(variables.get("stats", {})).items()}
    return flatten(variables["params"]) | stats


def find(model: models.Model, path: str | Path, *, prefix: str | None = None) -> Found:
    """Look in files for a model of a family with a layout; nothing is read yet.

    Names may lack the layout's PREFIX, or have a further one, as `lstm.`: `prefix`, or else what all known names begin
    with. Raises UsageError for files that cannot be looked into, and where several such networks lie in them.
    """
    layouts = dialects(model.family).values()
    ours = weights.is_weights(path)  # Darknet's, whose layouts have a reader of their own
    fit = [one for one in layouts if hasattr(one, "tensors") == ours]
    if not fit:
        forms = "safetensors" if ours else f"NAME{weights.SUFFIX} or NAME.conv.N"
        raise UsageError(f"{path}: the numbers of family {model.family!r} are published as {forms}")
    files = [one.tensors(path, model.config) if ours else Plain(path) for one in fit]
    found = [_find(model, file, one, prefix) for file, one in zip(files, fit, strict=True)]
    return max(found, key=lambda one: one.held)


def _find(model: models.Model, tensors: Tensors, layout: ModuleType, prefix: str | None) -> Found:
    rows = {row.path: row for row in layout.rows(model.config)}
    base, first = getattr(layout, "PREFIX", ""), next(iter(rows.values()))
    core = first.names((1,) * first.stacked)[0].removeprefix(base)
    ends = {name.removesuffix(core) for name in tensors.shapes if name == core or name.endswith(f".{core}")}
    patterns = layout.ignored(model.config, tensors.shapes) if hasattr(layout, "ignored") else ()

    def there(name: str, start: str) -> str:
        if name.startswith(base):
            return start + name.removeprefix(base)
        around = "" if base and start.startswith(base) else start  # model.language_model. has its head outside of all
        return (start.removesuffix(base) if f".{start}".endswith(f".{base}") else around) + name

    def ignored(name: str, start: str) -> bool:
        return any(fnmatch.fnmatchcase(name, there(pattern, start)) for pattern in patterns)

    ends = {end for end in ends if not any(ignored(end + core, other) for other in ends - {end})}
    if prefix is None and len(ends) > 1:
        raise UsageError(f"{tensors.path} holds several networks: {', '.join(sorted(ends))}; `prefix` says which")
    start = prefix if prefix is not None else next(iter(ends), base)

    shapes = leaves(model.specs)
    names = {}
    for leaf in (leaf for leaf in rows if leaf in shapes):
        new, old = ([there(n, start) for n in rows[leaf].names(shapes[leaf].shape, older)] for older in (False, True))
        both = zip(new, old, strict=True)
        names[leaf] = [o if o in tensors.shapes and n not in tensors.shapes else n for n, o in both]
    known = {name for group in names.values() for name in group}
    twins = {there(k, start): there(v, start) for k, v in getattr(layout, "TIED", {}).items()}
    left: list[str] = []
    passed: list[str] = []
    for name in tensors.shapes:
        if name in known or not name.startswith(prefix or ""):
            continue
        twin = name in twins and _equal(tensors, name, twins[name])
        apart = start != base and beside.is_beside(name)
        (passed if twin or apart or ignored(name, start) else left).append(name)
    return Found(model, tensors, {p: rows[p] for p in names}, names, tuple(left), tuple(passed))


def _equal(tensors: Tensors, one: str, two: str) -> bool:
    same = two in tensors.shapes and tensors.shapes[one] == tensors.shapes[two]
    return same and np.array_equal(tensors.read(one), tensors.read(two))


def load(family: str, file: str | Path, *, prefix: str = "", **overrides: Any) -> tuple[models.Model, dict[str, Any]]:
    """A model and its variables from safetensors, whose shapes may tell the config -> (model, variables), float32.

    `prefix` is what the tensors' names begin with, as `lstm.`; tensors without it are not looked at. `overrides` are
    fields of the family's Config that no shape tells: some for torch.nn.LSTM's, all for most families, as size="vgg16".

    Raises UsageError for a file that is no safetensors, and for a tensor that is missing, surplus or misshapen.
    """
    shapes = {k.removeprefix(prefix): v for k, v in Tensors(file).shapes.items() if k.startswith(prefix)}
    layout = dialects(family)["own"]
    told = layout.fields_of(shapes) if hasattr(layout, "fields_of") else {}
    model = models.build(family, **{**told, **overrides})
    return model, find(model, file, prefix=prefix).variables()


def save(
    model: models.Model, variables: Any, file: str | Path, *, prefix: str = "", dialect: str | None = None
) -> None:
    """Write a model's parameters under the names that others give them. Raises UsageError for a leaf that has none.

    `dialect` names a layout other than the family's own.
    """
    from safetensors.numpy import save_file

    tensors = _tensors(model, variables, layout_of(model.family, dialect, "rows"))
    save_file({prefix + name: np.ascontiguousarray(read()) for name, (_, read) in tensors.items()}, file)


def load_pretrained(
    directory: str | Path,
    *,
    dtype: str = "float32",
    shardings: Any = None,
    ignore: Iterable[str] = (),
    **overrides: Any,
) -> tuple[models.Model, dict[str, Any]]:
    """A model and its variables from a folder as the Hugging Face hub has it: config.json and safetensors.

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


def read_config(directory: str | Path, ignore: Iterable[str] = (), **overrides: Any) -> models.Model:
    """The model of a folder's config.json, its fields overridden by name. Raises UsageError."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise UsageError(f"{directory} is no folder of the Hugging Face hub: it has no config.json")
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{file} holds no settings by name")
    kind = str(values.get("model_type", values.get("architecture")))  # as timm has it
    if kind in beside.OUTER:
        values = beside.text_of(values, ignore)
        kind = values["model_type"]
    if kind not in TYPES:
        raise unknown("model_type of config.json", kind, [*TYPES, *beside.OUTER])
    layout = next(one for one in dialects(TYPES[kind]).values() if kind in getattr(one, "TYPES", ()))
    keys = Keys(values, Plain(directory).shapes, ignore)
    fields = layout.fields(keys)
    keys.done(layout.HARMLESS)
    model = models.build(TYPES[kind], **{**fields, **overrides})
    if hasattr(LAYOUTS[TYPES[kind]], "overridden"):
        LAYOUTS[TYPES[kind]].overridden(fields, model.config)
    depth = getattr(model.config, "depth", 0)
    if depth > len(keys.tensors):  # before anything is made for each layer
        raise UsageError(f"{directory} holds {len(keys.tensors)} tensors, too few for {depth} layers")
    return model


def save_pretrained(
    model: models.Model, variables: Any, directory: str | Path, *, dialect: str | None = None, **keys: Any
) -> None:
    """Write a folder as the Hugging Face hub has it, which `transformers` loads: config.json and safetensors.

    `dialect` names a layout other than the first of the family's that has a place there. `keys` are further ones of
    config.json, as eos_token_id=2.
    Raises UsageError for a family or a Config that has no place there, and for a folder that holds a model already.
    """
    layout, folder = layout_of(model.family, dialect, "config"), Path(directory)
    held = [f.name for f in (folder / "config.json", folder / INDEX, *folder.glob(f"*{SUFFIX}")) if f.exists()]
    if held:
        raise UsageError(f"{folder} holds {held[0]} already; give a folder without a model")
    settings, tensors = layout.config(model.config), _tensors(model, variables, layout)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(variables["params"])}
    settings |= {"torch_dtype": min(dtypes), **keys}
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, {name: size for name, (size, _) in tensors.items()}, lambda name: tensors[name][1]())
    part = folder / "config.json.part"
    part.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    os.replace(part, folder / "config.json")


def _tensors(model: models.Model, variables: Any, layout: ModuleType) -> dict[str, tuple[int, Any]]:
    """The foreign tensors of parameters, by name: bytes, and a function that fetches each."""
    rows = {row.path: row for row in layout.rows(model.config)}
    parts: dict[str, list[tuple[Row, Any, tuple[int, ...]]]] = {}
    for path, leaf in leaves(variables).items():
        if path not in rows:
            raise UsageError(f"the published layout of family {model.family!r} has no tensor for {path}")
        row = rows[path]
        for at, name in zip(np.ndindex(leaf.shape[: row.stacked]), row.names(leaf.shape), strict=True):
            parts.setdefault(name, []).append((row, leaf, at))
    sizes = {name: math.prod(each[0][0].shape) * each[0][1].dtype.itemsize for name, each in parts.items()}
    found = {name: (sizes[name], partial(_whole, each)) for name, each in parts.items()}
    more = layout.copies(model.config) if hasattr(layout, "copies") else {}
    return found | {name: found[other] for name, other in more.items()}


def _whole(parts: list[tuple[Row, Any, tuple[int, ...]]]) -> np.ndarray:
    """A foreign tensor of which each leaf has a part: of (row, leaf, where in the leaf) each."""
    row, leaf, _ = parts[0]
    assert sum(math.prod(row.size) for row, _, _ in parts) == math.prod(row.shape)
    tensor = np.empty(row.shape, leaf.dtype)
    for row, leaf, at in parts:
        row.write(np.asarray(leaf[at] if at else leaf), tensor)
    return tensor


def layout_of(family: str, dialect: str | None, has: str) -> ModuleType:
    """The layout of a dialect, of None the first, among those that export `has`."""
    known = {name: layout for name, layout in dialects(family).items() if hasattr(layout, has)}
    if not known:
        raise unknown("family of the hub", family, sorted(set(TYPES.values())))
    name = next(iter(known)) if dialect is None else dialect
    if name not in known:
        raise unknown(f"dialect of {family}", name, known)
    return known[name]


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros where XLA's CPU backend takes an array over as it lies, and copies nothing: at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
