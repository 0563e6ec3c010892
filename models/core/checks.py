"""Checks of a family's frozen Config, and values that every Config shares."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import renamed
from errors import UsageError, unknown

COMPUTE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMAT: dict[str, Any] = {  # what a rematerialised block saves for the backward pass
    "none": None,  # everything: no recomputation
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

RULES: dict[str, Callable[[Any], bool]] = {
    "positive": lambda n: n > 0,
    "not negative": lambda n: n >= 0,
    "probability": lambda p: 0 <= p < 1,
}
RULE_WORDS = {"positive": "positive", "not negative": "0 or more", "probability": "in [0, 1)"}


@dataclasses.dataclass(frozen=True)
class FrozenDict:
    """A dict as a value of a frozen Config."""

    items: tuple[tuple[Any, Any], ...]


def freeze(value: Any) -> Any:
    """Make a value hashable for a frozen Config: lists become tuples, dicts `FrozenDict`."""
    if isinstance(value, dict):
        return FrozenDict(tuple((k, freeze(v)) for k, v in sorted(value.items())))
    return tuple(map(freeze, value)) if isinstance(value, list | tuple) else value


def unfreeze(value: Any) -> Any:
    """The inverse of `freeze`, except that lists stay tuples."""
    if isinstance(value, FrozenDict):
        return {k: unfreeze(v) for k, v in value.items}
    return tuple(map(unfreeze, value)) if isinstance(value, tuple) else value


def require(
    config: Any, rule: str, *fields: str, test: Callable[[Any], bool] | None = None, holds: bool | None = None
) -> None:
    """Check fields of a Config: their declared types, and a rule.

    The rule is a name in RULES, or words for the message together with a `test` of each value, or with `holds`, the
    result of a test of the whole field. None passes if the type allows it; `test` sees the elements of a tuple.
    Raises UsageError that names family, field, value and rule.
    """
    types_ = typing.get_type_hints(type(config))
    for name in fields:
        value = getattr(config, name)
        if not _has_type(value, types_[name]):
            declared = _type_name(types_[name])
            bound = " within float32" if "float" in declared else " within int32" if "int" in declared else ""
            raise UsageError(f"{_family(config)}: {name} = {value!r} is not of type {declared}{bound}")
        if holds is None:
            parts = value if isinstance(value, tuple) else (value,)
            valid = all(one is None or (test or RULES[rule])(one) for one in parts)
        else:
            valid = value is None or holds
        if not valid:
            raise UsageError(f"{_family(config)}: {name} = {value!r} must be {RULE_WORDS.get(rule, rule)}")


def require_choice(config: Any, **legal: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Check that fields have one of the legal names. Raises UsageError that gives the nearest one."""
    for name, names in legal.items():
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in names:
                old = renamed.WORDS.get(f"model.{name}") or renamed.WORDS.get(f"train.{name}")
                raise unknown(f"value of {_family(config)}'s {name}", one, names, old)


def check_types(config: Any) -> None:
    """Check every field against its declared type. Raises UsageError."""
    require(config, "of its type", *(f.name for f in dataclasses.fields(config)), holds=True)


def remat_block(block: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """The block with rematerialisation in the backward pass by a policy of REMAT."""
    return block if policy == "none" else jax.checkpoint(block, policy=REMAT[policy], prevent_cse=False)


def _family(config: Any) -> str:
    return type(config).__module__.rsplit(".", 1)[-1]


def _has_type(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_has_type(value, h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_has_type(v, inner) for v in value)
    if hint is float:  # within the range of float32
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**128
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
