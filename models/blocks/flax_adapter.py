"""A Flax module, Linen or NNX, as pure functions over one tree: the family `flax`.

A tree is {"params": nested dict, collection: nested dict, ...}; the paths in it are the module's own. Whatever a module
changes as it runs, and every stream of random numbers, goes in and out as a value.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import meta
from flax.errors import InvalidRngError

from errors import UsageError
from models.core.layers import site_hash
from models.core.spec import Array

Tree = dict[str, Any]
TRAINING = {  # how modules call the switch between training and use, and its value in training
    **dict.fromkeys(("train", "training", "is_training"), True),
    **dict.fromkeys(("deterministic", "use_running_average", "eval"), False),
}
EXTRAS = {"mask": jnp.float32, "position": jnp.int32, "segment": jnp.int32}  # [B T], for a call that names them


@dataclass(frozen=True)
class FlaxFunctions:
    """A module: init(key) -> tree; run(tree, x, train, key, more) -> (value, new collections, sown losses)."""

    init: Callable[[Array], Tree]
    run: Callable[..., tuple[Any, Tree, Any]]
    axes: dict[str, tuple[str | None, ...]]  # of the leaves whose metadata name their axes
    extras: tuple[str, ...]  # of EXTRAS, what its call names


def adapt(
    kind: type,
    args: dict[str, Any],
    example: jax.ShapeDtypeStruct,
    streams: tuple[str, ...],
    wanted: tuple[int, ...] | None = None,
) -> FlaxFunctions:
    """The functions of a Linen or NNX class, built with `args`, for inputs like `example` [1 ...] -> `wanted` [1 ...].

    Raises UsageError for a class of neither kind, where it cannot be built or run, and where it gives another shape.
    """
    for base, adapter in ((linen.Module, _linen), (nnx.Module, _nnx)):
        if issubclass(kind, base):
            try:
                made = adapter(kind, args, example, streams)
                _check_outputs(kind, made, example, wanted)
                return made
            except UsageError:
                raise
            except InvalidRngError as error:
                lacks = re.findall(r'PRNG for "(.*?)"', str(error))
                raise UsageError(
                    f"{kind.__name__} draws from a stream that model.streams = {streams} lacks: add {', '.join(lacks)}"
                ) from error
            except Exception as error:  # whatever a user's module may raise
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                given = ", ".join(f"{k}={v!r}" for k, v in args.items()) or "nothing"
                raise UsageError(
                    f"{kind.__name__} cannot be built with {given} and run on {example.shape}: {first}"
                ) from error
    raise UsageError(f"{kind.__module__}:{kind.__name__} is neither a flax.linen.Module nor a flax.nnx.Module")


def _check_outputs(
    kind: type, made: FlaxFunctions, example: jax.ShapeDtypeStruct, wanted: tuple[int, ...] | None
) -> None:
    """Run a module in training and in use, with nothing computed. Raises UsageError for what it gives or lacks."""
    key, name = jax.random.key(0), kind.__name__
    run = partial(made.run, more=_required_kwargs(kind.__call__, example))
    with _no_mesh():
        tree = jax.eval_shape(made.init, key)
        if not jax.tree.leaves(tree.get("params")):
            raise UsageError(f"{name} has no parameters")
        for train in (False, True):
            value, _, _ = jax.eval_shape(partial(run, train=train), tree, example, key=key if train else None)
            if not isinstance(value, jax.ShapeDtypeStruct):
                raise UsageError(f"{name} gives a {type(value).__name__}, one array is wanted")
            if wanted is not None and value.shape != wanted:
                raise UsageError(f"{name} gives {value.shape}, {wanted} is wanted")


def init_arguments(kind: type) -> tuple[list[str], bool]:
    """The names of the arguments that a class is built with, and whether it takes any others."""
    every = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in every if p.kind not in several and p.name not in ("self", "parent", "name", "rngs")]
    return names, any(p.kind == inspect.Parameter.VAR_KEYWORD for p in every)


def _train_kwarg(call: Callable[..., Any], train: bool) -> dict[str, bool]:
    """The keyword by which a module is told whether it trains."""
    names = inspect.signature(call).parameters
    return {name: train == TRAINING[name] for name in names if name in TRAINING}


def _extra_kwargs(call: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(name for name in EXTRAS if name in inspect.signature(call).parameters)


def _required_kwargs(call: Callable[..., Any], example: jax.ShapeDtypeStruct) -> Tree:
    """Values of EXTRAS for a call that cannot do without them."""
    names = inspect.signature(call).parameters
    needed = [name for name in _extra_kwargs(call) if names[name].default is inspect.Parameter.empty]
    return {name: jnp.ones(example.shape[:2], EXTRAS[name]) for name in needed}


def _no_mesh() -> Any:
    """A context in which metadata's names, which are no axes of our mesh, constrain nothing."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def _streams(key: Array, names: tuple[str, ...]) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, site_hash(name)) for name in names}


def _linen(kind: type, args: dict[str, Any], example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> FlaxFunctions:
    module = kind(**args)
    off = _train_kwarg(kind.__call__, False)

    def init_boxed(key: Array) -> Tree:
        x = jnp.zeros(example.shape, example.dtype)
        with _no_mesh():
            made = module.init(
                _streams(key, ("params", *streams)), x, **off, **_required_kwargs(kind.__call__, example)
            )
        kept = {name: _without_sown(tree) for name, tree in made.items() if name not in ("losses", "intermediates")}
        return {name: tree for name, tree in kept.items() if tree}

    abstract = jax.eval_shape(init_boxed, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
    axes = {_name(path): tuple(leaf.names) for path, leaf in leaves if hasattr(leaf, "names")}

    def call_module(tree: Tree, x: Array, train: bool, rngs: dict[str, Array], more: Tree) -> tuple[Any, Tree]:
        changing = [name for name in tree if name != "params"]
        mutable = [*changing, "losses"] if train else []
        return module.apply(tree, x, **_train_kwarg(kind.__call__, train), **more, rngs=rngs, mutable=mutable)

    def run(tree: Tree, x: Array, train: bool, key: Array | None, more: Tree) -> tuple[Any, Tree, Any]:
        rngs = _streams(jax.random.key(0) if key is None else key, streams) if train or draws else {}
        value, new = call_module(tree, x, train, rngs, more)
        kept = {
            name: _restrict_to(held, {**held, **new.get(name, {})}) for name, held in tree.items() if name != "params"
        }
        return value, kept, new.get("losses", {})

    def init(key: Array) -> Tree:
        with _no_mesh():
            return meta.unbox(init_boxed(key))

    try:  # without streams a module may know that it is not trained
        with _no_mesh():
            tree = jax.eval_shape(init, jax.random.key(0))
            quiet = partial(call_module, train=False, rngs={}, more=_required_kwargs(kind.__call__, example))
            jax.eval_shape(quiet, tree, example)
        draws = False
    except InvalidRngError:
        draws = True
    return FlaxFunctions(init, run, axes, _extra_kwargs(kind.__call__))


def _nnx(kind: type, args: dict[str, Any], example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> FlaxFunctions:
    seeded = "rngs" in inspect.signature(kind.__init__).parameters or init_arguments(kind)[1]  # type: ignore[misc]
    draws_in_call = "rngs" in inspect.signature(kind.__call__).parameters

    def build(key: Array) -> Any:
        with nnx.use_eager_sharding(False):
            return kind(**args, **({"rngs": nnx.Rngs(key)} if seeded else {}))

    def split_state(module: Any) -> Any:
        """Graph, parameters, random streams, all else."""
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    graphs = {}
    for train in (True, False):
        with nnx.use_eager_sharding(False):
            try:
                module = nnx.eval_shape(partial(build, jax.random.key(0)))
            except ValueError as error:
                if "arrays cannot be passed as metadata fields" not in str(error):
                    raise
                raise UsageError(f"{kind.__name__} holds a bare array: hold it as nnx.Variable, or nnx.data") from error
        module.train() if train else module.eval()
        graphs[train], params, draws, rest = split_state(module)
    axes = {}
    for path, variable in nnx.to_flat_state(params):
        found = variable.get_metadata()
        names = next((found[k] for k in ("out_sharding", "sharding_names", "sharding") if found.get(k)), None)
        if names is not None:
            axes["/".join(("params", *map(str, path)))] = tuple(names)

    def to_tree(params: Any, rest: Any) -> Tree:
        return {"params": _to_nested(params), **({"state": _to_nested(rest)} if nnx.to_flat_state(rest) else {})}

    def init(key: Array) -> Tree:
        _, params, _, rest = split_state(build(key))
        return to_tree(params, rest)

    def run(tree: Tree, x: Array, train: bool, key: Array | None, more: Tree) -> tuple[Any, Tree, Any]:
        key = jax.random.key(0) if key is None else key
        drawn = _map_nnx_state(draws, lambda path, v: _init_rng_state(path, v, key))
        rngs = {"rngs": nnx.Rngs(jax.random.fold_in(key, site_hash("rngs")))} if draws_in_call else {}
        state = [
            _map_nnx_state(params, partial(_leaf_at, tree["params"])),
            drawn,
            _map_nnx_state(rest, partial(_leaf_at, tree.get("state"))),
        ]
        with nnx.use_eager_sharding(False):
            module = nnx.merge(graphs[train], *state)
            value = module(x, **_train_kwarg(kind.__call__, train), **rngs, **more)
        _, _, _, new = split_state(module)
        kept = _restrict_to(tree["state"], _to_nested(new)) if "state" in tree else {}
        return value, {"state": kept} if kept else {}, {}

    return FlaxFunctions(init, run, axes, _extra_kwargs(kind.__call__))


def _init_rng_state(path: tuple[Any, ...], abstract: Any, key: Array) -> Array:
    """The key or the count of one of an NNX module's streams, of a stack of them if that is its shape."""
    if jnp.issubdtype(abstract.dtype, jax.dtypes.prng_key):
        own = jax.random.fold_in(key, site_hash("/".join(map(str, path))))
        return jax.random.split(own, abstract.shape) if abstract.shape else own
    return jnp.zeros(abstract.shape, abstract.dtype)


def _map_nnx_state(state: Any, value: Callable[[tuple[Any, ...], Any], Any]) -> Any:
    """A state of the same structure, each variable's value made from its path and its abstract value."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state(
        [
            (path, v.replace(value(path, v.get_value())) if isinstance(v, nnx.Variable) else value(path, v))
            for path, v in flat
        ]
    )


def _leaf_at(tree: Any, path: tuple[Any, ...], _: Any = None) -> Any:
    for part in path:
        tree = tree[str(part)]
    return tree


def _without_sown(tree: Any) -> Any:
    """A collection without the tuples that `sow` makes, which would grow each time the module runs."""
    if not isinstance(tree, dict):
        return tree
    kept = {k: _without_sown(v) for k, v in tree.items() if not isinstance(v, tuple)}
    return {k: v for k, v in kept.items() if not isinstance(v, dict) or v}


def _restrict_to(tree: Tree, other: Tree) -> Tree:
    """`other` cut down to the paths of `tree`."""
    return {k: _restrict_to(v, other[k]) if isinstance(v, dict) else other[k] for k, v in tree.items()}


def _to_nested(state: Any) -> Tree:
    """A state's values as nested dicts with keys of str."""
    tree: Tree = {}
    for path, variable in nnx.to_flat_state(state):
        *folders, leaf = map(str, path)
        inside = tree
        for folder in folders:
            inside = inside.setdefault(folder, {})
        inside[leaf] = variable.get_value() if isinstance(variable, nnx.Variable) else variable
    return tree


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
