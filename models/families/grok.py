"""Grok-1: a mixture of eight experts with norms before and after each branch and soft-capped scores.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden of an expert, E experts, A experts per token.
Source: xAI 2024, the code released with Grok-1 (github.com/xai-org/grok-1, model.py and run.py); there is no paper.
Initial values are GPT-2's, as none are given.
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from models.blocks.attention.mask import PAD_POSITION
from models.blocks.decoder.config import GQADecoder, cache_specs, decoder_specs, gqa_specs, rms_norm_specs
from models.blocks.decoder.forward import LayerContext, forward, self_attention
from models.blocks.moe.moe import MoEDecoder, RouterStats, expert_specs, mixture_of_experts, moe_outputs, moe_traits
from models.blocks.moe.routers import router_logits, softmax_then_top
from models.core.checks import not_negative, positive
from models.core.fence import fence
from models.core.spec import round_up
from models.core.types import Array, Cache, Fields, Inputs, Params, Specs

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}

SIZES: dict[str, Fields] = {
    "grok_1": dict(
        **dict(vocab=131072, context=8192, width=6144, depth=64, heads=48, kv_heads=8, head_dim=128, pad_token=0),
        embed_multiplier=78.38367176906169,
        attention_multiplier=0.08838834764831845,
        output_multiplier=0.5773502691896257,
    ),
}


@dataclass(frozen=True)
class Config(MoEDecoder, GQADecoder):
    """Shape and options of a Grok-1."""

    widening: float = 8.0  # an expert's hidden is 2/3 widening * width, rounded up to a multiple of 8
    activation: str = "gelu_tanh"  # of an expert's gate
    tied: bool = True
    embed_multiplier: float | None = None  # of the token embeddings; None is sqrt(width)
    attention_multiplier: float | None = None  # of the scores; None is 1 / sqrt(head_dim)
    output_multiplier: float = 3**-0.5  # of the logits
    attn_logit_softcap: float | None = 30.0  # soft cap on scores; None is no cap
    pad_token: int | None = None  # token ids up to it are padding; None is no padding

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "widening", "embed_multiplier", "attention_multiplier")
        positive(self, "output_multiplier", "attn_logit_softcap")
        not_negative(self, "pad_token")

    @property
    def feed_forward(self) -> int:
        """F."""
        return self.hidden or round_up(int(self.widening * self.width) * 2 // 3, 8)

    @property
    def embed_scale(self) -> float:
        """The factor of the token embeddings."""
        return self.width**0.5 if self.embed_multiplier is None else self.embed_multiplier

    @property
    def logit_scale(self) -> float:
        """Factor of the logits."""
        return self.output_multiplier

    @property
    def attention_scale(self) -> float:
        """Factor of queries times keys, before the cap."""
        return self.head_width**-0.5 if self.attention_multiplier is None else self.attention_multiplier


def block_specs(c: Config, stack: str, L: int) -> Specs:
    """Specs of L layers."""
    return {
        **rms_norm_specs(L, c.width, "norm1", "norm1_post", "norm2", "norm2_post"),
        **gqa_specs(c, L),
        **expert_specs(c, L),
    }


def mask_pad_tokens(inputs: Inputs, c: Config, cache: Cache | None) -> dict[str, Array]:
    """Inputs with a position [B T] below 0 where a token is padding by its id.

    In the release such a token attends to the tokens before it, and no token attends to it. Here it attends to padding
    alone: its own hidden state differs, those of all other tokens are the same.
    """
    if c.pad_token is None or "tokens" not in inputs:
        return inputs
    tokens = inputs["tokens"]
    start = 0 if cache is None else cache["filled"]
    position = inputs.get("position", start + jnp.arange(tokens.shape[1])[None])
    return {**inputs, "position": jnp.where(tokens > c.pad_token, position, PAD_POSITION)}


def block(x: Array, p: Params, c: Config, context: LayerContext) -> tuple[Array, Cache | None, RouterStats | None]:
    """A layer: x [B T D] -> [B T D], its new cache, and its router's statistics."""
    a, cache = self_attention(context.norm(x, p["norm1"]), p, c, context)
    x = fence(x + context.norm(a, p["norm1_post"]))
    h = context.norm(x, p["norm2"])
    routes = softmax_then_top(router_logits(h, p["router"], context.place), c.experts_per_token, norm_topk=False)
    y, stats = mixture_of_experts(h, routes, p["experts"], c, context)
    return x + context.norm(y, p["norm2_post"]), cache, stats


traits = partial(moe_traits, TRAITS)
specs = partial(decoder_specs, block_specs)
cache = cache_specs
apply = partial(forward, block, mask_inputs=mask_pad_tokens, router_outputs=moe_outputs)
