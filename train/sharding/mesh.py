"""The device mesh, and the table of rules that maps every named dim of every array to mesh axes.

A strategy is a mesh: `dp:8`, `fsdp:4,tp:2`, `fsdp:*`. Mesh axes are Explicit: jax checks every sharding when it traces.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from errors import UsageError, unknown
from models.core.spec import Spec, flatten
from pairs import pairs_error, parse_pairs

AXES = ("slice", "dp", "fsdp", "ep", "cp", "tp")
BATCH_AXES = ("slice", "dp", "fsdp", "ep")

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": BATCH_AXES,
    "seq": ("cp",),
    "one": (),  # a dim of size 1 that broadcasts over the batch
    "query": (),
    "key": (),
    "width": (),
    # parameters, and the activations that keep their dim's name
    "embed": ("fsdp",),
    "vocab": ("tp",),
    "heads": ("tp",),
    "kv_heads": ("tp",),
    "head_dim": (),
    "mlp": ("tp",),
    "experts": ("ep",),
    "rank": (),
    "choice": (),  # experts, as a dim of the router's outputs
    "classes": ("tp",),
    "inputs": ("fsdp",),
    "channels_in": ("fsdp",),
    "channels": ("tp",),
    "rows": (),
    "columns": (),
    "links": (),
    "time": (),
    "norm": (),
    "qkv": (),
    "gates": (),
    "shard": ("fsdp",),  # the one sharded dim of a Flax module's leaf
    **{f"dim{i}": () for i in range(8)},  # its other dims
    "layers": (),
}

OR_REPLICATE = frozenset(
    {"shard", "classes", "inputs", "channels_in", "channels", "kv_heads"}
)  # small dims: replicated if the mesh axes do not divide them


def make_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """`axis:size,axis:*` -> a Mesh of all devices with Explicit axes, in the order of AXES.

    Raises UsageError for an unknown or repeated axis, a size that is no positive integer, and sizes whose product is
    not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes: dict[str, int | None] = {}
    form = f"AXIS:SIZE of {', '.join(AXES)},"
    for axis, size in parse_pairs(text, "mesh", form):
        if axis not in AXES:
            raise unknown("mesh axis", axis, AXES)
        if axis in sizes:
            raise UsageError(f"mesh {text!r} names the axis {axis!r} twice")
        if size != "*" and not (size.isdigit() and int(size) > 0):
            raise UsageError(f"mesh {text!r}: axis {axis!r} needs a size, as {axis}:2, or {axis}:* for the rest")
        sizes[axis] = None if size == "*" else int(size)
    if not sizes:
        raise pairs_error(text, "mesh", form)
    if list(sizes.values()).count(None) > 1:
        raise UsageError(f"mesh {text!r}: only one axis may take the rest")
    fixed = math.prod(n for n in sizes.values() if n)
    if len(devices) % fixed or (None not in sizes.values() and fixed != len(devices)):
        raise UsageError(
            f"mesh {text!r} takes {fixed} devices, this run has {len(devices)}; sizes must multiply to "
            f"{len(devices)}, or one axis takes the rest, as dp:*"
        )
    shape = {a: sizes[a] or len(devices) // fixed for a in AXES if a in sizes}
    kinds = (AxisType.Explicit,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=kinds, devices=devices)


@dataclass(frozen=True)
class Placement:
    """`place("batch seq width")` is the PartitionSpec of an array with these axis names."""

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]
    replicated_dims: tuple[str, ...] = field(default=())  # dims replicated by OR_REPLICATE, as `classes 10`

    def __call__(self, axes: str) -> PartitionSpec:
        """Axis names -> PartitionSpec. Raises UsageError for an unknown name or a mesh axis used twice."""
        entries, used = [], set[str]()
        for name in axes.split():
            if name not in self.rules:
                raise unknown("axis name", name, self.rules)
            over = self.rules[name]
            if used.intersection(over):
                raise UsageError(f"axes {axes!r} use a mesh axis of {over} twice; change the rule of {name!r}")
            used.update(over)
            entries.append(over[0] if len(over) == 1 else over or None)
        return PartitionSpec(*entries)

    def sharding(self, axes: str) -> NamedSharding:
        """Axis names -> NamedSharding."""
        return NamedSharding(self.mesh, self(axes))

    def shardings(self, specs: Any) -> Any:
        """A tree of Specs -> the same tree of NamedShardings."""
        return jax.tree.map(lambda s: self.sharding(s.axes), specs)

    @property
    def replicated(self) -> NamedSharding:
        """The fully replicated sharding."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_shards(self) -> int:
        """The number of shards of a batch."""
        return math.prod(self.mesh.shape[a] for a in self.rules["batch"])

    @property
    def seq_shards(self) -> int:
        """The number of shards of a sequence."""
        return math.prod(self.mesh.shape[a] for a in self.rules["seq"])


def make_placement(mesh: Mesh, specs: Any, changes: Mapping[str, Any] | None = None) -> Placement:
    """The placement of a model's specs on a mesh. `changes` replaces single rules: `name: "axis,axis"` or None.

    Raises UsageError for an unknown name or axis, and for a dim that its mesh axes do not divide, with sizes that fit.
    """
    rules = dict(RULES)
    for name, text in (changes or {}).items():
        if name not in rules:
            raise unknown("axis name", name, rules)
        rules[name] = tuple(a.strip() for a in str(text or "").split(",") if a.strip())
        for axis in rules[name]:
            if axis not in AXES:
                raise unknown(f"mesh axis in the rule of {name}", axis, AXES)
        if len(set(rules[name])) < len(rules[name]):
            raise UsageError(f"the rule of {name!r} names a mesh axis twice: {text!r}")
    for name in (
        "seq",
        "heads",
        "kv_heads",
        "mlp",
        "vocab",
        "classes",
    ):  # dims that occur in one array with the batch dim
        both = set(rules["batch"]) & set(rules[name])
        if both:
            raise UsageError(
                f"the rules of 'batch' and {name!r} share the mesh axis {min(both)!r}; arrays with both dims need "
                f"different axes"
            )
    rules = {name: tuple(a for a in over if a in mesh.shape) for name, over in rules.items()}
    table: dict[str, Spec] = flatten(specs)
    replicated = []
    for path, spec in table.items():
        for name, size in zip(spec.names, spec.shape, strict=True):
            if name not in rules:
                raise unknown(f"axis name in {path}", name, rules)
            parts = math.prod(mesh.shape[a] for a in rules[name])
            if size % parts == 0:
                continue
            if name not in OR_REPLICATE:
                down, up = size // parts * parts, -(-size // parts) * parts
                fit = f"{down} or {up}" if down else f"{up}"
                over = ",".join(f"{a}:{mesh.shape[a]}" for a in rules[name])
                raise UsageError(f"{path}: its dim {name} = {size} does not divide over {over}; {fit} would fit")
            rules[name] = ()
            replicated.append(f"{name} {size}")
    return Placement(mesh, rules, tuple(replicated))


SEQUENCE_FIELDS = frozenset(  # fields of a batch whose second dim is time
    "tokens targets weight bytes position segment mask token_type source source_mask".split()
)


def batch_axes(field: str, ndim: int) -> str:
    """Axis names of a batch field: rows first, then time if it is a sequence."""
    second = "seq" if field in SEQUENCE_FIELDS else "width"
    return " ".join(("batch", second, *["width"] * ndim)[:ndim])
