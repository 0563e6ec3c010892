"""Mixtures of experts: Configs, parameter specs, router metrics and load-balancing losses.

Legend: B batch, T time, D width, F an expert's hidden, E experts, A experts per token, L layers.
Source: Shazeer et al. 2017, arXiv:1701.06538. `routers` chooses the experts, `dispatch` computes them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from models.blocks.decoder.config import Decoder, residual_init, with_bias
from models.blocks.decoder.forward import LayerContext, Sums
from models.blocks.decoder.stack import Layer
from models.blocks.moe.dispatch import DISPATCH, Gate, glu, mixture
from models.blocks.moe.routers import Routes, one_hot
from models.core.checks import not_negative, one_of, positive, refuse
from models.core.intermediates import sow
from models.core.spec import Initializer, Spec, normal
from models.core.types import Leaf, Params, Specs


@dataclass(frozen=True)
class MoEDecoder(Decoder):
    """A decoder in which some layers are mixtures of experts."""

    experts: int = 8
    experts_per_token: int = 2  # experts per token
    expert_hidden: int | None = None  # of one expert; None is the hidden of the MLP
    aux_loss_weight: float = 0.0  # weight of the load-balancing loss
    dispatch: str = "dropless"  # how experts are computed: dropless | dense

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "experts", "experts_per_token", "expert_hidden")
        if self.experts_per_token > self.experts:
            refuse(self, "experts_per_token", f"at most experts={self.experts}")
        not_negative(self, "aux_loss_weight")
        one_of(self, dispatch=DISPATCH)

    @property
    def expert_width(self) -> int:
        """F of an expert."""
        return self.expert_hidden or self.feed_forward


@dataclass(frozen=True)
class InterleavedMoEDecoder(MoEDecoder):
    """A mixture of experts in which some layers are dense: one MLP, no experts."""

    dense_layers: tuple[int, ...] = ()  # the dense layers; indices of `depth` and above are ignored

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "dense_layers")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The kind and stack of each layer; the stacks are `dense` and `moe`."""
        names = ("moe", "dense")
        return tuple(Layer(layer.kind, names[i in self.dense_layers]) for i, layer in enumerate(super().layers))


# Specs


def expert_specs(c: MoEDecoder, L: int, bias: bool = False, router_bias: bool = False) -> Specs:
    """Specs of a router [D E] and of gated experts: gate and up [E D F], down [E F D]."""
    E, D, F = c.experts, c.width, c.expert_width
    up = Spec((L, E, D, F), "layers experts embed mlp", normal(0.02), fan_in="embed")
    axes = "layers experts mlp embed"
    down = Spec((L, E, F, D), axes, residual_init(c), fan_in="mlp")
    return {
        "router": router_specs(c, L, normal(0.02), router_bias),
        "experts": {name: with_bias(kernel, bias) for name, kernel in (("gate", up), ("up", up), ("down", down))},
    }


def router_specs(c: MoEDecoder, L: int, init: Initializer, bias: bool = False) -> dict[str, Spec]:
    """Specs of a router [D E]."""
    return with_bias(Spec((L, c.width, c.experts), "layers embed choice", init, fan_in="embed"), bias)


def moe_traits(base: frozenset[str], c: MoEDecoder) -> frozenset[str]:
    """A load-balancing loss couples the rows of a batch."""
    return base | {"batch_coupled"} if c.aux_loss_weight else base


# The layer


@struct.dataclass
class RouterStats:
    """Statistics of one layer's router by row, without padding; of several layers each has a leading dim, [L B ...]."""

    dropped: Leaf  # choices that no expert computed, [B]
    entropy: Leaf  # sum over tokens, in nats, [B]
    load: Leaf  # choices of each expert, [B E]
    probs: Leaf  # sum over tokens, [B E]


def mixture_of_experts(
    x: Float[Array, "b t d"],
    routes: Routes,
    p: Params,
    c: MoEDecoder,
    context: LayerContext,
    gate: Gate | None = None,
    weight_inputs: bool = False,
) -> tuple[Float[Array, "b t d"], RouterStats]:
    """The experts' outputs for the tokens routed to them: x [B T D] -> [B T D], and the router's statistics.

    `p` has the parameters that `expert_specs` names experts. `gate` combines an expert's gate and up projections; None
    is activation(gate) * up.
    """
    gate = glu(c.activation) if gate is None else gate
    y, dispatched = mixture(x, routes, p, gate, dispatch=c.dispatch, weight_inputs=weight_inputs, place=context.place)
    return y, router_stats(routes, dispatched, context.view.position)


def router_stats(routes: Routes, dispatched: Bool[Array, "b t a"], position: Int[Array, "#b t"]) -> RouterStats:
    """Statistics of a layer's router; tokens at a position below 0 are padding and do not count."""
    probs = routes.probs
    sow("router_probs", probs)
    sow("chosen_experts", routes.experts)
    real = (jnp.zeros(probs.shape[:2], jnp.int32) + position >= 0)[..., None]
    nats = -jnp.sum(real * probs * jnp.log(jnp.maximum(probs, 1e-30)), (1, 2))
    load = jnp.sum(one_hot(routes.experts, probs.shape[-1]) & real[..., None], (1, 2), dtype=jnp.float32)
    return RouterStats(
        load=jax.lax.stop_gradient(load),
        probs=jnp.sum(probs * real, 1),
        entropy=jax.lax.stop_gradient(nats),
        dropped=jnp.sum(~dispatched & real, (1, 2), dtype=jnp.float32),
    )


# Metrics and losses


def moe_outputs(stats_by_stack: dict[str, RouterStats | None], c: MoEDecoder) -> tuple[Sums, Sums]:
    """Metrics of all routers, and the loss that balances their experts if it has a weight."""
    stacks = [stats for stats in stats_by_stack.values() if stats is not None]
    if not stacks:
        return {}, {}
    layers: RouterStats = jax.tree.map(lambda *each: jnp.concatenate(each), *stacks)
    if not c.aux_loss_weight:
        return router_metrics(layers), {}
    loss = c.aux_loss_weight * load_balancing_loss(layers)
    return router_metrics(layers), {"router_aux_loss": (loss, jnp.ones(()))}


def router_metrics(layers: RouterStats) -> Sums:
    """Metrics from the router statistics [L B ...] of layers: name -> (sum [B ...], weight [B]).

    expert_load [B L E] is relative to an even load, so that 1 is balanced. router_entropy is in nats. expert_dropped is
    the fraction of choices that no expert computed.
    """
    L, _, E = layers.load.shape
    choices, tokens = jnp.sum(layers.load[0], -1), jnp.sum(layers.probs[0], -1)
    return {
        "expert_load": (jnp.moveaxis(layers.load, 0, 1), choices / E),
        "expert_dropped": (jnp.sum(layers.dropped, 0), choices * L),
        "router_entropy": (jnp.sum(layers.entropy, 0), jax.lax.stop_gradient(tokens) * L),
    }


def load_balancing_loss(layers: RouterStats) -> Float[Array, ""]:
    """E times the sum over experts of (fraction of tokens) * (mean probability); A if balanced: [L B E] -> [].

    The tokens of all rows and layers are pooled, as in Hugging Face transformers. Source: Fedus et al. 2021,
    arXiv:2101.03961, eq. 4 to 6, there for one layer and A = 1.
    """
    load, probs = (jnp.sum(x, (0, 1)) for x in (layers.load, layers.probs))
    tokens = jnp.maximum(jax.lax.stop_gradient(jnp.sum(probs)), 1)
    return len(load) * jnp.sum(load * probs) / tokens**2


def sequence_balance_loss(layers: RouterStats) -> Float[Array, ""]:
    """A load-balancing loss of each row and layer, 1 if balanced; mean over rows, sum over layers: [L B E] -> [].

    The load counts the chosen experts, hence after groups and biases; eq. 18 counts the largest probabilities.

    Source: DeepSeek-AI 2024, arXiv:2412.19437, eq. 17 to 20; arXiv:2405.04434, eq. 23 to 25.
    """
    load, probs = layers.load, layers.probs
    tokens = jax.lax.stop_gradient(jnp.sum(probs, -1))
    each = load.shape[-1] * jnp.sum(load * probs, -1) / jnp.maximum(jnp.sum(load, -1) * tokens, 1)
    return jnp.sum(jnp.mean(each, 1))


def update_expert_bias(bias: Float[Array, "l e"], load: Float[Array, "l e"], speed: float) -> Float[Array, "l e"]:
    """Biases after an update: plus `speed` for experts with less load than their layer's mean, else minus -> [L E].

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1.
    """
    return bias + speed * jnp.sign(jnp.mean(load, -1, keepdims=True) - load)
