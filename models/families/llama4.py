"""Llama 4: mixture-of-experts layers with chunked attention and rotary positions, and full layers without positions.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L layers of a stack, N query heads, K key-value
heads, H head width, F hidden of an MLP or an expert, E experts, A experts per token.
Source: Meta 2025, the model card of Llama 4 and the code released with it. Layers without positions: Kazemnejad et al.
2023, arXiv:2305.19466; their attention temperature: Nakanishi 2025, arXiv:2501.19399. Initial values are GPT-2's.
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from models.blocks.attention.rope import Rope
from models.blocks.decoder.config import (
    GQADecoder,
    cache_specs,
    decoder_specs,
    gated_mlp,
    gated_mlp_specs,
    gqa_specs,
    qkv_projection,
    rms_norm_specs,
)
from models.blocks.decoder.forward import LayerContext, attend, forward
from models.blocks.decoder.kv_cache import AttentionSpan
from models.blocks.decoder.stack import Layer
from models.blocks.moe.moe import (
    InterleavedMoEDecoder,
    RouterStats,
    expert_specs,
    mixture_of_experts,
    moe_outputs,
    moe_traits,
)
from models.blocks.moe.routers import router_logits, top_then_sigmoid
from models.core.checks import not_negative, positive
from models.core.fence import fence
from models.core.layers import rms_norm
from models.core.types import Array, Cache, Fields, Params, Specs

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}

_SHAPE: Fields = dict(
    **dict(vocab=202048, width=5120, depth=48, heads=40, kv_heads=8, head_dim=128, hidden=16384, expert_hidden=8192),
    **dict(experts_per_token=1, rope_base=5e5, chunk=8192, nope_layers=tuple(range(3, 48, 4))),
)
_STRETCH: Fields = dict(rope="llama3", rope_factor=16.0, rope_context=8192, rope_low=1.0, rope_high=1.0)
SIZES: dict[str, Fields] = {  # the language models only
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
        positive(self, "chunk", "floor_scale")
        not_negative(self, "nope_layers", "attn_temperature")

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

    @property
    def ropes(self) -> dict[str, Rope]:
        """Rotary positions by kind of layer."""
        return {kind: rope._replace(interleaved=True) for kind, rope in super().ropes.items() if kind == "rope"}


def block_specs(c: Config, stack: str, L: int) -> Specs:
    """Specs of L layers of a stack, `moe` or `dense`."""
    if stack == "dense":
        mlp = gated_mlp_specs(c, L, c.feed_forward)
    else:
        mlp = {**expert_specs(c, L), "shared": gated_mlp_specs(c, L, c.expert_width)}
    return {**rms_norm_specs(L, c.width, "norm1", "norm2"), **gqa_specs(c, L, c.attention_bias), **mlp}


def query_scale(position: Array, c: Config) -> Array:
    """Factor of queries in nope layers, which grows with the log of position: [B T] -> [B T 1 1]."""
    steps = jnp.floor((jnp.maximum(position, 0) + 1.0) / c.floor_scale)
    return (jnp.log1p(steps) * (c.attn_temperature or 0.0) + 1.0)[:, :, None, None]


def block(x: Array, p: Params, c: Config, context: LayerContext) -> tuple[Array, Cache | None, RouterStats | None]:
    """A layer: x [B T D] -> [B T D], its new cache, and its router's statistics."""
    q, k, v = qkv_projection(context.norm(x, p["norm1"]), p, context.place)
    if context.layer.kind == "nope":
        q = (q * query_scale(context.view.position, c)).astype(q.dtype)
    else:
        q, k = context.rotate(q), context.rotate(k)
        q, k = (rms_norm(x, None, c.eps) if c.qk_norm else x for x in (q, k))
    a, cache = attend(q, k, v, p, c, context)
    x = fence(x + a)
    h = context.norm(x, p["norm2"])
    if context.layer.stack == "dense":
        return x + gated_mlp(h, p, c.activation, context.place), cache, None
    routes = top_then_sigmoid(router_logits(h, p["router"], context.place), c.experts_per_token)
    y, stats = mixture_of_experts(h, routes, p["experts"], c, context, weight_inputs=True)
    return x + y + gated_mlp(h, p["shared"], c.activation, context.place), cache, stats


traits = partial(moe_traits, TRAITS)
specs = partial(decoder_specs, block_specs)
cache = cache_specs
apply = partial(forward, block, router_outputs=moe_outputs)
