"""Mixtures of experts: routers, one a paper, and the experts' work by one of two paths that give the same.

Legend: B batch, T time, D width, F an expert's hidden, E experts, A experts that a token is sent to, M tokens of a
device, L layers.
Source: Shazeer et al. 2017, arXiv:1701.06538.

A router is a function from logits [B T E] to Routes. It stays in float32, whatever the activations are: among many
experts rounding changes which are chosen. No token is dropped by either path, so that there is no capacity to set:

- `dense`: every expert sees every token, and what nobody asked for is weighed 0. For checking, and for few experts.
- `dropless`: tokens are sorted by their expert, and each expert multiplies its own rows (`jax.lax.ragged_dot`; the idea
  of Gale et al. 2022, arXiv:2211.15841). Over the mesh axis ep a device has some experts, sees the tokens of all
  devices along that axis, and gives each device its rows' sums back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.decoder import Decoder, biased, residual
from models.layers import ACTIVATIONS, add, gathered, product, resharded
from models.spec import Law, Place, Spec, nowhere, std
from models.stack import Layer
from models.validate import check, one_of

DISPATCH = ("dropless", "dense")


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
        check(self, "positive", "experts", "active", "expert_hidden")
        check(self, f"at most experts={self.experts}", "active", ok=lambda n: n <= self.experts)
        check(self, "not negative", "balance")
        one_of(self, dispatch=DISPATCH)

    @property
    def expert_width(self) -> int:
        """F of an expert."""
        return self.expert_hidden or self.feed_forward


@dataclass(frozen=True)
class Interleaved(Routed):
    """With layers that have one MLP and no experts."""

    dense: tuple[int, ...] = ()  # those layers

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "not negative", "dense")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What each layer is; the stacks are `dense` and `moe`."""
        names = ("moe", "dense")
        return tuple(Layer(layer.kind, names[i in self.dense]) for i, layer in enumerate(super().layers))


class Routes(NamedTuple):
    """Where a router sends each token."""

    experts: Int[Array, "b t a"]
    weights: Float[Array, "b t a"]  # of what they give, float32
    shares: Float[Array, "b t e"]  # what the router would give to each expert, of 1 in all, float32


# Routers


def router_logits(x: Float[Array, "b t d"], p: dict[str, Array], place: Place = nowhere) -> Float[Array, "b t e"]:
    """x [B T D] by kernel [D E], perhaps plus bias [E], in float32 whatever x is -> [B T E]."""
    with jax.default_matmul_precision("highest"):
        logits = product("btd,de->bte", x.astype(jnp.float32), p["kernel"], place("batch seq choice"))
    return add(logits, p["bias"]) if "bias" in p else logits


def softmax_then_top(logits: Float[Array, "b t e"], active: int, renormalise: bool) -> Routes:
    """The largest shares of a softmax, perhaps made to sum to 1: logits [B T E] -> Routes.

    Source: renormalised, Jiang et al. 2024, arXiv:2401.04088, section 2.1 (there as a softmax over the largest logits,
    which is the same); as they are, xAI's Grok-1.
    """
    shares = jax.nn.softmax(logits, -1)
    experts, weights = top(shares, active)
    return Routes(experts, weights / jnp.sum(weights, -1, keepdims=True) if renormalise else weights, shares)


def top_then_softmax(logits: Float[Array, "b t e"], active: int) -> Routes:
    """A softmax over the largest logits: logits [B T E] -> Routes. Source: OpenAI 2025, arXiv:2508.10925, 2.2."""
    experts, largest = top(logits, active)
    return Routes(experts, jax.nn.softmax(largest, -1), jax.nn.softmax(logits, -1))


def top_then_sigmoid(logits: Float[Array, "b t e"], active: int) -> Routes:
    """A sigmoid of each of the largest logits: logits [B T E] -> Routes. Source: Meta 2025, Llama 4's released code."""
    experts, largest = top(logits, active)
    return Routes(experts, jax.nn.sigmoid(largest), jax.nn.softmax(logits, -1))


def softmax_in_groups(
    logits: Float[Array, "b t e"], active: int, groups: int, kept: int, scaling: float = 1.0
) -> Routes:
    """The largest shares of a softmax within the groups of the largest: logits [B T E] -> Routes.

    Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.2.2; the weights are scaled, and need not sum to 1.
    """
    shares = jax.nn.softmax(logits, -1)
    experts, _ = top(of_best_groups(shares, groups, kept, best=1), active)
    return Routes(experts, picked(shares, experts) * scaling, shares)


def sigmoid_in_groups(
    logits: Float[Array, "b t e"],
    bias: Float[Array, " e"],
    active: int,
    groups: int,
    kept: int,
    renormalise: bool = True,
    scaling: float = 1.0,
) -> Routes:
    """The largest of biased sigmoids within the groups whose two best are: logits [B T E], bias [E] -> Routes.

    The bias takes part in the choice, and not in the weights. Source: DeepSeek-AI 2024, arXiv:2412.19437, eq. 12 to 16.
    """
    scores = jax.nn.sigmoid(logits)
    experts, _ = top(of_best_groups(add(scores, bias), groups, kept, best=2), active)
    weights = picked(scores, experts)
    if renormalise:
        weights = weights / (jnp.sum(weights, -1, keepdims=True) + 1e-20)
    return Routes(experts, weights * scaling, scores / jnp.sum(scores, -1, keepdims=True))


def of_best_groups(scores: Float[Array, "b t e"], groups: int, kept: int, best: int) -> Float[Array, "b t e"]:
    """Scores [B T E], -inf outside of the `kept` groups whose `best` largest have the largest sums -> [B T E]."""
    if kept == groups:
        return scores
    B, T, E = scores.shape
    apart = scores.reshape(B, T, groups, E // groups)
    sums = jnp.sum(jax.lax.top_k(jax.lax.stop_gradient(apart), best)[0], -1)
    chosen = jnp.any(one_hot(top(sums, kept)[0], groups), 2)
    return jnp.where(chosen[..., None], apart, -jnp.inf).reshape(B, T, E)


def top(values: Float[Array, "b t e"], active: int) -> tuple[Int[Array, "b t a"], Float[Array, "b t a"]]:
    """The places of the largest values, the first of equals, and those values: [B T E] -> [B T A], [B T A]."""
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(values), active)
    return experts, picked(values, experts)


def picked(values: Float[Array, "b t e"], experts: Int[Array, "b t a"]) -> Float[Array, "b t a"]:
    """Each token's values of its experts: [B T E], [B T A] -> [B T A]."""
    return jnp.sum(jnp.where(one_hot(experts, values.shape[-1]), values[:, :, None], 0), -1)


def one_hot(experts: Int[Array, "b t a"], count: int) -> Bool[Array, "b t a e"]:
    """Whether each choice is each expert: [B T A] -> [B T A E]. A scatter is refused over cut rows."""
    return experts[..., None] == jnp.arange(count)[None, None, None]


# The experts


def expert_specs(c: Routed, L: int, bias: bool = False, router_bias: bool = False) -> dict[str, Any]:
    """The table of a router [D E] and of gated experts: gate up [E D F], down [E F D]."""
    E, D, F = c.experts, c.width, c.expert_width
    up, axes = Spec((L, E, D, F), "layers experts embed mlp", std(0.02), fan_in="embed"), "layers experts mlp embed"
    down = Spec((L, E, F, D), axes, residual(c), fan_in="mlp")
    return {
        "router": router_specs(c, L, std(0.02), router_bias),
        "experts": {name: biased(kernel, bias) for name, kernel in (("gate", up), ("up", up), ("down", down))},
    }


def router_specs(c: Routed, L: int, law: Law, bias: bool = False) -> dict[str, Spec]:
    """The table of a router [D E]."""
    return biased(Spec((L, c.width, c.experts), "layers embed choice", law, fan_in="embed"), bias)


Gate = Callable[[Array, Array], Array]  # (gate, up) -> hidden, each [... F]


def gated(activation: str) -> Gate:
    """activation(gate) * up, as `decoder.gated_mlp`."""
    return lambda gate, up: ACTIVATIONS[activation](gate) * up


def mixture(
    x: Float[Array, "b t d"],
    routes: Routes,
    p: dict[str, Any],
    gate: Gate,
    *,
    dispatch: str = "dropless",
    weigh_input: bool = False,
    place: Place = nowhere,
) -> tuple[Float[Array, "b t d"], Bool[Array, "b t a"]]:
    """Each token's experts' answers, weighed and summed: x [B T D] -> [B T D], and which choices were served [B T A].

    `p` is what `expert_specs` has under experts, of one layer. With `weigh_input` the weight multiplies what an expert
    gets instead of what it gives (Llama 4). Answers are summed in float32.
    """
    run = {"dropless": _dropless, "dense": _dense}[dispatch]
    weights = routes.weights
    y, served = run(x, routes.experts, weights, p, gate, weigh_input, place)
    if "bias" in p["down"]:
        given = served.astype(jnp.float32) * (1 if weigh_input else weights)
        each = jnp.sum(one_hot(routes.experts, len(p["down"]["bias"])) * given[..., None], 2)
        y = y + product("bte,ed->btd", each, p["down"]["bias"], place("batch seq width"))
    return y.astype(x.dtype), served


def _dense(
    x: Array, experts: Array, weights: Array, p: dict[str, Any], gate: Gate, weigh_input: bool, place: Place
) -> tuple[Array, Array]:
    """By all experts for all tokens."""
    chosen = one_hot(experts, len(p["gate"]["kernel"]))
    each = jnp.sum(chosen * weights[..., None], 2)
    before, after = (each, jnp.any(chosen, 2).astype(jnp.float32)) if weigh_input else (None, each)

    def wide(p: dict[str, Array]) -> Array:
        h = product("btd,edf->btef", x, p["kernel"], place("batch seq choice mlp"))
        h = h if before is None else h * before[..., None].astype(h.dtype)
        return add(h, gathered(p["bias"], x)) if "bias" in p else h

    h = gate(wide(p["gate"]), wide(p["up"])) * after[..., None].astype(x.dtype)
    y = product("btef,efd->btd", h, p["down"]["kernel"], place("batch seq width"), jnp.float32)
    return y, jnp.any(chosen, -1)


def _dropless(
    x: Array, experts: Array, weights: Array, p: dict[str, Any], gate: Gate, weigh_input: bool, place: Place
) -> tuple[Array, Array]:
    """By each expert for its own tokens, on the devices that have it."""
    p = jax.tree.map(lambda w: w.astype(x.dtype), {**p, "down": {"kernel": p["down"]["kernel"]}})
    local = partial(_sorted, gate=gate, weigh_input=weigh_input)
    rows = place("batch seq width")
    if rows is None:
        alone, mesh = partial(local, first=jnp.zeros((), jnp.int32)), jax.typeof(x).sharding.mesh
        if mesh.explicit_axes:  # arrays of a mesh, and no place: whole on each device, as ragged_dot infers no sharding
            whole = jax.sharding.PartitionSpec()
            alone = jax.shard_map(alone, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
        return alone(x, experts, weights, p)

    def axes(name: str) -> tuple[str, ...]:
        (entry,) = place(name)
        return entry if isinstance(entry, tuple) else (entry,) if entry else ()

    owners, inner = axes("experts"), axes("mlp")
    along = tuple(a for a in owners if a in axes("batch"))  # devices with other experts and other rows
    across = tuple(
        a for a in (*owners, *inner) if a not in along
    )  # with other experts, or parts of them; the same rows

    def on_device(x: Array, experts: Array, weights: Array, p: dict[str, Any]) -> tuple[Array, Array]:
        first = jnp.asarray(jax.lax.axis_index(owners) if owners else 0) * len(p["gate"]["kernel"])
        if along:
            x, experts, weights = (jax.lax.all_gather(v, along, tiled=True) for v in (x, experts, weights))
        y, served = local(x, experts, weights, p, first)
        count = served.astype(jnp.int32)
        if across:
            y, count = (jax.lax.psum(v, across) for v in (y, count))
        if along:
            y, count = (jax.lax.psum_scatter(v, along, tiled=True) for v in (y, count))
        return y, count > 0

    kernels = {"gate": "experts width mlp", "up": "experts width mlp", "down": "experts mlp width"}
    lie = {k: {n: place(kernels[k] if n == "kernel" else "experts mlp") for n in leaf} for k, leaf in p.items()}
    choices = place("batch seq choice")
    specs = (rows, choices, choices, lie)
    # ragged_dot does not say over which axes its result varies
    mapped = jax.shard_map(on_device, in_specs=specs, out_specs=(rows, choices), check_vma=False)
    return mapped(*jax.tree.map(resharded, (x, experts, weights, p), specs))


def _sorted(
    x: Array, experts: Array, weights: Array, p: dict[str, Any], first: Array, *, gate: Gate, weigh_input: bool
) -> tuple[Array, Array]:
    """What the experts from `first` on give to tokens: x [B T D], experts weights [B T A] -> [B T D], [B T A].

    Choices are sorted by expert, those of other devices' experts last. Rows beyond the last group are 0 before and
    after each product: what `ragged_dot` makes of them differs by platform.
    """
    B, T, A = experts.shape
    count = len(p["gate"]["kernel"])
    own = experts.reshape(-1) - first
    own = jnp.where((own >= 0) & (own < count), own, count)
    order = jnp.argsort(own)
    groups = jnp.sum(own[None] == jnp.arange(count)[:, None], 1, dtype=jnp.int32)
    mine = (jnp.arange(own.size) < jnp.sum(groups))[:, None]

    def by_group(h: Array, p: dict[str, Array]) -> Array:
        y = jax.lax.ragged_dot(h, p["kernel"], groups)
        y = y + p["bias"][jnp.minimum(own[order], count - 1)] if "bias" in p else y
        return jnp.where(mine, y, 0)

    h = jnp.where(mine, x.reshape(B * T, -1)[order // A], 0)
    if weigh_input:
        h = h * weights.reshape(-1)[order][:, None].astype(h.dtype)
    y = by_group(gate(by_group(h, p["gate"]), by_group(h, p["up"])), p["down"])
    back = jnp.argsort(order)
    y, served = y[back].reshape(B, T, A, -1).astype(jnp.float32), mine[back].reshape(B, T, A)
    return jnp.sum(y if weigh_input else y * weights[..., None], 2), served


def balanced(bias: Float[Array, "l e"], layers: dict[str, Array], speed: float) -> Float[Array, "l e"]:
    """The biases after a batch: up by `speed` where an expert got less than the mean of its layer, else down -> [L E].

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1.
    """
    load = jnp.sum(layers["load"], 1)
    return bias + speed * jnp.sign(jnp.mean(load, -1, keepdims=True) - load)


# What a run is told of its routers


def told(routes: Routes, served: Bool[Array, "b t a"]) -> dict[str, Array]:
    """Of a layer, by row: choices of each expert, sums of shares [B E], sums of entropies, choices not served [B]."""
    shares = routes.shares
    nats = -jnp.sum(shares * jnp.log(jnp.maximum(shares, 1e-30)), (1, 2))
    load = jnp.sum(one_hot(routes.experts, shares.shape[-1]), (1, 2), dtype=jnp.float32)
    return {
        "load": jax.lax.stop_gradient(load),
        "share": jnp.sum(shares, 1),
        "entropy": jax.lax.stop_gradient(nats),
        "dropped": jnp.sum(~served, (1, 2), dtype=jnp.float32),
    }


def spoken(says: dict[str, Any], balance: float) -> dict[str, Any]:
    """Fields of Outputs by what each stack of layers tells: measures, and the loss that spreads tokens over experts."""
    layers = next((tells for tells in says.values() if tells), None)
    if layers is None:
        return {}
    loss = {"balance": (balance * pooled_balance(layers), jnp.ones(()))} if balance else {}
    return {"told": measures(layers), "aux": loss}


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
    tokens = jax.lax.stop_gradient(jnp.sum(share))
    return len(load) * jnp.sum(load * share) / tokens**2


def rowwise_balance(layers: dict[str, Array]) -> Float[Array, ""]:
    """The same of each row and layer [L B E] on its own, 1 where all is even: mean over rows, sum over layers -> [].

    Source: DeepSeek-AI 2024, arXiv:2412.19437, eq. 17 to 20; arXiv:2405.04434, eq. 23 to 25.
    """
    load, share = layers["load"], layers["share"]
    tokens = jax.lax.stop_gradient(jnp.sum(share, -1))
    each = load.shape[-1] * jnp.sum(load * share, -1) / (jnp.sum(load, -1) * tokens)
    return jnp.sum(jnp.mean(each, 1))
