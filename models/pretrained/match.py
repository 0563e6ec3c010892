"""Matches the tensors of files with a model's leaves, reports mismatches, and reads leaves one by one."""

import fnmatch
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from errors import UsageError
from models.core.spec import flatten, unflatten
from models.core.types import Leaf, Variables
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
    """The files' tensors of each of a model's leaves, and the tensors that belong to no leaf."""

    model: Model
    tensors: TensorReader
    rows: dict[str, Row]  # by the leaf's path
    names: dict[str, list[str]]  # of the leaf's tensors in the files, in the order of its stack
    unused: tuple[str, ...]  # unknown tensors
    ignored: tuple[str, ...] = ()  # known tensors that are not parameters of this model
    tied_copies: dict[str, str] = field(default_factory=dict)  # name -> the tensor that it should be a copy of

    def read(
        self, path: str, sharding: jax.sharding.Sharding | None = None, dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        """One leaf, placed by `sharding` tensor by tensor; its padding is 0.

        Raises UsageError for a tensor that is missing or misshapen.
        """
        if problems := self.problems(path):
            raise UsageError(f"{self.tensors.path}: {problems[0]}")
        row = self.rows[path]
        shape = self.shape(path)
        stack = np.array(self.names[path], object).reshape(shape[: row.stacked_dims])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            names = np.asarray(stack[index[: row.stacked_dims]], object)
            sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
            shard = _aligned_zeros(tuple(sizes), np.dtype(dtype))
            inner = index[row.stacked_dims :]
            for at in np.ndindex(names.shape):
                value = row.to_leaf(self.tensors.read(str(names[at])))[inner]
                shard[(*at, *(slice(n) for n in value.shape))] = value
            return shard

        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.make_array_from_callback(shape, sharding, part)

    def problems(self, path: str) -> list[str]:
        """The tensors of a leaf that are missing or misshapen, each with its reason."""
        row = self.rows[path]
        have = self.tensors.shapes
        wrong = [f"tensor {name!r} is missing" for name in self.names[path] if name not in have]
        shapes = {name: have[name] for name in self.names[path] if name in have}
        return wrong + [f"tensor {k!r} is {v}, not {row.shape}" for k, v in shapes.items() if not row.accepts(v)]

    def shape(self, path: str) -> tuple[int, ...]:
        """The shape of a leaf."""
        return leaves(self.model.specs)[path].shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of complete leaves by path, or of a tensor that does not fit; of other tensors by their names."""
        available = self.tensors.shapes
        shapes = {name: available[name] for name in self.unused}
        for path, names in self.names.items():
            present = {name: available[name] for name in names if name in available}
            misshapen = [shape for shape in present.values() if not self.rows[path].accepts(shape)]
            if len(present) < len(names):
                shapes |= present
            else:
                shapes[path] = misshapen[0] if misshapen else self.shape(path)
        return shapes

    @property
    def matched(self) -> int:
        """The number of tensors that belong to leaves."""
        return sum(name in self.tensors.shapes for names in self.names.values() for name in names)

    @property
    def summary(self) -> str:
        """A line with the numbers of matched, missing and left-over tensors, with the names of some of the last."""
        fresh = sum(map(len, self.names.values())) - self.matched
        over = len(self.ignored) + len(self.unused)
        named = f" ({', '.join([*self.unused, *self.ignored][:4])}{', …' if over > 4 else ''})" if over else ""
        return f"{self.matched:,} tensors, {fresh:,} fresh, {over:,} left over{named}"

    def variables(self, shardings: PyTree = None, dtype: str = "float32") -> Variables:
        """All leaves, placed by a tree of shardings; None is the first device. Raises UsageError as `check`.

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
        """Raise UsageError for the first tensors that are missing, superfluous or misshapen."""
        problems = []
        for path in leaves(self.model.specs):
            if path not in self.rows:
                raise UsageError(f"the published layout of family {self.model.family!r} has no tensor for {path}")
            problems += self.problems(path)
        problems += [f"tensor {name!r} is not part of this network{self.tie_hint(name)}" for name in self.unused]
        if problems:
            more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
            raise UsageError(f"{self.tensors.path}: {'; '.join(problems[:4])}{more}")

    def tie_hint(self, name: str) -> str:
        """A hint for an unused tensor that config.json ties to another, but that differs from it; else ''."""
        if name not in self.tied_copies or not getattr(self.model.config, "tied", False):
            return ""
        tie = f"whose config.json ties it to {self.tied_copies[name]!r}, from which it differs"
        return f", {tie}; to load it untied: --config.model.tied=False"


def leaves(variables: Variables) -> dict[str, Leaf]:
    """Parameters by path, and running statistics by path after `stats/`; of variables, or of specs."""
    stats = {f"{STATS}{path}": leaf for path, leaf in flatten(variables.get("stats", {})).items()}
    return flatten(variables["params"]) | stats


def find(model: Model, path: str | Path, *, prefix: str | None = None) -> PretrainedTensors:
    """Match the tensors of files with a model; no data is read yet.

    Names in the files may lack the layout's PREFIX, or have a further prefix such as `lstm.`: `prefix`, by default the
    one that all known names have. Raises UsageError for files that cannot be opened, and for files with several such
    networks.
    """
    layouts = list(dialects(model.family).values())
    pair = darknet.find_pair(path)
    path = pair[1] if pair else path
    is_darknet = darknet_weights.is_weights(path)  # Darknet's layouts have their own reader
    layouts = [layout for layout in layouts if hasattr(layout, "open_weights") == is_darknet]
    if not layouts:
        formats = "safetensors" if is_darknet else f"NAME{darknet_weights.SUFFIX} or NAME.conv.N"
        raise UsageError(f"{path}: the parameters of family {model.family!r} are published as {formats}")
    matches = []
    for layout in layouts:
        reader = layout.open_weights(path, model.config) if is_darknet else DequantisingReader(path)
        matches.append(_match(model, reader, layout, prefix))
    return max(matches, key=lambda match: match.matched)


def _match(model: Model, tensors: TensorReader, layout: ModuleType, prefix: str | None) -> PretrainedTensors:
    rows = {row.path: row for row in layout.rows(model.config)}
    base = getattr(layout, "PREFIX", "")
    first = next(iter(rows.values()))
    core = first.names((1,) * first.stacked_dims)[0].removeprefix(base)  # the first tensor's name without prefix
    prefixes = {name.removesuffix(core) for name in tensors.shapes if name == core or name.endswith(f".{core}")}
    patterns = layout.ignored_tensors(model.config, tensors.shapes) if hasattr(layout, "ignored_tensors") else ()

    def full_name(name: str, start: str) -> str:
        """The name in files whose prefix is `start` instead of the layout's."""
        if name.startswith(base):
            return start + name.removeprefix(base)
        outer = "" if base and start.startswith(base) else start  # the head is outside of model.language_model.
        return (start.removesuffix(base) if f".{start}".endswith(f".{base}") else outer) + name

    def is_ignored(name: str, start: str) -> bool:
        return any(fnmatch.fnmatchcase(name, full_name(pattern, start)) for pattern in patterns)

    prefixes = {one for one in prefixes if not any(is_ignored(one + core, other) for other in prefixes - {one})}
    if prefix is None and len(prefixes) > 1:
        raise UsageError(f"{tensors.path} has several networks: {', '.join(sorted(prefixes))}; pass one as `prefix`")
    start = prefix if prefix is not None else next(iter(prefixes), base)

    shapes = leaves(model.specs)
    names: dict[str, list[str]] = {}
    for path, row in rows.items():
        if path not in shapes:
            continue
        names[path] = []
        current = row.names(shapes[path].shape)
        older = row.names(shapes[path].shape, older=True)
        for new, old in zip(current, older, strict=True):
            new, old = full_name(new, start), full_name(old, start)
            names[path].append(old if old in tensors.shapes and new not in tensors.shapes else new)
    known = set(chain(*names.values()))
    tied_copies = {full_name(k, start): full_name(v, start) for k, v in getattr(layout, "TIED", {}).items()}
    unused: list[str] = []
    ignored: list[str] = []
    for name in tensors.shapes:
        if name in known or not name.startswith(prefix or ""):
            continue
        is_copy = name in tied_copies and _equal(tensors, name, tied_copies[name])
        of_other_modality = start != base and multimodal.is_multimodal(name)
        (ignored if is_copy or of_other_modality or is_ignored(name, start) else unused).append(name)
    matched_rows = {path: rows[path] for path in names}
    return PretrainedTensors(model, tensors, matched_rows, names, tuple(unused), tuple(ignored), tied_copies)


def _equal(tensors: TensorReader, a: str, b: str) -> bool:
    same_shape = b in tensors.shapes and tensors.shapes[a] == tensors.shapes[b]
    return same_shape and np.array_equal(tensors.read(a), tensors.read(b))


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at an address that 64 divides, so that XLA's CPU backend takes the array over without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
