"""How a family's frozen Config checks itself, and the values that every Config shares."""

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
REMAT: dict[str, Any] = {  # what a rematerialised block keeps for the backward pass
    "none": None,  # everything: no recomputation
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

RULES: dict[str, Callable[[Any], bool]] = {
    "positive": lambda n: n > 0,
    "not negative": lambda n: n >= 0,
    "probability": lambda p: 0 <= p < 1,
}
SAYS = {"positive": "positive", "not negative": "0 or more", "probability": "in [0, 1)"}


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A dict inside a frozen Config's field."""

    items: tuple[tuple[Any, Any], ...]


def freeze(value: Any) -> Any:
    """A value that can stand in a frozen Config: lists become tuples, dicts `Pairs`."""
    if isinstance(value, dict):
        return Pairs(tuple((k, freeze(v)) for k, v in sorted(value.items())))
    return tuple(map(freeze, value)) if isinstance(value, list | tuple) else value


def unfreeze(value: Any) -> Any:
    """The value of which `freeze` made this one, lists as tuples."""
    if isinstance(value, Pairs):
        return {k: unfreeze(v) for k, v in value.items}
    return tuple(map(unfreeze, value)) if isinstance(value, tuple) else value


def require(
    config: Any, rule: str, *fields: str, test: Callable[[Any], bool] | None = None, holds: bool | None = None
) -> None:
    """Hold fields of a Config to their declared types and to a rule (a name of RULES, or words with a test).

    A field that is None where its type allows it passes; a tuple is held element by element by the test `ok`. What a
    field must be as a whole, an empty tuple too, has been judged already: `whole`.
    Raises UsageError that names family, field, value and rule.
    """
    types_ = typing.get_type_hints(type(config))
    for name in fields:
        value = getattr(config, name)
        if not _is(value, types_[name]):
            said = _say(types_[name])
            bound = " within float32" if "float" in said else " within int32" if "int" in said else ""
            raise UsageError(f"{_family(config)}: {name} = {value!r} is not of type {said}{bound}")
        if holds is None:
            parts = value if isinstance(value, tuple) else (value,)
            held = all(one is None or (test or RULES[rule])(one) for one in parts)
        else:
            held = value is None or holds
        if not held:
            raise UsageError(f"{_family(config)}: {name} = {value!r} must be {SAYS.get(rule, rule)}")


def require_choice(config: Any, **legal: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Hold fields to a list of legal names. Raises UsageError that names the nearest."""
    for name, names in legal.items():
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in names:
                raise unknown(f"value of {_family(config)}'s {name}", one, names, renamed.WORDS.get(f"train.{name}"))


def check_types(config: Any) -> None:
    """Hold every field to its declared type. Raises UsageError."""
    require(config, "of its type", *(f.name for f in dataclasses.fields(config)), holds=True)


def remat_block(block: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """The block, recomputed in the backward pass as the policy of that name in REMAT says."""
    return block if policy == "none" else jax.checkpoint(block, policy=REMAT[policy], prevent_cse=False)


def _family(config: Any) -> str:
    return type(config).__module__.rsplit(".", 1)[-1]


def _is(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_is(value, h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_is(v, inner) for v in value)
    if hint is float:  # as float32 holds it
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**128
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    return isinstance(value, hint)


def _say(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
