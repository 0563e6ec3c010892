"""Formatting of a run's start summary: parameters, mesh, quantities and durations."""

import jax
from jax.typing import DTypeLike

from models import Model
from models.core.spec import flatten
from train.sharding.mesh import Placement


def parameter_table(model: Model, place: Placement, dtype: DTypeLike) -> list[str]:
    """The parameter table, one line each: path, count, shape, axes, dtype, and the mesh axes that shard it."""
    rows = [("parameter", "count", "shape", "axes", "dtype", "sharded over")]
    for name, spec in flatten(model.specs["params"]).items():
        cut = [e if isinstance(e, str) else "+".join(e) for e in place(spec.axes) if e]
        used = [c for c in cut if any(place.mesh.shape[a] > 1 for a in c.split("+"))]
        shape = "x".join(map(str, spec.shape))
        rows.append((name, f"{spec.size:,}", shape, spec.axes, str(jax.numpy.dtype(dtype)), " ".join(used) or "-"))
    total = sum(s.size for s in jax.tree.leaves(model.specs["params"]))
    padding = total - model.count()  # padding rows of the vocabulary
    rows.append(("total", f"{total:,}", f"{padding:,} of them padding" if padding else "", "", "", ""))
    columns = []
    for heading, *cells in zip(*rows, strict=True):
        width = max(map(len, (heading, *cells)))
        align = str.rjust if heading == "count" else str.ljust
        columns.append([align(heading, width), "-" * width, *(align(cell, width) for cell in cells)])
    heading, rule, *lines = zip(*columns, strict=True)
    return [line.rstrip() for line in ("  ".join(heading), "".join(rule), *map("  ".join, lines))]


def parameter_counts(model: Model) -> str:
    """The parameter count, and the active parameters per token if fewer: `1,024 parameters, 512 of them active`."""
    whole, active = model.count(), model.count(active=True)
    return f"{whole:,} parameters" + (f", {active:,} of them active" if active < whole else "")


def format_quantity(n: float, unit: str) -> str:
    """A number with a metric prefix: 1.5e9 -> `1.50 GFLOP`."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(n) < 1000 or prefix == "P":
            return f"{n:.3g} {prefix}{unit}"
        n /= 1000
    raise AssertionError


def format_duration(seconds: float) -> str:
    """Seconds as `1h02m`, `3m07s` or `8s`."""
    s = round(seconds)
    if s >= 3600:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 60}m{s % 60:02d}s" if s >= 60 else f"{s}s"


def describe_mesh(place: Placement) -> str:
    """The mesh, its devices, and the dims replicated because the mesh does not divide them."""
    axes = ", ".join(f"{a}:{n}" for a, n in place.mesh.shape.items())
    kind = place.mesh.devices.flat[0].device_kind
    line = (
        f"{axes} on {place.mesh.size} x {kind}, {jax.process_count()} process{'es' if jax.process_count() > 1 else ''}"
    )
    return line + (
        f"; replicated, as not divisible: {', '.join(place.replicated_dims)}" if place.replicated_dims else ""
    )
