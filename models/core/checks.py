"""Checks of a family's frozen Config, such as `positive(self, "width")`, and values that every Config shares.

A check raises a UsageError of the form `FAMILY: FIELD = VALUE must be RULE`.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

import renamed
from errors import UsageError, unknown

COMPUTE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMAT: dict[str, Callable[..., bool] | None] = {  # what a rematerialised block saves for the backward pass
    "none": None,  # everything: no recomputation
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class FrozenDict:
    """A dict as a value of a frozen Config."""

    items: tuple[tuple[str, object], ...]


def freeze(value: object) -> object:
    """Make a value hashable for a frozen Config: lists become tuples, dicts `FrozenDict`."""
    if isinstance(value, Mapping):
        return FrozenDict(tuple((k, freeze(v)) for k, v in sorted(value.items())))
    return tuple(map(freeze, value)) if isinstance(value, list | tuple) else value


def unfreeze(value: object) -> object:
    """The inverse of `freeze`, except that lists stay tuples."""
    if isinstance(value, FrozenDict):
        return {k: unfreeze(v) for k, v in value.items}
    return tuple(map(unfreeze, value)) if isinstance(value, tuple) else value


def refuse(config: object, field: str, rule: str) -> NoReturn:
    """Raise the UsageError for a field with an illegal value: it names family, field, value and rule."""
    raise UsageError(f"{_family(type(config))}: {field} = {getattr(config, field)!r} must be {rule}")


def positive(config: object, *fields: str) -> None:
    """Check that fields are above 0, as are the elements of a tuple. Raises UsageError, also for another type.

    None is legal if the type allows it, here and below.
    """
    for field in fields:
        if not all(n > 0 for n in _numbers(config, field)):
            refuse(config, field, "positive")


def not_negative(config: object, *fields: str) -> None:
    """Check that fields are 0 or more. Raises UsageError as `positive`."""
    for field in fields:
        if not all(n >= 0 for n in _numbers(config, field)):
            refuse(config, field, "0 or more")


def probability(config: object, *fields: str) -> None:
    """Check that fields are in [0, 1). Raises UsageError as `positive`."""
    for field in fields:
        if not all(0 <= n < 1 for n in _numbers(config, field)):
            refuse(config, field, "in [0, 1)")


def divides(config: object, field: str, whole: str) -> None:
    """Check that a field divides another one, `whole`. Raises UsageError as `positive`."""
    total = getattr(config, whole)
    if any(total % n for n in _numbers(config, field)):
        refuse(config, field, f"a divisor of {whole}={total}")


def at_least(config: object, field: str, least: int, what: str) -> None:
    """Check that a field is `least` or more; `what` names that number in the message. Raises UsageError."""
    if getattr(config, field) < least:
        refuse(config, field, f"at least {what}")


def one_of(config: object, **legal: Mapping[str, object] | tuple[str, ...]) -> None:
    """Check that fields have one of the legal names. Raises UsageError that gives the nearest one."""
    for field, names in legal.items():
        value = getattr(config, field)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in names:
                old = renamed.WORDS.get(f"model.{field}") or renamed.WORDS.get(f"train.{field}")
                raise unknown(f"value of {_family(type(config))}'s {field}", one, names, old)


def check_type(kind: type, field: str, value: object) -> None:
    """Check a value against the type that a Config of class `kind` declares for a field. Raises UsageError."""
    declared = typing.get_type_hints(kind)[field]
    if not _has_type(value, declared):
        name = declared.__name__ if isinstance(declared, type) else str(declared)
        bound = " within float32" if "float" in name else " within int32" if "int" in name else ""
        raise UsageError(f"{_family(kind)}: {field} = {value!r} is not of type {name}{bound}")


def check_types(config: object) -> None:
    """Check every field against its declared type. Raises UsageError."""
    for field in typing.get_type_hints(type(config)):
        check_type(type(config), field, getattr(config, field))


def _family(kind: type) -> str:
    return kind.__module__.rsplit(".", 1)[-1]


def _numbers(config: object, field: str) -> list[float]:
    """A field's value, or the elements of a tuple, without None. Raises UsageError for another type."""
    value = getattr(config, field)
    check_type(type(config), field, value)
    return [n for n in (value if isinstance(value, tuple) else (value,)) if n is not None]


def _has_type(value: object, hint: Any) -> bool:
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
