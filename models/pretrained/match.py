"""What files hold for a model: which tensor is for which leaf, what is amiss, and leaves read one by one."""

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from errors import UsageError
from models.core.spec import flatten, unflatten
from models.pretrained import multimodal
from models.pretrained.formats import darknet_weights
from models.pretrained.formats.quantised import DequantisingReader
from models.pretrained.formats.safetensors import TensorReader
from models.pretrained.layouts import darknet, dialects
from models.pretrained.mapping import Row
from models.registry import Model

STATS = "stats/"


@dataclass(frozen=True)
class PretrainedTensors:
    """What files hold for a model: the tensors of each leaf, and those that are for none."""

    model: Model
    tensors: TensorReader
    rows: dict[str, Row]  # by the leaf's path
    names: dict[str, list[str]]  # of the leaf's tensors, in the files, in the order of its stack
    unused: tuple[str, ...]  # names that no leaf has a place for
    ignored: tuple[str, ...] = ()  # names that are known, and not of this network's parameters
    tied_copies: dict[str, str] = field(default_factory=dict)  # name -> the tensor that it should be a copy of

    def read(self, path: str, sharding: jax.sharding.Sharding | None = None, dtype: Any = jnp.float32) -> jax.Array:
        """One leaf, placed tensor by tensor where it is to be; what is beyond the tensors, padding, is 0.

        Raises UsageError for a tensor that is missing or misshapen.
        """
        if wrong := self.problems(path):
            raise UsageError(f"{self.tensors.path}: {wrong[0]}")
        row, shape = self.rows[path], self.shape(path)
        stack = np.array(self.names[path], object).reshape(shape[: row.stacked_dims])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            cut = np.asarray(stack[index[: row.stacked_dims]], object)
            sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
            made = _aligned_zeros(tuple(sizes), np.dtype(dtype))
            inner = index[row.stacked_dims :]
            for at in np.ndindex(cut.shape):
                value = row.to_leaf(self.tensors.read(str(cut[at])))[inner]
                made[(*at, *(slice(n) for n in value.shape))] = value
            return made

        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.make_array_from_callback(shape, sharding, part)

    def problems(self, path: str) -> list[str]:
        """What is wrong with the tensors of a leaf: those that are missing, and those that are misshapen."""
        row, have = self.rows[path], self.tensors.shapes
        wrong = [f"tensor {name!r} is missing" for name in self.names[path] if name not in have]
        shapes = {name: have[name] for name in self.names[path] if name in have}
        return wrong + [f"tensor {k!r} is {v}, not {row.shape}" for k, v in shapes.items() if not row.accepts(v)]

    def shape(self, path: str) -> tuple[int, ...]:
        """Of a leaf."""
        return leaves(self.model.specs)[path].shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What there is: leaves all of whose tensors are there, with their own shape if a tensor does not fit.

        Tensors that are for no leaf, or for one that is not whole, have their own names.
        """
        have = self.tensors.shapes
        found = {name: have[name] for name in self.unused}
        for path, names in self.names.items():
            there = {name: have[name] for name in names if name in have}
            wrong = [shape for shape in there.values() if not self.rows[path].accepts(shape)]
            if len(there) < len(names):
                found |= there
            else:
                found[path] = wrong[0] if wrong else self.shape(path)
        return found

    @property
    def matched(self) -> int:
        """How many tensors there are for leaves."""
        return sum(name in self.tensors.shapes for names in self.names.values() for name in names)

    @property
    def summary(self) -> str:
        """What there is in words: tensors for leaves, leaves without any, tensors for none."""
        have = self.matched
        fresh = sum(map(len, self.names.values())) - have
        over = len(self.ignored) + len(self.unused)
        named = f" ({', '.join([*self.unused, *self.ignored][:4])}{', …' if over > 4 else ''})" if over else ""
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
            wrong += self.problems(path)
        wrong += [f"tensor {name!r} is not part of this network{self.tie_hint(name)}" for name in self.unused]
        if wrong:
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise UsageError(f"{self.tensors.path}: {'; '.join(wrong[:4])}{more}")

    def tie_hint(self, name: str) -> str:
        """What a refusal adds for a tensor left over that is to be a copy of another, and differs; else nothing."""
        if name not in self.tied_copies or not getattr(self.model.config, "tied", False):
            return ""
        twin = f"whose config.json ties it to {self.tied_copies[name]!r}, from which it differs"
        return f", {twin}; to read it as it is: --config.model.tied=False"


def leaves(variables: Any) -> dict[str, Any]:
    """Parameters by their path, and running statistics by theirs after `stats/`; of variables, or of a table."""
    stats = {f"{STATS}{path}": leaf for path, leaf in flatten(variables.get("stats", {})).items()}
    return flatten(variables["params"]) | stats


def find(model: Model, path: str | Path, *, prefix: str | None = None) -> PretrainedTensors:
    """Look in files for a model of a family with a layout; nothing is read yet.

    Names may lack the layout's PREFIX, or have a further one, as `lstm.`: `prefix`, or else what all known names begin
    with. Raises UsageError for files that cannot be looked into, and where several such networks lie in them.
    """
    layouts = dialects(model.family).values()
    pair = darknet.find_pair(path)
    path = pair[1] if pair else path
    ours = darknet_weights.is_weights(path)  # Darknet's, whose layouts have a reader of their own
    fit = [one for one in layouts if hasattr(one, "open_weights") == ours]
    if not fit:
        forms = "safetensors" if ours else f"NAME{darknet_weights.SUFFIX} or NAME.conv.N"
        raise UsageError(f"{path}: the numbers of family {model.family!r} are published as {forms}")
    files = [one.open_weights(path, model.config) if ours else DequantisingReader(path) for one in fit]
    found = [_match(model, file, one, prefix) for file, one in zip(files, fit, strict=True)]
    return max(found, key=lambda one: one.matched)


def _match(model: Model, tensors: TensorReader, layout: ModuleType, prefix: str | None) -> PretrainedTensors:
    rows = {row.path: row for row in layout.rows(model.config)}
    base, first = getattr(layout, "PREFIX", ""), next(iter(rows.values()))
    core = first.names((1,) * first.stacked_dims)[0].removeprefix(base)
    ends = {name.removesuffix(core) for name in tensors.shapes if name == core or name.endswith(f".{core}")}
    patterns = layout.ignored_tensors(model.config, tensors.shapes) if hasattr(layout, "ignored_tensors") else ()

    def full_name(name: str, start: str) -> str:
        if name.startswith(base):
            return start + name.removeprefix(base)
        around = "" if base and start.startswith(base) else start  # model.language_model. has its head outside of all
        return (start.removesuffix(base) if f".{start}".endswith(f".{base}") else around) + name

    def is_ignored(name: str, start: str) -> bool:
        return any(fnmatch.fnmatchcase(name, full_name(pattern, start)) for pattern in patterns)

    ends = {end for end in ends if not any(is_ignored(end + core, other) for other in ends - {end})}
    if prefix is None and len(ends) > 1:
        raise UsageError(f"{tensors.path} holds several networks: {', '.join(sorted(ends))}; `prefix` says which")
    start = prefix if prefix is not None else next(iter(ends), base)

    shapes = leaves(model.specs)
    names = {}
    for leaf in (leaf for leaf in rows if leaf in shapes):
        new, old = (
            [full_name(n, start) for n in rows[leaf].names(shapes[leaf].shape, older)] for older in (False, True)
        )
        both = zip(new, old, strict=True)
        names[leaf] = [o if o in tensors.shapes and n not in tensors.shapes else n for n, o in both]
    known = {name for group in names.values() for name in group}
    twins = {full_name(k, start): full_name(v, start) for k, v in getattr(layout, "TIED", {}).items()}
    left: list[str] = []
    passed: list[str] = []
    for name in tensors.shapes:
        if name in known or not name.startswith(prefix or ""):
            continue
        twin = name in twins and _equal(tensors, name, twins[name])
        apart = start != base and multimodal.is_multimodal(name)
        (passed if twin or apart or is_ignored(name, start) else left).append(name)
    return PretrainedTensors(model, tensors, {p: rows[p] for p in names}, names, tuple(left), tuple(passed), twins)


def _equal(tensors: TensorReader, one: str, two: str) -> bool:
    same = two in tensors.shapes and tensors.shapes[one] == tensors.shapes[two]
    return same and np.array_equal(tensors.read(one), tensors.read(two))


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros where XLA's CPU backend takes an array over as it lies, and copies nothing: at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
