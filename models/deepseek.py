"""DeepSeek: latent attention, many small experts balanced by a bias, and multi-token prediction (MTP).

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L layers of a stack, F hidden of an MLP or an
expert, E experts, A experts per token; the letters of latent attention are in `latent`.
Source: DeepSeek-AI 2024, arXiv:2405.04434 (V2) and arXiv:2412.19437 (V3). Initial values are GPT-2's. V2's losses
that balance devices and communication (eq. 26 to 31) are not implemented.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from models.decoder import cache_specs, embed_and_head_specs, gated_mlp, gated_mlp_specs, open_cache, rms_norm_specs
from models.dispatch import glu, mixture
from models.latent import MLADecoder, latent_attention, mla_specs
from models.layers import einsum, embed, fold_in_each, rms_norm, shift_left
from models.moe import (
    InterleavedMoEDecoder,
    expert_specs,
    router_metrics,
    router_stats,
    sequence_balance_loss,
    update_expert_bias,
)
from models.routers import Routes, router_logits, sigmoid_in_groups, softmax_in_groups
from models.spec import Array, LazyLogits, Outputs, Place, Spec, flatten, normal, unflatten, unsharded, zeros
from models.stack import Layer, scan_layers
from models.timeline import CacheView
from models.validate import COMPUTE, remat_block, require, require_choice

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}
ROUTERS = ("softmax", "sigmoid")
BIAS, MTP_BIAS = "blocks/moe/bias", "mtp/block/bias"  # the experts' biases: statistics, not parameters
MTP_EXPERT_LOAD = "mtp_expert_load"  # the metric of the MTP modules' expert load

_YARN = dict(rope="yarn", rope_factor=40.0, rope_context=4096, rope_high=32.0, rope_scale=1.0)
SIZES: dict[str, dict[str, Any]] = {
    "deepseek_v2_lite": dict(
        **dict(vocab=102400, context=163840, width=2048, depth=27, heads=16, hidden=10944, eps=1e-6),
        **dict(experts=64, experts_per_token=6, shared=2, expert_hidden=1408, dense_layers=(0,), mscale=0.707, **_YARN),
    ),
    "deepseek_v2": dict(
        **dict(vocab=102400, context=163840, width=5120, depth=60, heads=128, hidden=12288, eps=1e-6, q_rank=1536),
        **dict(
            experts=160,
            experts_per_token=6,
            shared=2,
            expert_hidden=1536,
            dense_layers=(0,),
            expert_groups=8,
            topk_groups=3,
        ),
        **dict(routed_scaling_factor=16.0, mscale=0.707, **_YARN),
    ),
    "deepseek_v3": dict(
        **dict(vocab=129280, context=163840, width=7168, depth=61, heads=128, hidden=18432, eps=1e-6, q_rank=1536),
        **dict(
            experts=256,
            experts_per_token=8,
            shared=1,
            expert_hidden=2048,
            dense_layers=(0, 1, 2),
            expert_groups=8,
            topk_groups=4,
        ),
        **dict(router="sigmoid", norm_topk=True, routed_scaling_factor=2.5, mscale=1.0, **_YARN),
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
        require(self, "positive", "expert_groups", "topk_groups", "routed_scaling_factor")
        require(self, "not negative", "shared", "bias_update_speed", "mtp", "mtp_weight")
        require(self, f"less than context={self.context}", "mtp", test=lambda n: n < self.context)
        require(self, f"a divisor of experts={self.experts}", "expert_groups", test=lambda n: self.experts % n == 0)
        require(
            self, f"at most expert_groups={self.expert_groups}", "topk_groups", test=lambda n: n <= self.expert_groups
        )
        require_choice(self, router=ROUTERS)
        if self.router == "softmax":
            require(
                self, "0 for router='softmax', which has no bias", "bias_update_speed", test=lambda speed: speed == 0
            )
            require(self, "False for router='softmax'", "norm_topk", test=lambda on: not on)
        inside = self.experts // self.expert_groups * self.topk_groups
        require(
            self,
            f"at most the {inside} experts of the topk_groups groups",
            "experts_per_token",
            test=lambda n: n <= inside,
        )
        least = f"1, or with 2 or more experts per group for router={self.router!r}"
        alone = self.router == "sigmoid" and self.topk_groups < self.expert_groups
        require(self, least, "expert_groups", test=lambda n: not alone or self.experts // n >= 2)


def traits(c: Config) -> frozenset[str]:
    """A load-balancing loss couples the rows of a batch; biases that are updated are state."""
    coupled = {"batch_coupled"} if c.aux_loss_weight else set()
    return TRAITS | coupled | ({"stateful"} if c.bias_update_speed else set())


# Specs


def specs(c: Config) -> dict[str, Any]:
    """Specs of the parameters, and of the experts' biases if the router is `sigmoid`."""
    counts = {stack: sum(layer.stack == stack for layer in c.layers) for stack in ("dense", "moe")}
    params: dict[str, Any] = {
        **embed_and_head_specs(c),
        "blocks": {stack: _block_specs(c, stack, L) for stack, L in counts.items() if L},
    }
    if c.mtp:
        params["mtp"] = _mtp_specs(c)
    biases = {path: L for path, L in ((BIAS, counts["moe"]), (MTP_BIAS, c.mtp)) if L and c.router == "sigmoid"}
    stats = {path: Spec((L, c.experts), "layers choice", zeros) for path, L in biases.items()}
    return {"params": params, "stats": unflatten(stats)} if stats else {"params": params}


def _block_specs(c: Config, stack: str, L: int) -> dict[str, Any]:
    table = {**rms_norm_specs(L, c.width, "norm1", "norm2"), **mla_specs(c, L)}
    if stack == "dense":
        return {**table, **gated_mlp_specs(c, L, c.feed_forward)}
    shared = {"shared": gated_mlp_specs(c, L, c.shared * c.expert_width)} if c.shared else {}
    return {**table, **expert_specs(c, L), **shared}


def _mtp_specs(c: Config) -> dict[str, Any]:
    """Specs of the MTP modules: each combines state and token, and has its own block and norm."""
    D = c.width
    join = Spec((c.mtp, D, D), "layers width embed", normal(0.02), fan_in="width")
    return {
        **rms_norm_specs(c.mtp, D, "state_norm", "token_norm", "norm"),
        "state": {"kernel": join},
        "token": {"kernel": join},
        "block": _block_specs(c, "moe", c.mtp),
    }


def cache(c: Config, batch: int, length: int) -> dict[str, Any]:
    """Specs of a cache for `length` tokens: latents and rotary keys, shared by all heads."""
    return cache_specs(c, batch, length)


# The network


def apply(
    variables: Any,
    inputs: dict[str, Array],
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: dict[str, Any] | None = None,
    place: Place = unsharded,
) -> Outputs:
    """Next-token logits, float32, masked beyond the vocabulary: tokens [B T] -> [B T V]; in training also mtp_values.

    `key` is one PRNG key per row, [B]; None disables dropout. Optional inputs: position [B T], below 0 where a token is
    padding; segment [B T] (tokens attend to their own segment only; not with a cache). With a cache, the tokens follow
    those already in it.
    """
    stats = flatten(variables.get("stats", {}))
    p, keys, stream = unflatten(flatten(variables["params"]) | stats), key if train else None, place("batch seq width")
    time, table = open_cache(c, inputs, cache, place), p["embed"]["token"]
    run = partial(block, c, time, keys, place)

    x = embed(table, inputs["tokens"], stream).astype(COMPUTE[c.compute])
    x, held, says = scan_layers(run, c.layers, x, p["blocks"], time.layer_caches, remat=c.remat, scan=c.scan)
    x, new = time.finish(_norm(x, p["norm"], c), held)
    routers, states = ({BIAS: says["moe"]} if "moe" in says else {}), list[Array]()
    if train and c.mtp:
        states, routers[MTP_BIAS] = run_mtp_modules(x, inputs["tokens"], table, p["mtp"], c, run, place)
    loss = c.aux_loss_weight * sum(map(sequence_balance_loss, routers.values()), start=jnp.zeros(()))
    mtp_metrics = {MTP_EXPERT_LOAD: router_metrics(routers[MTP_BIAS])["expert_load"]} if MTP_BIAS in routers else {}
    value, *mtp_values = (LazyLogits(y, table if c.tied else p["head"], c.vocab) for y in (x, *states))
    return Outputs(
        value,
        stats=unflatten(stats),
        cache=new,
        aux_losses={"router_aux_loss": (loss, jnp.ones(()))} if c.aux_loss_weight else {},
        metrics=router_metrics(routers[BIAS]) | mtp_metrics if BIAS in routers else mtp_metrics,
        mtp_values=tuple(mtp_values),
        mtp_weight=c.mtp_weight,
    )


def update_stats(stats: Any, metrics: dict[str, Array], c: Config) -> Any:
    """The experts' biases after an update, from the expert loads summed over its batch, [L E]."""
    if not c.bias_update_speed:
        return stats
    names = {BIAS: "expert_load", MTP_BIAS: MTP_EXPERT_LOAD}
    return unflatten(
        {
            path: update_expert_bias(bias, metrics[names[path]], c.bias_update_speed)
            for path, bias in flatten(stats).items()
        }
    )


def block(
    c: Config, time: CacheView, keys: Any, place: Place, layer: Layer, x: Array, p: Any, index: Array, held: Any
) -> tuple[Array, Any, Any]:
    """A layer: x [B T D] -> [B T D], its new cache entries, and its router statistics."""
    a, held = latent_attention(_norm(x, p["norm1"], c), p, c, time, layer.kind, held, fold_in_each(keys, index), place)
    x = x + a
    h = _norm(x, p["norm2"], c)
    if layer.stack == "dense":
        return x + gated_mlp(h, p, c.activation, place), held, None
    routes = route(router_logits(h, p["router"], place), p, c)
    y, served = mixture(h, routes, p["experts"], glu(c.activation), dispatch=c.dispatch, place=place)
    if c.shared:
        y = y + gated_mlp(h, p["shared"], c.activation, place)
    return x + y, held, router_stats(routes, served, time.position)


def route(logits: Array, p: Any, c: Config) -> Routes:
    """Routes of a layer: logits [B T E] -> Routes."""
    groups = c.experts_per_token, c.expert_groups, c.topk_groups
    if c.router == "softmax":
        return softmax_in_groups(logits, *groups, c.routed_scaling_factor)
    return sigmoid_in_groups(logits, p["bias"], *groups, c.norm_topk, c.routed_scaling_factor)


def run_mtp_modules(
    x: Array, tokens: Array, table: Array, p: Any, c: Config, run: Any, place: Place
) -> tuple[list[Array], Any]:
    """Run the MTP modules on x [B T D] -> the state of each further token [B T D], and their router statistics.

    Source: V3, eq. 21 to 23. A module's input is the last one's state after its norm, as in the runtimes of the
    released weights.
    """
    states, stats, stream = [], [], place("batch seq width")
    for k in range(c.mtp):
        own = jax.tree.map(lambda w, k=k: w[k], p)
        token = embed(table, shift_left(tokens, k + 1, place), stream).astype(x.dtype)
        x = einsum("btd,dc->btc", _norm(x, own["state_norm"], c), own["state"]["kernel"], stream)
        x = x + einsum("btd,dc->btc", _norm(token, own["token_norm"], c), own["token"]["kernel"], stream)
        once = remat_block(partial(run, Layer("full", "moe")), c.remat)
        x, _, own_stats = once(x, own["block"], jnp.asarray(c.depth + k), None)
        states.append(x := _norm(x, own["norm"], c))
        stats.append(own_stats)
    return states, jax.tree.map(lambda *each: jnp.stack(each), *stats)


def _norm(x: Array, p: dict[str, Array], c: Config) -> Array:
    return rms_norm(x, p["scale"], c.eps)
