"""Llama 4: mixture-of-experts layers with chunked attention and rotary positions, and full layers without positions.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L layers of a stack, N query heads, K key-value
heads, H head width, F hidden of an MLP or an expert, E experts, A experts per token.
Source: Meta 2025, the model card of Llama 4 and the code released with it. Layers without positions: Kazemnejad et al.
2023, arXiv:2305.19466; their attention temperature: Nakanishi 2025, arXiv:2501.19399. Initial values are GPT-2's.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from models.attention import attention
from models.decoder import (
    GQADecoder,
    cache_specs,
    embed_and_head_specs,
    gated_mlp,
    gated_mlp_specs,
    gqa_specs,
    open_cache,
    qkv_projection,
    rms_norm_specs,
)
from models.dispatch import glu, mixture
from models.layers import embed, fold_in_each, linear, rms_norm
from models.moe import InterleavedMoEDecoder, expert_specs, moe_outputs, router_stats
from models.rope import apply_rope, frequencies
from models.routers import router_logits, top_then_sigmoid
from models.spec import Array, LazyLogits, Outputs, Place, unsharded
from models.stack import Layer, scan_layers
from models.timeline import AttentionSpan
from models.validate import COMPUTE, require

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}

_SHAPE: dict[str, Any] = dict(
    **dict(vocab=202048, width=5120, depth=48, heads=40, kv_heads=8, head_dim=128, hidden=16384, expert_hidden=8192),
    **dict(experts_per_token=1, rope_base=5e5, chunk=8192, nope_layers=tuple(range(3, 48, 4))),
)
_STRETCH: dict[str, Any] = dict(rope="llama3", rope_factor=16.0, rope_context=8192, rope_low=1.0, rope_high=1.0)
SIZES: dict[str, dict[str, Any]] = {  # the language models only
    "llama4_scout": dict(experts=16, context=10485760, **_SHAPE, **_STRETCH),
    "llama4_maverick": dict(experts=128, context=1048576, qk_norm=False, dense_layers=tuple(range(0, 48, 2)), **_SHAPE),
}


@dataclass(frozen=True)
class Config(InterleavedMoEDecoder, GQADecoder):
    """Shape and options of a Llama 4."""

    experts_per_token: int = 1  # experts per token
    chunk: int | None = 8192  # tokens; layers with positions attend within their chunk; None is all
    nope_layers: tuple[int, ...] = ()  # layers without positions, which attend to all tokens
    qk_norm: bool = True  # RMSNorm without scale of queries and keys with positions
    attn_temperature: float | None = 0.1  # of nope layers: queries grow with the log of position
    floor_scale: int = 8192  # of nope layers: tokens per step of that growth
    attention_bias: bool = False  # on q, k, v and out

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "positive", "chunk", "floor_scale")
        require(self, "not negative", "nope_layers", "attn_temperature")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The kind, `rope` or `nope`, and stack, `dense` or `moe`, of each layer."""
        kinds = ("rope", "nope")
        return tuple(Layer(kinds[i in self.nope_layers], layer.stack) for i, layer in enumerate(super().layers))

    @property
    def spans(self) -> dict[str, AttentionSpan]:
        """The attention span of each kind of layer."""
        every = {"rope": AttentionSpan(chunk=self.chunk), "nope": AttentionSpan()}
        return {kind: every[kind] for kind in dict.fromkeys(layer.kind for layer in self.layers)}


def traits(c: Config) -> frozenset[str]:
    """A load-balancing loss couples the rows of a batch."""
    return TRAITS | {"batch_coupled"} if c.aux_loss_weight else TRAITS


def specs(c: Config) -> dict[str, Any]:
    """Specs of the parameters."""
    blocks: dict[str, Any] = {}
    for stack in dict.fromkeys(layer.stack for layer in c.layers):
        L = sum(layer.stack == stack for layer in c.layers)
        mlp = gated_mlp_specs(c, L, c.feed_forward)
        if stack == "moe":
            mlp = {**expert_specs(c, L), "shared": gated_mlp_specs(c, L, c.expert_width)}
        blocks[stack] = {**rms_norm_specs(L, c.width, "norm1", "norm2"), **gqa_specs(c, L, c.attention_bias), **mlp}
    return {"params": {**embed_and_head_specs(c), "blocks": blocks}}


def cache(c: Config, batch: int, length: int) -> dict[str, Any]:
    """Specs of a cache for `length` tokens, by kind of layer; layers with positions cache their chunk only."""
    return cache_specs(c, batch, length)


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
    """Next-token logits, float32, masked beyond the vocabulary: tokens [B T] -> [B T V].

    `key` is one PRNG key per row, [B]; None disables dropout. Optional inputs: position [B T], below 0 where a token is
    padding; segment [B T] (tokens attend to their own segment only; not with a cache). With a cache, the tokens follow
    those already in it.
    """
    p, keys, stream = variables["params"], key if train else None, place("batch seq width")
    time, backend = open_cache(c, inputs, cache, place), c.attention if cache is None else "reference"
    turns = frequencies(c.head_width, c.rope_base, c.rope_scaling)

    def norm(x: Array, p: dict[str, Array]) -> Array:
        return rms_norm(x, p["scale"], c.eps)

    def attn_temperature() -> Array:
        """The factor of queries in nope layers, [B T 1 1]."""
        steps = jnp.floor((jnp.maximum(time.position, 0) + 1.0) / c.floor_scale)
        return (jnp.log1p(steps) * (c.attn_temperature or 0.0) + 1.0)[:, :, None, None]

    def block(layer: Layer, x: Array, p: Any, index: Array, held: Any) -> tuple[Array, Any, Any]:
        q, k, v = qkv_projection(norm(x, p["norm1"]), p, place)
        if layer.kind == "nope":
            q = (q * attn_temperature()).astype(q.dtype)
        else:
            q, k = (apply_rope(x, time.position, turns, c.rope_scale, interleaved=True) for x in (q, k))
            q, k = (rms_norm(x, None, c.eps) if c.qk_norm else x for x in (q, k))
        k, v, held = time.append_kv(layer.kind, held, k=k, v=v)
        how: dict[str, Any] = dict(backend=backend, dropout_rate=c.dropout, keys=fold_in_each(keys, index), place=place)
        a = attention(q, k, v, time.masks[layer.kind], scale=c.head_width**-0.5, **how)
        x = x + linear("btnh,nhd->btd", a, p["out"], stream)
        h = norm(x, p["norm2"])
        if layer.stack == "dense":
            return x + gated_mlp(h, p, c.activation, place), held, None
        routes = top_then_sigmoid(router_logits(h, p["router"], place), c.experts_per_token)
        how = dict(dispatch=c.dispatch, weigh_input=True, place=place)
        y, served = mixture(h, routes, p["experts"], glu(c.activation), **how)
        return x + y + gated_mlp(h, p["shared"], c.activation, place), held, router_stats(routes, served, time.position)

    x = embed(p["embed"]["token"], inputs["tokens"], stream).astype(COMPUTE[c.compute])
    x, held, says = scan_layers(block, c.layers, x, p["blocks"], time.layer_caches, remat=c.remat, scan=c.scan)
    x, new = time.finish(norm(x, p["norm"]), held)
    value = LazyLogits(x, p["embed"]["token"] if c.tied else p["head"], c.vocab)
    return Outputs(value, cache=new, **moe_outputs(says, c.aux_loss_weight))
