"""An NNX module as pure functions. Its collection `state` has all variables but parameters and random streams."""

import inspect
from collections.abc import Callable, Hashable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from errors import UsageError
from models.blocks.flax_adapter.calls import extra_kwargs, init_arguments, restrict_to, train_kwarg
from models.core.layers import site_hash
from models.core.spec import unflatten
from models.core.types import Array, Fields, Leaf, Tree

Path = tuple[Hashable, ...]  # of a variable in a state


class NNXFunctions:
    """The functions of an NNX module."""

    def __init__(self, kind: type, args: Fields, example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> None:
        """Build a module. Raises as its class does, and UsageError for one that holds a bare array."""
        self.kind, self.args = kind, args
        self.seeded = "rngs" in inspect.signature(kind.__init__).parameters or init_arguments(kind)[1]  # type: ignore[misc]
        self.extras = extra_kwargs(kind.__call__)
        self.graphs = {}
        for train in (True, False):
            module = self._build_abstract()
            module.train() if train else module.eval()
            self.graphs[train], self.params, self.draws, self.rest = _split(module)
        self.axes = _axis_names(self.params)

    def init(self, key: Array) -> Tree:
        """The initial tree."""
        _, params, _, rest = _split(self._build(key))
        state = {"state": _to_nested(rest)} if nnx.to_flat_state(rest) else {}
        return {"params": _to_nested(params), **state}

    def run(self, tree: Tree, x: Array, train: bool, key: Array | None, extras: Tree) -> tuple[PyTree, Tree, Tree]:
        """Call the module -> its value, the new collections, and no losses."""
        key = jax.random.key(0) if key is None else key
        rngs = {}
        if "rngs" in inspect.signature(self.kind.__call__).parameters:
            rngs["rngs"] = nnx.Rngs(jax.random.fold_in(key, site_hash("rngs")))
        params = _fill(self.params, partial(_leaf_at, tree["params"]))
        draws = _fill(self.draws, lambda path, v: _init_rng_state(path, v, key))
        rest = _fill(self.rest, partial(_leaf_at, tree.get("state", {})))
        with nnx.use_eager_sharding(False):
            module = nnx.merge(self.graphs[train], params, draws, rest)
            value = module(x, **train_kwarg(self.kind.__call__, train), **rngs, **extras)
        _, _, _, changed = _split(module)
        new = restrict_to(tree["state"], _to_nested(changed)) if "state" in tree else {}
        return value, {"state": new} if new else {}, {}

    def _build(self, key: Array) -> nnx.Module:
        with nnx.use_eager_sharding(False):
            return self.kind(**self.args, **({"rngs": nnx.Rngs(key)} if self.seeded else {}))

    def _build_abstract(self) -> nnx.Module:
        with nnx.use_eager_sharding(False):
            try:
                return nnx.eval_shape(partial(self._build, jax.random.key(0)))
            except ValueError as error:
                if "arrays cannot be passed as metadata fields" not in str(error):
                    raise
                raise UsageError(
                    f"{self.kind.__name__} holds a bare array: wrap it in nnx.Variable or nnx.data"
                ) from error


def _split(module: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State, nnx.State]:
    """Graph, parameters, random streams, and the rest."""
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params, draws, rest = states
    return graph, params, draws, rest


def _axis_names(params: nnx.State) -> dict[str, tuple[str | None, ...]]:
    """The axis names of parameters that have them in their metadata, by path."""
    axes = {}
    for path, variable in nnx.to_flat_state(params):
        metadata = variable.get_metadata()
        names = next((metadata[k] for k in ("out_sharding", "sharding_names", "sharding") if metadata.get(k)), None)
        if names is not None:
            axes[f"params/{_path_name(path)}"] = tuple(names)
    return axes


def _path_name(path: Path) -> str:
    return "/".join(map(str, path))


def _to_nested(state: nnx.State) -> Tree:
    """A state's values as nested dicts with keys of str."""
    return unflatten({_path_name(path): _value(variable) for path, variable in nnx.to_flat_state(state)})


def _value(variable: nnx.Variable | Leaf) -> Leaf:
    return variable.get_value() if isinstance(variable, nnx.Variable) else variable


def _fill(state: nnx.State, value: Callable[[Path, Leaf], Leaf]) -> nnx.State:
    """A state of equal structure, with value(path, abstract value) in each variable."""
    flat = []
    for path, old in nnx.to_flat_state(state):
        new = value(path, _value(old))
        flat.append((path, old.replace(new) if isinstance(old, nnx.Variable) else new))
    return nnx.from_flat_state(flat)


def _leaf_at(tree: Tree, path: Path, _: Leaf = None) -> Leaf:
    for part in path:
        tree = tree[str(part)]
    return tree


def _init_rng_state(path: Path, abstract: jax.ShapeDtypeStruct, key: Array) -> Array:
    """The key or the count of a random stream; of a stack of streams if the shape is one."""
    if jnp.issubdtype(abstract.dtype, jax.dtypes.prng_key):
        own = jax.random.fold_in(key, site_hash(_path_name(path)))
        return jax.random.split(own, abstract.shape) if abstract.shape else own
    return jnp.zeros(abstract.shape, abstract.dtype)
