"""Values inside a forward pass, by name: a network names them with `sow`, and `collect` returns them.

The names are those of JAX's `checkpoint_name`, so that code of a user's own can name values too. `collect` traces the
forward pass and evaluates its jaxpr, in which it finds them. Outside of `collect`, `sow` does nothing, so that no other
program changes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.typing import ArrayLike

from errors import UsageError
from models.core.types import Array

_PREFIX = jax.make_user_context(None)  # of names; None: nothing collects. A part of the key of jit's caches
_CALLS = ("jit", "remat2", "checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call")  # entered by `collect`

Arrays = list[ArrayLike]
Values = dict[str, list[Array]]  # by name, each [N ...]: N values in the order in which they were computed


def sow(name: str, x: Array) -> None:
    """Name a value for `collect`."""
    if _PREFIX.value is not None:
        checkpoint_name(x, _PREFIX.value + name)


def name_scope(name: str) -> AbstractContextManager[None]:
    """A block in which names are prefixed: `encoder/residual`."""
    return _PREFIX(None if _PREFIX.value is None else f"{_PREFIX.value}{name}/")


def collect(function: Callable[[], object], names: Iterable[str] | None = None) -> dict[str, Array | list[Array]]:
    """The named values of a function, or those of `names`: name -> [N ...], the N values in order of computation.

    It is a list of N arrays if their shapes differ. In a `lax.scan`, a name has a value per iteration. Names in a
    `lax.cond` and a `lax.while_loop`, whose number of values is not known, are left out. Raises UsageError for a name
    that no value has, and for a text in place of the names.
    """
    if isinstance(names, str):
        raise UsageError(f"names must be a list of names, as [{names!r}], not a text")
    wanted = None if names is None else tuple(names)
    with _PREFIX(""):
        closed = jax.make_jaxpr(function)()
    exist = sorted(set(_names(closed.jaxpr)))
    for name in wanted or ():
        if name not in exist:
            raise UsageError(f"unknown intermediate {name!r}; those of this model: {', '.join(exist) or 'none'}")
    _, values = _run(closed, [], set(exist if wanted is None else wanted))
    joined = {name: _join(parts) for name, parts in values.items()}
    return {
        name: parts[0] if len(parts) == 1 else [x for part in parts for x in part] for name, parts in joined.items()
    }


def _inner(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of a call, or of an iteration of a scan."""
    if eqn.primitive.name not in (*_CALLS, "scan"):
        return None
    inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
    return ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner


def _names(jaxpr: Jaxpr) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            yield eqn.params["name"]
        elif inner := _inner(eqn):
            yield from _names(inner.jaxpr)


def _run(closed: ClosedJaxpr, args: Sequence[ArrayLike], names: set[str]) -> tuple[Arrays, Values]:
    """Evaluate a jaxpr -> its outputs, and its values with one of the names."""
    jaxpr = closed.jaxpr
    known: dict[Var, ArrayLike] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    values: Values = {}

    def read(atom: Var | Literal) -> ArrayLike:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        inner = _inner(eqn)
        found: Values = {}
        if inner and names.intersection(_names(inner.jaxpr)):
            is_scan = eqn.primitive.name == "scan"
            outputs, found = _scan(inner, eqn, inputs, names) if is_scan else _run(inner, inputs, names)
        else:
            outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        if eqn.primitive.name == "name" and eqn.params["name"] in names:
            found = {eqn.params["name"]: [jnp.asarray(inputs[0])[None]]}
        for name, parts in found.items():
            values.setdefault(name, []).extend(parts)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], values


def _scan(closed: ClosedJaxpr, eqn: JaxprEqn, inputs: Arrays, names: set[str]) -> tuple[Arrays, Values]:
    """Evaluate a scan, whose iterations also return their values."""
    length = eqn.params["length"]
    # inputs are constants, carry and xs; only xs, and the ys of the outputs, have one dim less in an iteration
    outer: list[jax.core.ShapedArray] = [out.aval for out in eqn.outvars]  # type: ignore[misc]
    carried = sum(out.ndim == inner.ndim for out, inner in zip(outer, closed.out_avals, strict=True))
    scanned = sum(jnp.ndim(x) > inner.ndim for x, inner in zip(inputs, closed.in_avals, strict=True))
    fixed = len(inputs) - scanned - carried
    consts, init, xs = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]

    def body(carry: Arrays, x: Arrays) -> tuple[Arrays, tuple[Arrays, Values]]:
        outputs, values = _run(closed, [*consts, *carry, *x], names)
        joined = {name: _join(parts) for name, parts in values.items()}
        return outputs[:carried], (outputs[carried:], joined)

    how = {name: eqn.params[name] for name in ("reverse", "unroll")}
    carry, (ys, values) = jax.lax.scan(body, init, xs, length, **how)
    return [*carry, *ys], {name: _merge(parts, length) for name, parts in values.items()}


def _join(parts: list[Array]) -> list[Array]:
    """One array instead of several, if the shapes of their values agree."""
    alike = len({(part.shape[1:], part.dtype) for part in parts}) == 1
    return [jnp.concatenate(parts)] if alike and len(parts) > 1 else parts


def _merge(parts: list[Array], length: int) -> list[Array]:
    """The values of a scan's iterations, in order: each [iterations N ...] -> [iterations * N ...]."""
    if len(parts) == 1:
        return [parts[0].reshape(length * parts[0].shape[1], *parts[0].shape[2:])]
    return [part[i] for i in range(length) for part in parts]
