"""A Canon model as a Flax module, Linen or NNX, to be used inside a user's own.

    module = as_flax.Linen(models.build("gpt", size="gpt2", depth=2))
    variables = module.init(jax.random.key(0), tokens)              # {"params": ..., maybe "batch_stats": ...}
    logits = module.apply(variables, tokens)

    module = as_flax.NNX(models.build("gpt", size="gpt2", depth=2), rngs=nnx.Rngs(0))
    logits = module(tokens)

The parameters lie in the tree of `model.init` and start by its laws; NNX's are those of its key `rngs.params()`, Linen
draws each by a key of its own. Noise is drawn from the stream `dropout`.
"""

from typing import Any

import jax
from flax import linen, nnx

from models import Model
from models.core.spec import initialize


class Linen(linen.Module):
    """A model as a Linen module: its parameters are in `params`, its running statistics in `batch_stats`."""

    model: Model

    @linen.compact
    def __call__(self, inputs: Any, *, train: bool = False) -> Any:
        """The model's value; see its family's `apply`. In training `batch_stats` is to be mutable, if there is any."""
        specs = self.model.specs
        params = {
            name: self.param(name, lambda key, n=name: _init_subtree(specs["params"], n, key))
            for name in specs["params"]
        }
        held = {
            name: self.variable("batch_stats", name, lambda n=name: _init_subtree(specs["stats"], n, jax.random.key(0)))
            for name in specs.get("stats", {})
        }
        key = self.make_rng("dropout") if train and self.has_rng("dropout") else None
        stats = {name: variable.value for name, variable in held.items()}
        out = self.model.apply({"params": params, "stats": stats}, inputs, train=train, key=key)
        if train and not self.is_initializing():
            for name, variable in held.items():
                variable.value = out.stats[name]
        return out.value


def _init_subtree(specs: dict[str, Any], name: str, key: Any) -> Any:
    return initialize({name: specs[name]}, key)[name]


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


class NNX(nnx.Module):
    """A model as an NNX module: its parameters are `nnx.Param`, its running statistics `nnx.BatchStat`."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs) -> None:
        variables = model.init(rngs.params())
        self.model = model
        self.deterministic = False  # switched by module.train() and module.eval(), as in nnx.Dropout
        self.params = nnx.data(jax.tree.map(nnx.Param, variables["params"]))
        self.stats = nnx.data(jax.tree.map(nnx.BatchStat, variables.get("stats", {})))
        self.rngs = rngs.fork()

    def __call__(self, inputs: Any) -> Any:
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
