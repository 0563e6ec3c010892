"""DeepSeek: latent attention, many small experts balanced by a bias, and multi-token prediction (MTP).

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L layers of a stack, F hidden of an MLP or an
expert, E experts, A experts per token; the letters of latent attention are in `models/blocks/decoder/mla.py`.
Source: DeepSeek-AI 2024, arXiv:2405.04434 (V2) and arXiv:2412.19437 (V3). Initial values are GPT-2's. V2's losses
that balance devices and communication (eq. 26 to 31) are not implemented.
"""

from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from models.blocks.decoder.config import cache_specs, decoder_specs, gated_mlp, gated_mlp_specs, rms_norm_specs
from models.blocks.decoder.forward import Hidden, LayerContext, head, layer_parameters, rms, run_layers
from models.blocks.decoder.mla import MLADecoder, latent_attention, mla_specs
from models.blocks.decoder.stack import Layer
from models.blocks.moe.moe import (
    InterleavedMoEDecoder,
    RouterStats,
    expert_specs,
    mixture_of_experts,
    moe_traits,
    router_metrics,
    sequence_balance_loss,
    update_expert_bias,
)
from models.blocks.moe.routers import Routes, router_logits, sigmoid_in_groups, softmax_in_groups
from models.core.checks import divides, not_negative, one_of, positive, refuse
from models.core.fence import fence
from models.core.layers import einsum, embed, shift_left
from models.core.loop import remat_block
from models.core.spec import Outputs, Place, Spec, flatten, normal, unflatten, unsharded, zeros
from models.core.types import Array, Cache, Fields, Inputs, Params, Specs, Stats, Variables

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}
ROUTERS = ("softmax", "sigmoid")
BIAS, MTP_BIAS = "blocks/moe/bias", "mtp/block/bias"  # the experts' biases: statistics, not parameters
MTP_EXPERT_LOAD = "mtp_expert_load"  # the metric of the MTP modules' expert load

_YARN = dict(rope="yarn", rope_factor=40.0, rope_context=4096, rope_high=32.0, rope_scale=1.0)
_TEXT: Fields = dict(context=163840, eps=1e-6, **_YARN)
_V2: Fields = dict(vocab=102400, experts_per_token=6, shared=2, dense_layers=(0,), mscale=0.707, **_TEXT)
_V3: Fields = dict(vocab=129280, experts_per_token=8, shared=1, dense_layers=(0, 1, 2), mscale=1.0, **_TEXT)
SIZES: dict[str, Fields] = {
    "deepseek_v2_lite": dict(width=2048, depth=27, heads=16, hidden=10944, experts=64, expert_hidden=1408, **_V2),
    "deepseek_v2": dict(
        **dict(width=5120, depth=60, heads=128, hidden=12288, q_rank=1536, experts=160, expert_hidden=1536),
        **dict(expert_groups=8, topk_groups=3, routed_scaling_factor=16.0, **_V2),
    ),
    "deepseek_v3": dict(
        **dict(width=7168, depth=61, heads=128, hidden=18432, q_rank=1536, experts=256, expert_hidden=2048),
        **dict(router="sigmoid", norm_topk=True, expert_groups=8, topk_groups=4, routed_scaling_factor=2.5),
        **_V3,
    ),
}


@dataclass(frozen=True)
class Config(InterleavedMoEDecoder, MLADecoder):
    """Shape and options of a DeepSeek."""

    shared: int = 1  # shared experts, which every token uses, computed as one MLP
    router: str = "softmax"  # scoring function: softmax | sigmoid
    expert_groups: int = 1  # groups of experts
    topk_groups: int = 1  # groups that a token's experts are chosen from
    norm_topk: bool = False  # normalise the weights of a token's experts to sum to 1, before scaling
    routed_scaling_factor: float = 1.0  # factor of the experts' weights
    bias_update_speed: float = 0.0  # change of an expert's bias per update, towards an even load
    mtp: int = 0  # further tokens predicted in training: the number of MTP modules
    mtp_weight: float = 0.3  # weight of their loss

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "expert_groups", "topk_groups", "routed_scaling_factor")
        not_negative(self, "shared", "bias_update_speed", "mtp", "mtp_weight")
        if self.mtp >= self.context:
            refuse(self, "mtp", f"less than context={self.context}")
        divides(self, "expert_groups", "experts")
        if self.topk_groups > self.expert_groups:
            refuse(self, "topk_groups", f"at most expert_groups={self.expert_groups}")
        one_of(self, router=ROUTERS)
        if self.router == "softmax" and self.bias_update_speed != 0:
            refuse(self, "bias_update_speed", "0 for router='softmax', which has no bias")
        if self.router == "softmax" and self.norm_topk:
            refuse(self, "norm_topk", "False for router='softmax'")
        inside = self.experts // self.expert_groups * self.topk_groups
        if self.experts_per_token > inside:
            refuse(self, "experts_per_token", f"at most the {inside} experts of the topk_groups groups")
        alone = self.router == "sigmoid" and self.topk_groups < self.expert_groups
        if alone and self.experts // self.expert_groups < 2:
            refuse(self, "expert_groups", f"1, or with 2 or more experts per group for router={self.router!r}")


# Specs


def specs(c: Config) -> Specs:
    """Specs of the parameters, and of the experts' biases if the router is `sigmoid`."""
    table = decoder_specs(block_specs, c)
    if c.mtp:
        table["params"]["mtp"] = _mtp_specs(c)
    counts = {BIAS: Counter(layer.stack for layer in c.layers)["moe"], MTP_BIAS: c.mtp}
    if c.router == "sigmoid" and any(counts.values()):
        biases = {path: Spec((L, c.experts), "layers choice", zeros) for path, L in counts.items() if L}
        table["stats"] = unflatten(biases)
    return table


def block_specs(c: Config, stack: str, L: int) -> Specs:
    """Specs of L layers of a stack, `moe` or `dense`."""
    table = {**rms_norm_specs(L, c.width, "norm1", "norm2"), **mla_specs(c, L)}
    if stack == "dense":
        return {**table, **gated_mlp_specs(c, L, c.feed_forward)}
    shared = {"shared": gated_mlp_specs(c, L, c.shared * c.expert_width)} if c.shared else {}
    return {**table, **expert_specs(c, L), **shared}


def _mtp_specs(c: Config) -> Specs:
    """Specs of the MTP modules: each combines state and token, and has its own block and norm."""
    join = Spec((c.mtp, c.width, c.width), "layers width embed", normal(0.02), fan_in="width")
    return {
        **rms_norm_specs(c.mtp, c.width, "state_norm", "token_norm", "norm"),
        "state": {"kernel": join},
        "token": {"kernel": join},
        "block": block_specs(c, "moe", c.mtp),
    }


cache = cache_specs


# The network


def block(x: Array, p: Params, c: Config, context: LayerContext) -> tuple[Array, Cache | None, RouterStats | None]:
    """A layer: x [B T D] -> [B T D], its new cache, and its router's statistics."""
    a, cache = latent_attention(context.norm(x, p["norm1"]), p, c, context)
    x = fence(x + a)
    h = context.norm(x, p["norm2"])
    if context.layer.stack == "dense":
        return x + gated_mlp(h, p, c.activation, context.place), cache, None
    routes = route(router_logits(h, p["router"], context.place), p, c)
    y, stats = mixture_of_experts(h, routes, p["experts"], c, context)
    if c.shared:
        y = y + gated_mlp(h, p["shared"], c.activation, context.place)
    return x + y, cache, stats


def route(logits: Array, p: Params, c: Config) -> Routes:
    """Routes of a layer: logits [B T E] -> Routes."""
    groups = c.experts_per_token, c.expert_groups, c.topk_groups
    if c.router == "softmax":
        return softmax_in_groups(logits, *groups, c.routed_scaling_factor)
    return sigmoid_in_groups(logits, p["bias"], *groups, c.norm_topk, c.routed_scaling_factor)


def apply(
    variables: Variables,
    inputs: Inputs,
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: Cache | None = None,
    place: Place = unsharded,
) -> Outputs:
    """As `forward`; in training also values for the `mtp` tokens after the next."""
    last = run_layers(block, variables, inputs, c, train=train, key=key, cache=cache, place=place)
    stats = {BIAS: last.router_stats.get("moe")}
    states = list[Array]()
    if train and c.mtp:
        states, stats[MTP_BIAS] = run_mtp_modules(last, inputs["tokens"], variables, c, place)
    routers = {path: layers for path, layers in stats.items() if layers is not None}
    loss = c.aux_loss_weight * sum(map(sequence_balance_loss, routers.values()), start=jnp.zeros(()))
    mtp_metrics = {MTP_EXPERT_LOAD: router_metrics(routers[MTP_BIAS])["expert_load"]} if MTP_BIAS in routers else {}
    value, *mtp_values = (head(x, variables["params"], c) for x in (last.x, *states))
    return Outputs(
        value,
        stats=variables.get("stats"),
        cache=last.cache,
        aux_losses={"balance": (loss, jnp.ones(()))} if c.aux_loss_weight else {},
        metrics=router_metrics(routers[BIAS]) | mtp_metrics if BIAS in routers else mtp_metrics,
        mtp_values=tuple(mtp_values),
        mtp_weight=c.mtp_weight,
    )


def run_mtp_modules(
    last: Hidden, tokens: Array, variables: Variables, c: Config, place: Place
) -> tuple[list[Array], RouterStats]:
    """Run the MTP modules -> the state of each further token [B T D], and their router statistics: tokens [B T].

    Source: V3, eq. 21 to 23. A module's input is the last one's state after its norm, as in the runtimes of the
    released weights.
    """
    modules = layer_parameters(variables, "mtp")
    stream = place("batch seq width")
    table = variables["params"]["embed"]["token"]

    def run(x: Array, p: Params, index: Array) -> tuple[Array, RouterStats | None]:
        x, _, stats = block(x, p, c, last.context(Layer("full", "moe"), index, None))
        return x, stats

    x = last.x
    states = []
    stats = []
    for k in range(c.mtp):
        p = jax.tree.map(lambda w, k=k: w[k], modules)
        token = embed(table, shift_left(tokens, k + 1, place), stream).astype(x.dtype)
        x = einsum("btd,dc->btc", rms(x, p["state_norm"], c), p["state"]["kernel"], stream)
        x = x + einsum("btd,dc->btc", rms(token, p["token_norm"], c), p["token"]["kernel"], stream)
        x, own_stats = remat_block(run, c.remat)(x, p["block"], jnp.asarray(c.depth + k))
        states.append(x := rms(x, p["norm"], c))
        stats.append(own_stats)
    return states, jax.tree.map(lambda *each: jnp.stack(each), *stats)


def update_stats(stats: Stats, metrics: dict[str, Array], c: Config) -> Stats:
    """The experts' biases after an update, from the expert loads summed over its batch, [L E]."""
    if not c.bias_update_speed:
        return stats
    names = {BIAS: "expert_load", MTP_BIAS: MTP_EXPERT_LOAD}
    new = {}
    for path, bias in flatten(stats).items():
        new[path] = update_expert_bias(bias, metrics[names[path]], c.bias_update_speed)
    return unflatten(new)


def traits(c: Config) -> frozenset[str]:
    """A load-balancing loss couples the rows of a batch; biases that are updated are state."""
    return moe_traits(TRAITS, c) | ({"running_stats"} if c.bias_update_speed else set())
