"""A Flax module, Linen or NNX, as pure functions over one tree. `models/families/flax.py` builds a family on them.

A tree is {"params": nested dict, collection: nested dict, ...}, with the module's own paths. All that a module changes
when it runs, and all its random streams, are explicit inputs and outputs.
"""

import inspect
import re
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import meta
from flax.errors import InvalidRngError
from jaxtyping import PyTree

from errors import UsageError
from models.core.layers import site_hash
from models.core.spec import path_name
from models.core.types import Array, Fields, Leaf, Tree

NNXPath = tuple[Hashable, ...]  # of a variable in the state of an NNX module
TRAINING = {  # argument names by which modules switch between training and inference -> the value in training
    **dict.fromkeys(("train", "training", "is_training"), True),
    **dict.fromkeys(("deterministic", "use_running_average", "eval"), False),
}
EXTRAS = {"mask": jnp.float32, "position": jnp.int32, "segment": jnp.int32}  # [B T], passed if the call has them


@dataclass(frozen=True)
class FlaxFunctions:
    """A module: init(key) -> tree; run(tree, x, train, key, extras) -> (value, new collections, sown losses)."""

    init: Callable[[Array], Tree]
    run: Callable[..., tuple[PyTree, Tree, Tree]]
    axes: dict[str, tuple[str | None, ...]]  # by path, of leaves with axis names in their metadata
    extras: tuple[str, ...]  # the EXTRAS that its call takes


def adapt(
    kind: type,
    args: Fields,
    example: jax.ShapeDtypeStruct,
    streams: tuple[str, ...],
    wanted: tuple[int, ...] | None = None,
) -> FlaxFunctions:
    """The functions of a Linen or NNX class, built with `args`, for inputs like `example` [1 ...] -> `wanted` [1 ...].

    Raises UsageError for a class that is neither, that cannot be built or run, or whose output has another shape.
    """
    for base, adapter in ((linen.Module, _linen), (nnx.Module, _nnx)):
        if issubclass(kind, base):
            try:
                functions = adapter(kind, args, example, streams)
                _check_outputs(kind, functions, example, wanted)
                return functions
            except UsageError:
                raise
            except InvalidRngError as error:
                missing = ", ".join(re.findall(r'PRNG for "(.*?)"', str(error)))
                raise UsageError(
                    f"{kind.__name__} draws from a stream that model.streams = {streams} lacks: add {missing}"
                ) from error
            except Exception as error:  # a user's module may raise anything
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                given = ", ".join(f"{k}={v!r}" for k, v in args.items()) or "nothing"
                raise UsageError(
                    f"{kind.__name__} cannot be built with {given} and run on {example.shape}: {first}"
                ) from error
    raise UsageError(f"{kind.__module__}:{kind.__name__} is neither a flax.linen.Module nor a flax.nnx.Module")


def _check_outputs(
    kind: type, functions: FlaxFunctions, example: jax.ShapeDtypeStruct, wanted: tuple[int, ...] | None
) -> None:
    """Trace a module in training and in inference. Raises UsageError for no parameters and for other outputs."""
    key = jax.random.key(0)
    name = kind.__name__
    run = partial(functions.run, extras=_required_kwargs(kind.__call__, example))
    with _no_mesh():
        tree = jax.eval_shape(functions.init, key)
        if not jax.tree.leaves(tree.get("params")):
            raise UsageError(f"{name} has no parameters")
        for train in (False, True):
            value, _, _ = jax.eval_shape(partial(run, train=train), tree, example, key=key if train else None)
            if not isinstance(value, jax.ShapeDtypeStruct):
                raise UsageError(f"{name} returns a {type(value).__name__}; it must return one array")
            if wanted is not None and value.shape != wanted:
                raise UsageError(f"{name} returns shape {value.shape}; it must be {wanted}")


def init_arguments(kind: type) -> tuple[list[str], bool]:
    """The names of a class's constructor arguments, and whether it also takes `**kwargs`."""
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in parameters if p.kind not in variadic and p.name not in ("self", "parent", "name", "rngs")]
    return names, any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)


def _train_kwarg(call: Callable[..., PyTree], train: bool) -> dict[str, bool]:
    """The keyword argument that switches a call between training and inference."""
    names = inspect.signature(call).parameters
    return {name: train == TRAINING[name] for name in names if name in TRAINING}


def _extra_kwargs(call: Callable[..., PyTree]) -> tuple[str, ...]:
    return tuple(name for name in EXTRAS if name in inspect.signature(call).parameters)


def _required_kwargs(call: Callable[..., PyTree], example: jax.ShapeDtypeStruct) -> Tree:
    """Placeholder values of the EXTRAS that a call requires."""
    names = inspect.signature(call).parameters
    needed = [name for name in _extra_kwargs(call) if names[name].default is inspect.Parameter.empty]
    return {name: jnp.ones(example.shape[:2], EXTRAS[name]) for name in needed}


def _no_mesh() -> AbstractContextManager[object]:
    """A context in which axis names of metadata, which are not those of our mesh, have no effect."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def _streams(key: Array, names: tuple[str, ...]) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, site_hash(name)) for name in names}


def _linen(kind: type, args: Fields, example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> FlaxFunctions:
    module = kind(**args)
    inference = _train_kwarg(kind.__call__, False)
    required = _required_kwargs(kind.__call__, example)

    def init_boxed(key: Array) -> Tree:
        x = jnp.zeros(example.shape, example.dtype)
        with _no_mesh():
            variables = module.init(_streams(key, ("params", *streams)), x, **inference, **required)
        tree = {}
        for name, collection in variables.items():
            kept = {} if name in ("losses", "intermediates") else _without_sown(collection)
            if kept:
                tree[name] = kept
        return tree

    abstract = jax.eval_shape(init_boxed, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
    axes = {path_name(path): tuple(leaf.names) for path, leaf in leaves if hasattr(leaf, "names")}

    def call_module(tree: Tree, x: Array, train: bool, rngs: dict[str, Array], extras: Tree) -> tuple[PyTree, Tree]:
        collections = [name for name in tree if name != "params"]
        mutable = [*collections, "losses"] if train else []
        return module.apply(tree, x, **_train_kwarg(kind.__call__, train), **extras, rngs=rngs, mutable=mutable)

    def run(tree: Tree, x: Array, train: bool, key: Array | None, extras: Tree) -> tuple[PyTree, Tree, Tree]:
        rngs = _streams(jax.random.key(0) if key is None else key, streams) if train or draws else {}
        value, changed = call_module(tree, x, train, rngs, extras)
        collections = {}
        for name, old in tree.items():
            if name != "params":
                collections[name] = _restrict_to(old, {**old, **changed.get(name, {})})
        return value, collections, changed.get("losses", {})

    def init(key: Array) -> Tree:
        with _no_mesh():
            return meta.unbox(init_boxed(key))

    try:  # does it run in inference without random streams?
        with _no_mesh():
            tree = jax.eval_shape(init, jax.random.key(0))
            deterministic = partial(call_module, train=False, rngs={}, extras=required)
            jax.eval_shape(deterministic, tree, example)
        draws = False
    except InvalidRngError:
        draws = True
    return FlaxFunctions(init, run, axes, _extra_kwargs(kind.__call__))


def _nnx(kind: type, args: Fields, example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> FlaxFunctions:
    seeded = "rngs" in inspect.signature(kind.__init__).parameters or init_arguments(kind)[1]  # type: ignore[misc]
    draws_in_call = "rngs" in inspect.signature(kind.__call__).parameters

    def build(key: Array) -> nnx.Module:
        with nnx.use_eager_sharding(False):
            return kind(**args, **({"rngs": nnx.Rngs(key)} if seeded else {}))

    def split_state(module: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State, nnx.State]:
        """Graph, parameters, random streams, and the rest."""
        graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
        params, draws, rest = states
        return graph, params, draws, rest

    graphs = {}
    for train in (True, False):
        with nnx.use_eager_sharding(False):
            try:
                module = nnx.eval_shape(partial(build, jax.random.key(0)))
            except ValueError as error:
                if "arrays cannot be passed as metadata fields" not in str(error):
                    raise
                raise UsageError(f"{kind.__name__} holds a bare array: wrap it in nnx.Variable or nnx.data") from error
        module.train() if train else module.eval()
        graphs[train], params, draws, rest = split_state(module)
    axes = {}
    for path, variable in nnx.to_flat_state(params):
        metadata = variable.get_metadata()
        names = next((metadata[k] for k in ("out_sharding", "sharding_names", "sharding") if metadata.get(k)), None)
        if names is not None:
            axes["/".join(("params", *map(str, path)))] = tuple(names)

    def to_tree(params: nnx.State, rest: nnx.State) -> Tree:
        return {"params": _to_nested(params), **({"state": _to_nested(rest)} if nnx.to_flat_state(rest) else {})}

    def init(key: Array) -> Tree:
        _, params, _, rest = split_state(build(key))
        return to_tree(params, rest)

    def run(tree: Tree, x: Array, train: bool, key: Array | None, extras: Tree) -> tuple[PyTree, Tree, Tree]:
        key = jax.random.key(0) if key is None else key
        rngs = {"rngs": nnx.Rngs(jax.random.fold_in(key, site_hash("rngs")))} if draws_in_call else {}
        state = [
            _map_nnx_state(params, partial(_leaf_at, tree["params"])),
            _map_nnx_state(draws, lambda path, v: _init_rng_state(path, v, key)),
            _map_nnx_state(rest, partial(_leaf_at, tree.get("state", {}))),
        ]
        with nnx.use_eager_sharding(False):
            module = nnx.merge(graphs[train], *state)
            value = module(x, **_train_kwarg(kind.__call__, train), **rngs, **extras)
        _, _, _, changed = split_state(module)
        new = _restrict_to(tree["state"], _to_nested(changed)) if "state" in tree else {}
        return value, {"state": new} if new else {}, {}

    return FlaxFunctions(init, run, axes, _extra_kwargs(kind.__call__))


def _init_rng_state(path: NNXPath, abstract: jax.ShapeDtypeStruct, key: Array) -> Array:
    """The key or the count of an NNX module's random stream; of a stack of streams if the shape is one."""
    if jnp.issubdtype(abstract.dtype, jax.dtypes.prng_key):
        own = jax.random.fold_in(key, site_hash("/".join(map(str, path))))
        return jax.random.split(own, abstract.shape) if abstract.shape else own
    return jnp.zeros(abstract.shape, abstract.dtype)


def _map_nnx_state(state: nnx.State, value: Callable[[NNXPath, Leaf], Leaf]) -> nnx.State:
    """A state of equal structure, with value(path, abstract value) in each variable."""
    flat = []
    for path, old in nnx.to_flat_state(state):
        is_variable = isinstance(old, nnx.Variable)
        new = value(path, old.get_value() if is_variable else old)
        flat.append((path, old.replace(new) if is_variable else new))
    return nnx.from_flat_state(flat)


def _leaf_at(tree: Tree, path: NNXPath, _: Leaf = None) -> Leaf:
    for part in path:
        tree = tree[str(part)]
    return tree


def _without_sown(tree: Tree | Leaf) -> Tree | Leaf:
    """A collection without the tuples of `sow`, which grow with each run of the module."""
    if not isinstance(tree, dict):
        return tree
    kept = {k: _without_sown(v) for k, v in tree.items() if not isinstance(v, tuple)}
    return {k: v for k, v in kept.items() if not isinstance(v, dict) or v}


def _restrict_to(tree: Tree, other: Tree) -> Tree:
    """The leaves of `other` at the paths of `tree`."""
    return {k: _restrict_to(v, other[k]) if isinstance(v, dict) else other[k] for k, v in tree.items()}


def _to_nested(state: nnx.State) -> Tree:
    """A state's values as nested dicts with keys of str."""
    tree: Tree = {}
    for path, variable in nnx.to_flat_state(state):
        *folders, leaf = map(str, path)
        inside = tree
        for folder in folders:
            inside = inside.setdefault(folder, {})
        inside[leaf] = variable.get_value() if isinstance(variable, nnx.Variable) else variable
    return tree
