"""A Flax module, Linen or NNX, as pure functions over one tree: what `models/flax.py` makes a family of.

A tree is {"params": nested dict, collection: nested dict, ...}; the paths in it are the module's own. Whatever a module
changes as it runs, and every stream of random numbers, goes in and out as a value.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import meta

from errors import UsageError
from models.layers import site_hash
from models.spec import Array

Tree = dict[str, Any]
TRAINING = {  # how modules call the switch between training and use, and its value in training
    **dict.fromkeys(("train", "training", "is_training"), True),
    **dict.fromkeys(("deterministic", "use_running_average", "eval"), False),
}


@dataclass(frozen=True)
class Foreign:
    """A module's functions: init(key) -> tree; run(tree, x, train, key) -> (value, new collections, sown losses)."""

    init: Callable[[Array], Tree]
    run: Callable[..., tuple[Array, Tree, Any]]
    axes: dict[str, tuple[str | None, ...]]  # of the leaves whose metadata name their axes


def adapt(kind: type, args: dict[str, Any], example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> Foreign:
    """The functions of a Linen or NNX class, built with `args`, for inputs like `example` [1 ...].

    Raises UsageError for a class of neither kind, and where it cannot be built or run.
    """
    for base, adapter in ((linen.Module, _linen), (nnx.Module, _nnx)):
        if issubclass(kind, base):
            try:
                return adapter(kind, args, example, streams)
            except (TypeError, ValueError, AttributeError) as error:
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                given = ", ".join(f"{k}={v!r}" for k, v in args.items()) or "nothing"
                raise UsageError(
                    f"{kind.__name__} cannot be built with {given} and run on {example.shape}: {first}"
                ) from error
    raise UsageError(f"{kind.__module__}:{kind.__name__} is neither a flax.linen.Module nor a flax.nnx.Module")


def parameters(kind: type) -> list[str]:
    """The names of the arguments that a class is built with."""
    names = inspect.signature(vars(kind).get("__init__", kind)).parameters
    return [n for n in names if n not in ("self", "parent", "name", "rngs", "args", "kwargs")]


def _switch(call: Callable[..., Any], train: bool) -> dict[str, bool]:
    """The keyword by which a module is told whether it trains."""
    names = inspect.signature(call).parameters
    return {name: train == TRAINING[name] for name in names if name in TRAINING}


def _no_mesh() -> Any:
    """A context in which metadata's names, which are no axes of our mesh, constrain nothing."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def _streams(key: Array, names: tuple[str, ...]) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, site_hash(name)) for name in names}


def _linen(kind: type, args: dict[str, Any], example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> Foreign:
    module = kind(**args)
    off = _switch(kind.__call__, False)

    def boxed(key: Array) -> Tree:
        x = jnp.zeros(example.shape, example.dtype)
        with _no_mesh():
            made = module.init(_streams(key, ("params", *streams)), x, **off)
        return {name: tree for name, tree in made.items() if name not in ("losses", "intermediates")}

    abstract = jax.eval_shape(boxed, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
    axes = {_name(path): tuple(leaf.names) for path, leaf in leaves if hasattr(leaf, "names")}

    def run(tree: Tree, x: Array, train: bool, key: Array | None) -> tuple[Array, Tree, Any]:
        changing = [name for name in tree if name != "params"] if train else []
        rngs = {} if key is None else _streams(key, streams)
        mutable = [*changing, *(["losses"] if train else [])]
        out = module.apply(tree, x, **_switch(kind.__call__, train), rngs=rngs, mutable=mutable)
        value, new = out if train else (out[0], {})
        kept = {name: new.get(name, tree[name]) for name in tree if name != "params"}
        return value, kept, new.get("losses", {})

    def init(key: Array) -> Tree:
        with _no_mesh():
            return meta.unbox(boxed(key))

    return Foreign(init, run, axes)


def _nnx(kind: type, args: dict[str, Any], example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> Foreign:
    def build(key: Array) -> Any:
        with nnx.use_eager_sharding(False):
            return kind(**args, rngs=nnx.Rngs(key))

    def parts(module: Any) -> Any:
        """Graph, parameters, random streams, all else."""
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    graphs = {}
    for train in (True, False):
        with nnx.use_eager_sharding(False):
            module = nnx.eval_shape(partial(build, jax.random.key(0)))
        module.train() if train else module.eval()
        graphs[train], params, draws, rest = parts(module)
    axes = {}
    for path, variable in nnx.to_flat_state(params):
        found = variable.get_metadata()
        names = next((found[k] for k in ("out_sharding", "sharding_names", "sharding") if found.get(k)), None)
        if names is not None:
            axes["/".join(("params", *map(str, path)))] = tuple(names)

    def tree_of(params: Any, rest: Any) -> Tree:
        return {"params": _nested(params), **({"state": _nested(rest)} if nnx.to_flat_state(rest) else {})}

    def init(key: Array) -> Tree:
        _, params, _, rest = parts(build(key))
        return tree_of(params, rest)

    def run(tree: Tree, x: Array, train: bool, key: Array | None) -> tuple[Array, Tree, Any]:
        drawn = _filled(draws, lambda path, v: _draw_state(path, v, jax.random.key(0) if key is None else key))
        state = [
            _filled(params, partial(_look, tree["params"])),
            drawn,
            _filled(rest, partial(_look, tree.get("state"))),
        ]
        with nnx.use_eager_sharding(False):
            module = nnx.merge(graphs[train], *state)
            value = module(x, **_switch(kind.__call__, train))
        _, _, _, new = parts(module)
        kept = _like(tree["state"], _nested(new)) if "state" in tree else {}
        return value, {"state": kept} if kept else {}, {}

    return Foreign(init, run, axes)


def _draw_state(path: tuple[Any, ...], abstract: Any, key: Array) -> Array:
    """The key or the count of one of an NNX module's streams."""
    if jnp.issubdtype(abstract.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(key, site_hash("/".join(map(str, path))))
    return jnp.zeros(abstract.shape, abstract.dtype)


def _filled(state: Any, value: Callable[[tuple[Any, ...], Any], Any]) -> Any:
    """A state of the same structure, each variable's value made from its path and its abstract value."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, v.replace(value(path, v.get_value()))) for path, v in flat])


def _look(tree: Any, path: tuple[Any, ...], _: Any = None) -> Any:
    for part in path:
        tree = tree[str(part)]
    return tree


def _like(tree: Tree, other: Tree) -> Tree:
    """`other` cut down to the paths of `tree`."""
    return {k: _like(v, other[k]) if isinstance(v, dict) else other[k] for k, v in tree.items()}


def _nested(state: Any) -> Tree:
    """A state's values as nested dicts with keys of str."""
    tree: Tree = {}
    for path, variable in nnx.to_flat_state(state):
        *folders, leaf = map(str, path)
        inside = tree
        for folder in folders:
            inside = inside.setdefault(folder, {})
        inside[leaf] = variable.get_value()
    return tree


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
