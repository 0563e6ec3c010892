"""The inputs and the variables that `Model.predict` is given: of which dims, and in which range."""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from errors import UsageError, quote
from models.core import spec
from models.core.types import Array, Specs, Variables

DIMS = {  # of the inputs: a letter is one size in all inputs of a batch, a word the field of that name of the Config
    **dict.fromkeys(("tokens", "mask", "token_type", "position", "segment"), "B T"),
    **{"embeds": "B T width", "source": "B S", "source_mask": "B S", "image": "B Y X inputs"},
}
READS = {  # INPUT -> alternatives of the main input, of which the first given is read; and other inputs
    "image": (("image",), ()),
    "tokens": (("embeds", "tokens"), ("position", "segment")),
    "features": (("features", "image"), ()),
}
Sizes = dict[str, int]  # of the dims of fields, by letter or word


def check_inputs(
    family: str, module: ModuleType, config: Any, specs: Specs, given: Mapping[str, ArrayLike]
) -> tuple[dict[str, Array], Sizes]:
    """The fields of a batch as arrays, and the sizes of their dims, by the family's module, Config and specs.

    Raises UsageError for a batch without rows, and for an input that is missing, of other dims or, which a traced call
    cannot see, out of range. A family's READS
    and `main_dims` come before those here. Of an INPUT that READS does not know only the presence is checked.
    """
    whose = f"{family}: the input"
    fields = {name: _as_array(f"{whose} {name!r}", x) for name, x in given.items()}
    alternatives, others = getattr(module, "READS", READS.get(module.INPUT, ((module.INPUT,), ())))
    main = next((name for name in alternatives if name in fields), None)
    if main is None:
        needed = " or ".join(map(repr, alternatives))
        has = ", ".join(fields) or "none"
        raise UsageError(f"{family} as configured needs the input {needed}; the batch has {has}")
    x = fields[main]
    main_dims = module.main_dims(config) if hasattr(module, "main_dims") else _main_dims(module.INPUT, config, main, x)
    dims = {**DIMS, main: main_dims}
    sizes, limits = _sizes(config), _limits(config, specs)
    limits[main] = limits["tokens"] if dims[main] == DIMS["tokens"] else None
    for name in (main, *(name for name in others if name in fields)):
        check_dims(f"{whose} {name!r}", fields[name], dims[name], sizes)
        padded = name == "position" and "causal" in module.TRAITS  # by positions below 0
        ids = jnp.maximum(fields[name], 0) if padded else given[name]
        check_ids(f"{whose} {name!r}", ids, limits.get(name))
    if sizes["B"] == 0:
        raise UsageError(f"{whose} {main!r} must have a row or more, not be of shape {x.shape}")
    return fields, sizes


def check_variables(family: str, specs: Specs, variables: Variables) -> None:
    """Raise UsageError for variables without the leaves of the specs."""
    parts = [name for name, tree in specs.items() if jax.tree.leaves(tree)]
    for part in parts:
        if not isinstance(variables, Mapping) or part not in variables:
            wanted = ", ".join(f"{name!r}: ..." for name in parts)
            raise UsageError(f"{family}: variables must be {{{wanted}}}; they have no {part!r}")
    found = spec.flatten({part: variables[part] for part in parts})
    for name, leaf in spec.flatten(specs).items():
        if name not in found or np.shape(found[name]) != leaf.shape:
            has = f"not {np.shape(found[name])}" if name in found else "which they do not have"
            raise UsageError(f"{family}: the variables' {name!r} must be of shape {leaf.shape}, {has}")


def check_ids(name: str, x: ArrayLike, count: int | None) -> None:
    """Raise UsageError for an array with other values than ids below `count` (None: any); of a tracer nothing is known.

    `name` is that of the array.
    """
    if count is None or isinstance(x, jax.core.Tracer) or not math.prod(np.shape(x)):
        return
    ids = np.asarray(x)
    if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= count:
        raise UsageError(f"{name} must be ids from 0 to {count - 1}, not {ids.dtype} {ids.min()} to {ids.max()}")


def check_dims(name: str, x: Array, dims: str, sizes: Sizes) -> None:
    """Raise UsageError for an array of other dims than `dims`, such as "B T width"; a size not in `sizes` is added.

    `name` is that of the array.
    """
    wanted = [sizes.get(dim, dim) for dim in dims.split()]
    if len(wanted) != x.ndim or any(n != m for n, m in zip(wanted, x.shape, strict=True) if isinstance(n, int)):
        raise UsageError(f"{name} must be [{' '.join(map(str, wanted))}], not of shape {x.shape}")
    sizes.update(zip(dims.split(), x.shape, strict=True))


def _as_array(name: str, x: ArrayLike) -> Array:
    """An array of numbers. Raises UsageError for anything else."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name} must be an array of numbers, not {quote(x)}") from None


def _sizes(config: object) -> Sizes:
    """The sizes of dims that a Config has."""
    fields = vars(config)
    row = fields.get("inputs", fields.get("shape")) or None
    sizes = {"inputs": row[-1] if isinstance(row, tuple) else row}
    sizes |= {name: fields.get(name) for name in ("width", "classes", "outputs")}
    return {name: size for name, size in sizes.items() if size is not None}


def _limits(config: object, specs: Specs) -> dict[str, int | None]:
    """The number of ids of inputs that are ids, None if there is no limit."""
    fields = vars(config)
    has_table = "position" in specs["params"].get("embed", {})
    return {
        "tokens": fields.get("vocab"),
        "source": fields.get("source_vocab") or fields.get("vocab"),
        "token_type": fields.get("types"),
        "position": fields.get("context") if has_table else None,
    }


def _main_dims(main_input: str, config: Any, name: str, x: Array) -> str:
    """The dims of the main input, as in DIMS."""
    rest = " ".join(("B", *(f"N{i}" for i in range(1, x.ndim))))  # any rank
    if main_input == "features":  # the family flattens rows
        inputs = getattr(config, "inputs", None)
        return rest if inputs is None or (x.ndim > 1 and math.prod(x.shape[1:]) == inputs) else "B inputs"
    return DIMS.get(name, rest)
