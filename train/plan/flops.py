"""Floating-point operations of a function, counted in its jaxpr: matrix products and convolutions, loops unrolled.

Operations inside a kernel (Pallas, cuDNN) do not appear in the jaxpr and are not counted.

XLA's own cost analysis counts a loop's body once, so it underestimates a scanned model.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from models.core.types import Leaf


def count(function: Callable[..., object], *args: Leaf) -> int:
    """FLOPs of one call on arguments (arrays or ShapeDtypeStructs), 2 for each multiply and add."""
    return _count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _count_jaxpr(jaxpr: Any) -> int:
    return sum(_count_equation(e) for e in jaxpr.eqns)


def _count_equation(e: Any) -> int:
    if e.primitive.name == "dot_general":
        (contracted, _), _ = e.params["dimension_numbers"]
        return 2 * e.outvars[0].aval.size * math.prod(e.invars[0].aval.shape[i] for i in contracted)
    if e.primitive.name == "ragged_dot_general":  # each row times the matrix of its group
        return 2 * e.outvars[0].aval.size * e.invars[0].aval.shape[-1]
    if e.primitive.name == "conv_general_dilated":
        numbers, kernel = e.params["dimension_numbers"], e.invars[1].aval.shape
        per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        idle = math.prod(e.params["lhs_dilation"])  # only one of so many pixels is not a dilation zero
        return 2 * e.outvars[0].aval.size * per_output // (max(e.params["batch_group_count"], 1) * idle)
    if e.primitive.name == "pallas_call":  # its jaxpr covers one block
        return 0
    inner = [_count_jaxpr(j) for v in e.params.values() for j in _jaxprs(v)]
    if e.primitive.name == "scan":
        return sum(inner) * e.params["length"]
    if e.primitive.name == "shard_map":  # its jaxpr covers one device
        return sum(inner) * e.params["mesh"].size
    return max(inner, default=0) if e.primitive.name == "cond" else sum(inner)


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [j for v in value for j in _jaxprs(v)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
