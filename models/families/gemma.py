"""Gemma: a Llama with norms also after each branch, soft-capped scores and logits, and alternating window layers.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden.
Source: Gemma Team 2024, arXiv:2408.00118 (2: alternating window layers, soft caps, norms after branches); 2025,
arXiv:2503.19786 (3: five window layers per full layer, with a rotary base of their own; norms on queries and keys).
Initial values are GPT-2's, as the papers give none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from models.blocks.attention.rope import Rope, RopeScaling, frequencies
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
from models.core.checks import positive
from models.core.fence import fence
from models.core.layers import rms_norm
from models.core.spec import zeros
from models.core.types import Array, Cache, Fields, Params, Specs

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}


def _gemma2(width: int, depth: int, heads: int, kv_heads: int, hidden: int, *, query: int, head_dim: int) -> Fields:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_dim=head_dim, hidden=hidden)
    more = dict(window=4096, query_pre_attn_scalar=float(query), attn_logit_softcap=50.0, final_logit_softcap=30.0)
    return dict(vocab=256000, context=8192, **shape, **more)


def _gemma3(width: int, depth: int, heads: int, kv_heads: int, hidden: int, **more: object) -> Fields:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_dim=256, hidden=hidden)
    near = dict(
        window=512, sliding_pattern=6, rope_local_base=1e4, rope_base=1e6, query_pre_attn_scalar=256.0, qk_norm=True
    )
    return dict(vocab=262144, context=32768, **shape) | near | more


_LONG: Fields = dict(vocab=262208, context=131072, window=1024, rope="linear", rope_factor=8.0)
SIZES: dict[str, Fields] = {  # the language models only
    "gemma2_2b": _gemma2(2304, 26, 8, 4, 9216, query=256, head_dim=256),
    "gemma2_9b": _gemma2(3584, 42, 16, 8, 14336, query=256, head_dim=256),
    "gemma2_27b": _gemma2(4608, 46, 32, 16, 36864, query=144, head_dim=128),
    "gemma3_270m": _gemma3(640, 18, 4, 1, 2048),
    "gemma3_1b": _gemma3(1152, 26, 4, 1, 6912),
    "gemma3_4b": _gemma3(2560, 34, 8, 4, 10240, **_LONG),
    "gemma3_12b": _gemma3(3840, 48, 16, 8, 15360, **_LONG),
    "gemma3_27b": _gemma3(5376, 62, 32, 16, 21504, query_pre_attn_scalar=168.0, head_dim=128, **_LONG),
}


@dataclass(frozen=True)
class Config(SlidingWindowDecoder):
    """Shape and options of a Gemma."""

    activation: str = "gelu_tanh"  # of the MLP's gate
    tied: bool = True  # the output head is the token embedding
    eps: float = 1e-6
    sliding_pattern: int = 2  # with a window, every `sliding_pattern`-th layer attends to all tokens
    rope_local_base: float | None = None  # rope base of sliding layers, without scaling; None is as in full layers
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None is the head width
    attn_logit_softcap: float | None = None  # soft cap on scores
    final_logit_softcap: float | None = None  # soft cap on logits
    qk_norm: bool = False  # RMSNorm of each head's queries and keys
    attention_bias: bool = False  # on q, k, v and out

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "sliding_pattern", "rope_local_base", "query_pre_attn_scalar")
        positive(self, "attn_logit_softcap", "final_logit_softcap")

    @property
    def default_sliding_layers(self) -> Sequence[int]:
        """All layers except every `sliding_pattern`-th."""
        return [i for i in range(self.depth) if (i + 1) % self.sliding_pattern]

    @property
    def ropes(self) -> dict[str, Rope]:
        """Rotary positions by kind of layer."""
        ropes = super().ropes
        if self.rope_local_base and "sliding" in ropes:
            ropes["sliding"] = Rope(frequencies(self.head_width, self.rope_local_base, RopeScaling()))
        return ropes

    @property
    def embed_scale(self) -> float:
        """Factor of the token vectors."""
        return self.width**0.5

    @property
    def attention_scale(self) -> float:
        """Factor of queries times keys."""
        return (self.query_pre_attn_scalar or self.head_width) ** -0.5


def block_specs(c: Config, stack: str, L: int) -> Specs:
    """Specs of L layers."""
    return {
        **rms_norm_specs(L, c.width, "norm1", "norm1_post", "norm2", "norm2_post", init=zeros),
        **gqa_specs(c, L, c.attention_bias),
        **(rms_norm_specs(L, c.head_width, "q_norm", "k_norm", init=zeros) if c.qk_norm else {}),
        **gated_mlp_specs(c, L, c.feed_forward),
    }


def norm(x: Array, p: dict[str, Array], c: Config) -> Array:
    """RMSNorm over the last dim, in float32, times 1 + scale."""
    return rms_norm(x.astype(jnp.float32), 1 + p["scale"].astype(jnp.float32), c.eps).astype(x.dtype)


def block(x: Array, p: Params, c: Config, context: LayerContext) -> tuple[Array, Cache | None, None]:
    """A layer: x [B T D] -> [B T D], and its new cache."""
    a, cache = self_attention(context.norm(x, p["norm1"]), p, c, context)
    x = fence(x + context.norm(a, p["norm1_post"]))
    h = gated_mlp(context.norm(x, p["norm2"]), p, c.activation, context.place)
    return x + context.norm(h, p["norm2_post"]), cache, None


specs = partial(decoder_specs, block_specs, norm=zeros)
cache = cache_specs
apply = partial(forward, block, norm=norm)
