"""Gradients that Canon writes out by hand, and a context in which JAX derives them instead."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")
_PLAIN = jax.make_user_context(False)  # a part of the key of jit's caches


def plain_gradients() -> AbstractContextManager[None]:
    """A block in which JAX derives every gradient, so that forward mode and second derivatives exist.

    Hand-written ones, of convolutions, batch norm, pooling, attention by blocks, routed experts and large vocabularies,
    are faster but have neither. Both are equal up to rounding. A jitted function that was traced outside is traced
    again inside the block.
    """
    return _PLAIN(True)


def are_plain() -> bool:
    """Whether this is traced in a block of `plain_gradients`."""
    return _PLAIN.value


def with_gradient(
    function: Callable[P, T],
    forward: Callable[..., tuple[T, Any]],
    backward: Callable[..., tuple[Any, ...]],
    nondiff_argnums: tuple[int, ...] = (),
    plain: Callable[P, T] | None = None,
) -> Callable[P, T]:
    """A function with the gradient of `jax.custom_vjp`, and in `plain_gradients` with that of `plain`.

    `plain` is another form of the function that JAX can differentiate twice; None: the function itself.
    """
    custom = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)
    custom.defvjp(forward, backward)

    @functools.wraps(function)
    def call(*args: P.args, **more: P.kwargs) -> T:
        return (plain or function)(*args, **more) if are_plain() else custom(*args, **more)

    return call
