"""Mixtures of experts: what their Configs and tables share, what a run is told of them, and what balances them.

Legend: B batch, T time, D width, F an expert's hidden, E experts, A experts that a token is sent to, L layers.
Source: Shazeer et al. 2017, arXiv:1701.06538. Which experts a token goes to: `routers`; their work: `dispatch`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.decoder import Decoder, biased, residual
from models.dispatch import DISPATCH
from models.routers import Routes, one_hot
from models.spec import Initializer, Spec, normal
from models.stack import Layer
from models.validate import require, require_choice


@dataclass(frozen=True)
class Routed(Decoder):
    """A decoder some of whose layers have experts."""

    experts: int = 8
    active: int = 2  # experts that a token is sent to
    expert_hidden: int | None = None  # of one expert; None is that of the MLP
    balance: float = 0.0  # weight of the loss by which the router spreads tokens over the experts
    dispatch: str = "dropless"  # how the experts' work is done: dropless | dense

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "positive", "experts", "active", "expert_hidden")
        require(self, f"at most experts={self.experts}", "active", test=lambda n: n <= self.experts)
        require(self, "not negative", "balance")
        require_choice(self, dispatch=DISPATCH)

    @property
    def expert_width(self) -> int:
        """F of an expert."""
        return self.expert_hidden or self.feed_forward


@dataclass(frozen=True)
class Interleaved(Routed):
    """With layers that have one MLP and no experts."""

    dense: tuple[int, ...] = ()  # those layers, as far as the depth goes

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "not negative", "dense")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What each layer is; the stacks are `dense` and `moe`."""
        names = ("moe", "dense")
        return tuple(Layer(layer.kind, names[i in self.dense]) for i, layer in enumerate(super().layers))


# The table


def expert_specs(c: Routed, L: int, bias: bool = False, router_bias: bool = False) -> dict[str, Any]:
    """The table of a router [D E] and of gated experts: gate up [E D F], down [E F D]."""
    E, D, F = c.experts, c.width, c.expert_width
    up, axes = Spec((L, E, D, F), "layers experts embed mlp", normal(0.02), fan_in="embed"), "layers experts mlp embed"
    down = Spec((L, E, F, D), axes, residual(c), fan_in="mlp")
    return {
        "router": router_specs(c, L, normal(0.02), router_bias),
        "experts": {name: biased(kernel, bias) for name, kernel in (("gate", up), ("up", up), ("down", down))},
    }


def router_specs(c: Routed, L: int, init: Initializer, bias: bool = False) -> dict[str, Spec]:
    """The table of a router [D E]."""
    return biased(Spec((L, c.width, c.experts), "layers embed choice", init, fan_in="embed"), bias)


# What a run is told of its routers, and what balances them


def router_stats(routes: Routes, served: Bool[Array, "b t a"], position: Int[Array, "#b t"]) -> dict[str, Array]:
    """Of a layer, by row: choices of each expert, sums of shares [B E], sums of entropies, choices not served [B].

    Where a position is below 0, at padding, nothing counts.
    """
    shares = routes.shares
    real = (jnp.zeros(shares.shape[:2], jnp.int32) + position >= 0)[..., None]
    nats = -jnp.sum(real * shares * jnp.log(jnp.maximum(shares, 1e-30)), (1, 2))
    load = jnp.sum(one_hot(routes.experts, shares.shape[-1]) & real[..., None], (1, 2), dtype=jnp.float32)
    return {
        "load": jax.lax.stop_gradient(load),
        "share": jnp.sum(shares * real, 1),
        "entropy": jax.lax.stop_gradient(nats),
        "dropped": jnp.sum(~served & real, (1, 2), dtype=jnp.float32),
    }


def spoken(says: dict[str, Any], balance: float) -> dict[str, Any]:
    """Fields of Outputs by what each stack of layers tells: measures, and the loss that spreads tokens over experts."""
    stacks = [tells for tells in says.values() if tells]
    if not stacks:
        return {}
    layers = jax.tree.map(lambda *each: jnp.concatenate(each), *stacks)
    loss = {"router_aux_loss": (balance * pooled_balance(layers), jnp.ones(()))} if balance else {}
    return {"metrics": measures(layers), "aux_losses": loss}


def measures(layers: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
    """What layers [L B ...] tell, sum and weight by row: load [B L E] in even shares, entropy in nats, dropped.

    A load of 1 is what every expert gets where all get the same; dropped is the share of choices that nobody served.
    """
    L, _, E = layers["load"].shape
    choices, tokens = jnp.sum(layers["load"][0], -1), jnp.sum(layers["share"][0], -1)
    return {
        "expert_load": (jnp.moveaxis(layers["load"], 0, 1), choices / E),
        "expert_dropped": (jnp.sum(layers["dropped"], 0), choices * L),
        "router_entropy": (jnp.sum(layers["entropy"], 0), jax.lax.stop_gradient(tokens) * L),
    }


def pooled_balance(layers: dict[str, Array]) -> Float[Array, ""]:
    """E times the sum over experts of the share of tokens sent there times the mean share; A where all is even -> [].

    Tokens of all rows and layers [L B E] are one pool, as in transformers. Source: Fedus et al. 2021, arXiv:2101.03961,
    eq. 4 to 6, there of one layer and for A = 1.
    """
    load, share = (jnp.sum(layers[name], (0, 1)) for name in ("load", "share"))
    tokens = jnp.maximum(jax.lax.stop_gradient(jnp.sum(share)), 1)
    return len(load) * jnp.sum(load * share) / tokens**2


def rowwise_balance(layers: dict[str, Array]) -> Float[Array, ""]:
    """The same of each row and layer [L B E] on its own, 1 where all is even: mean over rows, sum over layers -> [].

    Counted are the experts that were chosen, by groups and biases too; eq. 18 takes the largest shares.

    Source: DeepSeek-AI 2024, arXiv:2412.19437, eq. 17 to 20; arXiv:2405.04434, eq. 23 to 25.
    """
    load, share = layers["load"], layers["share"]
    tokens = jax.lax.stop_gradient(jnp.sum(share, -1))
    each = load.shape[-1] * jnp.sum(load * share, -1) / jnp.maximum(jnp.sum(load, -1) * tokens, 1)
    return jnp.sum(jnp.mean(each, 1))


def balanced(bias: Float[Array, "l e"], load: Float[Array, "l e"], speed: float) -> Float[Array, "l e"]:
    """The biases after a batch: up by `speed` where an expert's load is less than its layer's mean, else down -> [L E].

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1.
    """
    return bias + speed * jnp.sign(jnp.mean(load, -1, keepdims=True) - load)
