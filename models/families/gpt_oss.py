"""gpt-oss: a mixture of experts with alternating sliding-window layers and attention sinks.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden of an expert, E experts, A experts per token.
Source: OpenAI 2025, arXiv:2508.10925, section 2, and the code released with it. Initial values are GPT-2's, as none
are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from models.blocks.decoder.config import SlidingWindowDecoder, cache_specs, decoder_specs, gqa_specs, rms_norm_specs
from models.blocks.decoder.forward import LayerContext, forward, self_attention
from models.blocks.moe.moe import MoEDecoder, RouterStats, expert_specs, mixture_of_experts, moe_outputs, moe_traits
from models.blocks.moe.routers import router_logits, top_then_softmax
from models.core.checks import positive
from models.core.fence import fence
from models.core.spec import Spec, normal
from models.core.types import Array, Cache, Fields, Params, Specs

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}

_YARN = dict(rope="yarn", rope_base=150000.0, rope_factor=32.0, rope_context=4096, rope_high=32.0, rope_truncate=False)
_SHAPE: Fields = dict(
    **dict(vocab=201088, context=131072, width=2880, heads=64, kv_heads=8, head_dim=64, hidden=2880, window=128),
    **dict(experts_per_token=4, rope_scale=1.3465735902799727, **_YARN),  # 0.1 ln 32 + 1
)
SIZES: dict[str, Fields] = {
    "gpt_oss_20b": dict(depth=24, experts=32, **_SHAPE),
    "gpt_oss_120b": dict(depth=36, experts=128, **_SHAPE),
}


@dataclass(frozen=True)
class Config(MoEDecoder, SlidingWindowDecoder):
    """Shape and options of a gpt-oss."""

    attention_bias: bool = True  # on q, k, v and out
    swiglu_alpha: float = 1.702  # slope of the sigmoid in an expert's gate
    swiglu_limit: float = 7.0  # clamps an expert's gate from above, and up from both sides

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "swiglu_alpha", "swiglu_limit")

    @property
    def default_sliding_layers(self) -> Sequence[int]:
        """Every other layer, from the first on."""
        return range(0, self.depth, 2)


def block_specs(c: Config, stack: str, L: int) -> Specs:
    """Specs of L layers."""
    return {
        **rms_norm_specs(L, c.width, "norm1", "norm2"),
        **gqa_specs(c, L, c.attention_bias),
        "sink": Spec((L, c.heads), "layers heads", normal(0.02)),
        **expert_specs(c, L, bias=True, router_bias=True),
    }


def block(x: Array, p: Params, c: Config, context: LayerContext) -> tuple[Array, Cache | None, RouterStats | None]:
    """A layer: x [B T D] -> [B T D], its new cache, and its router's statistics."""

    def gate(gate: Array, up: Array) -> Array:
        gate, up = jnp.minimum(gate, c.swiglu_limit), jnp.clip(up, -c.swiglu_limit, c.swiglu_limit)
        return gate * jax.nn.sigmoid(c.swiglu_alpha * gate) * (up + 1)

    a, cache = self_attention(context.norm(x, p["norm1"]), p, c, context, sinks=p["sink"])
    x = fence(x + a)
    h = context.norm(x, p["norm2"])
    routes = top_then_softmax(router_logits(h, p["router"], context.place), c.experts_per_token)
    y, stats = mixture_of_experts(h, routes, p["experts"], c, context, gate)
    return x + y, cache, stats


traits = partial(moe_traits, TRAITS)
specs = partial(decoder_specs, block_specs)
cache = cache_specs
apply = partial(forward, block, router_outputs=moe_outputs)
