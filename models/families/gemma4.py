"""Gemma 4: full layers have wider heads, and their values may equal their keys; experts run beside an MLP.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L layers of a stack, N query heads, K key-value
heads, H head width, F hidden of an MLP or an expert, E experts, A experts per token.
Source: Gemma Team 2026, the model card of Gemma 4 and the code released with it. Per-layer embeddings
and keys shared between layers, which its smallest siblings have, are not implemented. Initial values are GPT-2's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax.numpy as jnp
import numpy as np

from models.blocks.attention.rope import Rope, RopeScaling, frequencies
from models.blocks.decoder.config import (
    SlidingWindowDecoder,
    cache_specs,
    decoder_specs,
    gated_mlp,
    gated_mlp_specs,
    gqa_specs,
    qkv_projection,
    rms_norm_specs,
)
from models.blocks.decoder.forward import LayerContext, attend, forward
from models.blocks.decoder.kv_cache import CacheEntry
from models.blocks.decoder.stack import Layer
from models.blocks.moe.moe import (
    MoEDecoder,
    RouterStats,
    expert_specs,
    mixture_of_experts,
    moe_outputs,
    moe_traits,
    router_specs,
)
from models.blocks.moe.routers import Routes, router_logits, softmax_then_top, take_experts
from models.core.checks import divides, positive, refuse
from models.core.fence import fence
from models.core.layers import rms_norm
from models.core.spec import Place, Spec, normal, ones
from models.core.types import Array, Cache, Fields, Params, Specs

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}


def _size(width: int, depth: int, heads: int, kv_heads: int, full_kv_heads: int, hidden: int, **more: object) -> Fields:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_dim=256, hidden=hidden)
    full = dict(full_kv_heads=full_kv_heads, full_head_dim=512, k_eq_v=True)
    return dict(vocab=262144, context=262144, window=1024, final_logit_softcap=30.0, **shape, **full, **more)


_EXPERTS: Fields = dict(enable_moe_block=True, experts=128, experts_per_token=8, expert_hidden=704)
SIZES: dict[str, Fields] = {  # the language models only
    "gemma4_12b": _size(3840, 48, 16, 8, 1, 15360),
    "gemma4_31b": _size(5376, 60, 32, 16, 4, 21504),
    "gemma4_26b_a4b": _size(2816, 30, 16, 8, 2, 2112, **_EXPERTS),
}


@dataclass(frozen=True)
class Config(MoEDecoder, SlidingWindowDecoder):
    """Shape and options of a Gemma 4."""

    activation: str = "gelu_tanh"  # of the gates of MLP and experts
    tied: bool = True  # the output head is the token embedding
    eps: float = 1e-6
    rope_base: float = 1e6  # of full layers
    rope_local_base: float = 1e4  # of sliding layers
    partial_rotary_factor: float = 0.25  # of full layers: fraction of a head's dims that rotate
    sliding_pattern: int = 6  # every `sliding_pattern`-th layer is full, and the last
    full_head_dim: int | None = None  # of full layers; None is head_dim
    full_kv_heads: int | None = None  # of full layers; None is kv_heads
    k_eq_v: bool = False  # in full layers, values use the projection of keys
    enable_moe_block: bool = False  # a mixture of experts beside each MLP
    final_logit_softcap: float | None = None  # soft cap on logits
    attention_bias: bool = False  # on q, k, v and out

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "sliding_pattern", "rope_local_base", "full_head_dim")
        positive(self, "full_kv_heads", "final_logit_softcap")
        if self.aux_loss_weight != 0 and not self.enable_moe_block:
            refuse(self, "aux_loss_weight", f"0 for enable_moe_block={self.enable_moe_block}")
        if not 0 < self.partial_rotary_factor <= 1:
            refuse(self, "partial_rotary_factor", "above 0, at most 1")
        if self.full_head_dim is not None and self.full_head_dim % 2:
            refuse(self, "full_head_dim", "even (rotary dims are pairs)")
        divides(self, "full_kv_heads", "heads")

    @property
    def default_sliding_layers(self) -> Sequence[int]:
        """All layers except every `sliding_pattern`-th and the last."""
        return [i for i in range(self.depth - 1) if (i + 1) % self.sliding_pattern]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The kind and stack of each layer; sliding layers are a stack of their own, as their heads differ."""
        return tuple(Layer(layer.kind, layer.kind) for layer in super().layers)

    @property
    def cache_entries(self) -> dict[str, CacheEntry]:
        """What a layer of each kind caches per token."""
        return {kind: self.for_kind(kind).cache_entry for kind in self.spans}

    def for_kind(self, kind: str) -> "Config":
        """The Config of layers of a kind."""
        if kind == "sliding":
            return self
        wide = self.full_head_dim or self.head_dim
        return replace(self, head_dim=wide, kv_heads=self.full_kv_heads or self.kv_heads)

    @property
    def ropes(self) -> dict[str, Rope]:
        """Rotary positions by kind of layer; full layers rotate only the first `partial_rotary_factor`."""
        full = frequencies(self.for_kind("full").head_width, self.rope_base, self.rope_scaling)
        rotated = np.arange(len(full)) < int(self.partial_rotary_factor * len(full))
        ropes = {
            "sliding": Rope(frequencies(self.head_width, self.rope_local_base, RopeScaling())),
            "full": Rope(np.where(rotated, full, np.float32(0)), self.rope_scale),
        }
        return {kind: ropes[kind] for kind in self.spans}

    @property
    def embed_scale(self) -> float:
        """Factor of the token vectors."""
        return self.width**0.5

    @property
    def attention_scale(self) -> float:
        """Factor of queries times keys."""
        return 1.0


def specs(c: Config) -> Specs:
    """Specs of the parameters; the scalar factors of layers are statistics, not trained."""
    counts = Counter(layer.stack for layer in c.layers)
    factors = {stack: {"factor": Spec((L,), "layers", ones)} for stack, L in counts.items()}
    return {**decoder_specs(block_specs, c), "stats": {"blocks": factors}}


def block_specs(c: Config, stack: str, L: int) -> Specs:
    """Specs of L layers of a stack, `full` or `sliding`."""
    c = c.for_kind(stack)
    heads = gqa_specs(c, L, c.attention_bias)
    if c.k_eq_v and stack == "full":
        del heads["v"]
    table = {
        **rms_norm_specs(L, c.width, "norm1", "norm1_post", "norm2", "norm2_post"),
        **rms_norm_specs(L, c.head_width, "q_norm", "k_norm"),
        **heads,
        **gated_mlp_specs(c, L, c.feed_forward),
    }
    if not c.enable_moe_block:
        return table
    router = {
        **router_specs(c, L, normal(0.02 * c.width**0.5)),  # route divides its input by sqrt(width)
        "scale": Spec((L, c.width), "layers norm", ones),
        "gain": Spec((L, c.experts), "layers choice", ones),
    }
    norms = rms_norm_specs(L, c.width, "mlp_post", "experts_norm", "experts_post")
    return {**table, **expert_specs(c, L), "router": router, **norms}


def block(x: Array, p: Params, c: Config, context: LayerContext) -> tuple[Array, Cache | None, RouterStats | None]:
    """A layer: x [B T D] -> [B T D], its new cache, and its router's statistics."""
    norm = context.norm
    q, k, v = qkv_projection(norm(x, p["norm1"]), {"v": p["k"], **p}, context.place)
    q, k = context.rotate(norm(q, p["q_norm"])), context.rotate(norm(k, p["k_norm"]))
    a, cache = attend(q, k, norm(v, None), p, c, context)
    x = fence(x + norm(a, p["norm1_post"]))
    h = gated_mlp(norm(x, p["norm2"]), p, c.activation, context.place)
    stats = None
    if c.enable_moe_block:
        routes = route(x, p["router"], c, context.place)
        y, stats = mixture_of_experts(norm(x, p["experts_norm"]), routes, p["experts"], c, context)
        h = norm(h, p["mlp_post"]) + norm(y, p["experts_post"])
    x = x + norm(h, p["norm2_post"])
    return x * p["factor"].astype(x.dtype), cache, stats


def route(x: Array, p: dict[str, Array], c: Config, place: Place) -> Routes:
    """Routes from the residual stream; each expert has a learned gain: x [B T D] -> Routes."""
    x = rms_norm(x.astype(jnp.float32), p["scale"], c.eps) * c.width**-0.5
    routes = softmax_then_top(router_logits(x, {"kernel": p["kernel"]}, place), c.experts_per_token, norm_topk=True)
    gains = jnp.broadcast_to(p["gain"].astype(jnp.float32), routes.probs.shape)
    return routes._replace(weights=routes.weights * take_experts(gains, routes.experts))


traits = partial(moe_traits, TRAITS)
cache = cache_specs
apply = partial(forward, block, router_outputs=moe_outputs)
