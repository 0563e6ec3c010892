"""A Linen module as pure functions."""

from functools import partial

import jax
import jax.numpy as jnp
from flax.core import meta
from flax.errors import InvalidRngError
from jaxtyping import PyTree

from models.blocks.flax_adapter.calls import extra_kwargs, no_mesh, required_kwargs, restrict_to, train_kwarg
from models.core.layers import site_hash
from models.core.spec import path_name
from models.core.types import Array, Fields, Leaf, Tree


class LinenFunctions:
    """The functions of a Linen module, with `streams` of random numbers."""

    def __init__(self, kind: type, args: Fields, example: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> None:
        """Build a module for inputs like `example` [1 ...]. Raises as its class does."""
        self.kind, self.module = kind, kind(**args)
        self.example, self.streams = example, streams
        self.extras = extra_kwargs(kind.__call__)
        abstract = jax.eval_shape(self._init_boxed, jax.random.key(0))
        leaves = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
        self.axes = {path_name(path): tuple(leaf.names) for path, leaf in leaves if hasattr(leaf, "names")}
        self.draws = self._draws_in_inference()

    def init(self, key: Array) -> Tree:
        """The initial tree."""
        with no_mesh():
            return meta.unbox(self._init_boxed(key))

    def run(self, tree: Tree, x: Array, train: bool, key: Array | None, extras: Tree) -> tuple[PyTree, Tree, Tree]:
        """Call the module -> its value, the new collections, and the losses that it sows."""
        draws = train or self.draws
        rngs = _stream_keys(jax.random.key(0) if key is None else key, self.streams) if draws else {}
        value, changed = self._call(tree, x, train, rngs, extras)
        collections = {}
        for name, old in tree.items():
            if name != "params":
                collections[name] = restrict_to(old, {**old, **changed.get(name, {})})
        return value, collections, changed.get("losses", {})

    def _init_boxed(self, key: Array) -> Tree:
        """The initial tree, with leaves boxed by their metadata."""
        x = jnp.zeros(self.example.shape, self.example.dtype)
        inference = train_kwarg(self.kind.__call__, False)
        required = required_kwargs(self.kind.__call__, self.example)
        with no_mesh():
            variables = self.module.init(_stream_keys(key, ("params", *self.streams)), x, **inference, **required)
        tree = {}
        for name, collection in variables.items():
            kept = {} if name in ("losses", "intermediates") else _without_sown(collection)
            if kept:
                tree[name] = kept
        return tree

    def _call(self, tree: Tree, x: Array, train: bool, rngs: dict[str, Array], extras: Tree) -> tuple[PyTree, Tree]:
        collections = [name for name in tree if name != "params"]
        mutable = [*collections, "losses"] if train else []
        switch = train_kwarg(self.kind.__call__, train)
        return self.module.apply(tree, x, **switch, **extras, rngs=rngs, mutable=mutable)

    def _draws_in_inference(self) -> bool:
        required = required_kwargs(self.kind.__call__, self.example)
        try:
            with no_mesh():
                tree = jax.eval_shape(self.init, jax.random.key(0))
                deterministic = partial(self._call, train=False, rngs={}, extras=required)
                jax.eval_shape(deterministic, tree, self.example)
        except InvalidRngError:
            return True
        return False


def _stream_keys(key: Array, names: tuple[str, ...]) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, site_hash(name)) for name in names}


def _without_sown(tree: Tree | Leaf) -> Tree | Leaf:
    """A collection without the tuples of `sow`, which grow with each run of the module."""
    if not isinstance(tree, dict):
        return tree
    kept = {k: _without_sown(v) for k, v in tree.items() if not isinstance(v, tuple)}
    return {k: v for k, v in kept.items() if not isinstance(v, dict) or v}
