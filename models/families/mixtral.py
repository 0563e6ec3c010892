"""Mixtral: a Llama whose MLPs are mixtures of experts with top-k softmax routing.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L layers of a stack, N query heads, K key-value
heads, H head width, F hidden of an MLP or an expert, E experts, A experts per token.
Source: Jiang et al. 2024, arXiv:2401.04088; Yang et al. 2025, arXiv:2505.09388 (Qwen 3: norms on queries and keys; its
smaller siblings do not normalise the experts' weights). Initial values are GPT-2's, as the papers give none.
"""

from dataclasses import dataclass
from functools import partial

from models.blocks.decoder.config import (
    SlidingWindowDecoder,
    cache_specs,
    decoder_specs,
    gated_mlp,
    gated_mlp_specs,
    gqa_specs,
    rms_norm_specs,
)
from models.blocks.decoder.forward import LayerContext, forward, self_attention
from models.blocks.moe.moe import (
    InterleavedMoEDecoder,
    RouterStats,
    expert_specs,
    mixture_of_experts,
    moe_outputs,
    moe_traits,
)
from models.blocks.moe.routers import router_logits, softmax_then_top
from models.core.fence import fence
from models.core.types import Array, Cache, Fields, Params, Specs

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}


def _qwen3(width: int, depth: int, heads: int, kv_heads: int, hidden: int, expert_hidden: int) -> Fields:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_dim=128, hidden=hidden)
    routed = dict(experts=128, experts_per_token=8, expert_hidden=expert_hidden, norm_topk=True)
    return dict(vocab=151936, context=40960, rope_base=1e6, eps=1e-6, qk_norm=True, **shape, **routed)


SIZES: dict[str, Fields] = {
    "mixtral_8x7b": dict(
        vocab=32000, context=32768, width=4096, depth=32, heads=32, kv_heads=8, hidden=14336, rope_base=1e6
    ),
    "mixtral_8x22b": dict(
        vocab=32768, context=65536, width=6144, depth=56, heads=48, kv_heads=8, hidden=16384, rope_base=1e6
    ),
    "qwen3_30b_a3b": _qwen3(2048, 48, 32, 4, 6144, 768),
    "qwen3_235b_a22b": _qwen3(4096, 94, 64, 4, 12288, 1536),
}


@dataclass(frozen=True)
class Config(InterleavedMoEDecoder, SlidingWindowDecoder):
    """Shape and options of a Mixtral."""

    norm_topk: bool = True  # normalise the weights of a token's experts to sum to 1
    attention_bias: bool = False  # on q, k, v and out
    qk_norm: bool = False  # RMSNorm of each head's queries and keys


def block_specs(c: Config, stack: str, L: int) -> Specs:
    """Specs of L layers of a stack, `moe` or `dense`."""
    return {
        **rms_norm_specs(L, c.width, "norm1", "norm2"),
        **gqa_specs(c, L, c.attention_bias),
        **(rms_norm_specs(L, c.head_width, "q_norm", "k_norm") if c.qk_norm else {}),
        **(gated_mlp_specs(c, L, c.feed_forward) if stack == "dense" else expert_specs(c, L)),
    }


def block(x: Array, p: Params, c: Config, context: LayerContext) -> tuple[Array, Cache | None, RouterStats | None]:
    """A layer: x [B T D] -> [B T D], its new cache, and its router's statistics."""
    a, cache = self_attention(context.norm(x, p["norm1"]), p, c, context)
    x = fence(x + a)
    h = context.norm(x, p["norm2"])
    if context.layer.stack == "dense":
        return x + gated_mlp(h, p, c.activation, context.place), cache, None
    routes = softmax_then_top(router_logits(h, p["router"], context.place), c.experts_per_token, c.norm_topk)
    y, stats = mixture_of_experts(h, routes, p["experts"], c, context)
    return x + y, cache, stats


traits = partial(moe_traits, TRAITS)
specs = partial(decoder_specs, block_specs)
cache = cache_specs
apply = partial(forward, block, router_outputs=moe_outputs)
