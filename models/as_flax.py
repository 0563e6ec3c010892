"""A Canon model as a Flax module, Linen or NNX, for use inside your own module.

    module = as_flax.Linen(models.build("gpt", size="gpt2", depth=2))
    variables = module.init(jax.random.key(0), tokens)              # {"params": ..., maybe "batch_stats": ...}
    logits = module.apply(variables, tokens)

    module = as_flax.NNX(models.build("gpt", size="gpt2", depth=2), rngs=nnx.Rngs(0))
    logits = module(tokens)

The parameters have the tree and the initializers of `model.init`. NNX initializes with the key `rngs.params()`, Linen
with a key for each top-level entry. Dropout uses the stream `dropout`.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen, nnx
from jax.typing import ArrayLike

from models import Model
from models.core.spec import initialize
from models.core.types import Array, Specs, Tree


class Linen(linen.Module):
    """A model as a Linen module, with its parameters in `params` and its running statistics in `batch_stats`."""

    model: Model

    @linen.compact
    def __call__(self, inputs: Mapping[str, ArrayLike] | ArrayLike, *, train: bool = False) -> Any:
        """The model's value; see its family's `apply`. In training a collection `batch_stats` must be mutable."""
        specs = self.model.specs
        params = {
            name: self.param(name, lambda key, n=name: _init_subtree(specs["params"], n, key))
            for name in specs["params"]
        }
        running = {
            name: self.variable("batch_stats", name, lambda n=name: _init_subtree(specs["stats"], n, jax.random.key(0)))
            for name in specs.get("stats", {})
        }
        key = self.make_rng("dropout") if train and self.has_rng("dropout") else None
        stats = {name: variable.value for name, variable in running.items()}
        out = self.model.apply({"params": params, "stats": stats}, inputs, train=train, key=key)
        if train and not self.is_initializing():
            for name, new in (out.stats or {}).items():
                running[name].value = new
        return out.value


def _init_subtree(specs: Specs, name: str, key: Array) -> Tree:
    return initialize({name: specs[name]}, key)[name]


def _is_variable(x: object) -> bool:
    return isinstance(x, nnx.Variable)


class NNX(nnx.Module):
    """A model as an NNX module, with parameters as `nnx.Param` and running statistics as `nnx.BatchStat`."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs) -> None:
        variables = model.init(rngs.params())
        self.model = model
        self.deterministic = False  # switched by module.train() and module.eval(), as in nnx.Dropout
        self.params = nnx.data(jax.tree.map(nnx.Param, variables["params"]))
        self.stats = nnx.data(jax.tree.map(nnx.BatchStat, variables.get("stats", {})))
        self.rngs = rngs.fork()

    def __call__(self, inputs: Mapping[str, ArrayLike] | ArrayLike) -> Any:
        """The model's value; see its family's `apply`."""
        params, stats = (
            jax.tree.map(lambda v: v.get_value(), t, is_leaf=_is_variable) for t in (self.params, self.stats)
        )
        train = not self.deterministic
        key = self.rngs.dropout() if train else None
        out = self.model.apply({"params": params, "stats": stats}, inputs, train=train, key=key)
        if train and out.stats:
            jax.tree.map(lambda v, new: v.set_value(new), self.stats, out.stats, is_leaf=_is_variable)
        return out.value
