"""The arguments with which a Flax module is built and called, by its signatures."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from models.core.types import Tree

TRAINING = {  # argument names by which modules switch between training and inference -> the value in training
    **dict.fromkeys(("train", "training", "is_training"), True),
    **dict.fromkeys(("deterministic", "use_running_average", "eval"), False),
}
EXTRAS = {"mask": jnp.float32, "position": jnp.int32, "segment": jnp.int32}  # [B T], passed if the call has them


def init_arguments(kind: type) -> tuple[list[str], bool]:
    """The names of a class's constructor arguments, and whether it also takes `**kwargs`."""
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in parameters if p.kind not in variadic and p.name not in ("self", "parent", "name", "rngs")]
    return names, any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)


def train_kwarg(call: Callable[..., PyTree], train: bool) -> dict[str, bool]:
    """The keyword argument that switches a call between training and inference."""
    names = inspect.signature(call).parameters
    return {name: train == TRAINING[name] for name in names if name in TRAINING}


def extra_kwargs(call: Callable[..., PyTree]) -> tuple[str, ...]:
    """The EXTRAS that a call takes."""
    return tuple(name for name in EXTRAS if name in inspect.signature(call).parameters)


def required_kwargs(call: Callable[..., PyTree], example: jax.ShapeDtypeStruct) -> Tree:
    """Placeholder values of the EXTRAS that a call requires."""
    names = inspect.signature(call).parameters
    needed = [name for name in extra_kwargs(call) if names[name].default is inspect.Parameter.empty]
    return {name: jnp.ones(example.shape[:2], EXTRAS[name]) for name in needed}


def no_mesh() -> AbstractContextManager[object]:
    """A context in which axis names of metadata, which are not those of our mesh, have no effect."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def restrict_to(tree: Tree, other: Tree) -> Tree:
    """The leaves of `other` at the paths of `tree`."""
    return {k: restrict_to(v, other[k]) if isinstance(v, dict) else other[k] for k, v in tree.items()}
