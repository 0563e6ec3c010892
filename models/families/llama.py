"""Llama: a decoder of pre-norm blocks with RMSNorm, rotary positions, grouped-query attention and SwiGLU.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden.
Source: Touvron et al. 2023, arXiv:2302.13971 (1) and arXiv:2307.09288 (2); Grattafiori et al. 2024, arXiv:2407.21783
(3); Jiang et al. 2023, arXiv:2310.06825 (Mistral: a sliding window); Yang et al. 2025, arXiv:2505.09388 (Qwen 3: norms
on queries and keys). Initial values are GPT-2's, as the papers give none.
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
from models.core.fence import fence
from models.core.types import Array, Cache, Fields, Params, Specs

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}


def _llama1(width: int, depth: int, hidden: int) -> Fields:
    return dict(vocab=32000, context=2048, width=width, depth=depth, heads=width // 128, hidden=hidden, eps=1e-6)


def _llama2(width: int, depth: int, hidden: int, kv_heads: int | None = None) -> Fields:
    shape = dict(width=width, depth=depth, heads=width // 128, kv_heads=kv_heads, hidden=hidden)
    return dict(vocab=32000, context=4096, **shape)


def _llama3(width: int, depth: int, heads: int, hidden: int, factor: float | None = None, **more: object) -> Fields:
    shape = dict(vocab=128256, width=width, depth=depth, heads=heads, kv_heads=8, hidden=hidden, rope_base=5e5)
    if factor is None:
        return dict(context=8192, **shape, **more)
    return dict(context=131072, rope="llama3", rope_factor=factor, rope_context=8192, **shape, **more)


def _qwen3(width: int, depth: int, heads: int, hidden: int, tied: bool = False) -> Fields:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=8, head_dim=128, hidden=hidden, tied=tied)
    return dict(vocab=151936, context=40960, rope_base=1e6, eps=1e-6, qk_norm=True, **shape)


SIZES: dict[str, Fields] = {
    "llama_7b": _llama1(4096, 32, 11008),
    "llama_13b": _llama1(5120, 40, 13824),
    "llama_33b": _llama1(6656, 60, 17920),
    "llama_65b": _llama1(8192, 80, 22016),
    "llama2_7b": _llama2(4096, 32, 11008),
    "llama2_13b": _llama2(5120, 40, 13824),
    "llama2_70b": _llama2(8192, 80, 28672, kv_heads=8),
    "llama3_8b": _llama3(4096, 32, 32, 14336),
    "llama3_70b": _llama3(8192, 80, 64, 28672),
    "llama3.1_8b": _llama3(4096, 32, 32, 14336, factor=8.0),
    "llama3.1_70b": _llama3(8192, 80, 64, 28672, factor=8.0),
    "llama3.1_405b": _llama3(16384, 126, 128, 53248, factor=8.0),
    "llama3.2_1b": _llama3(2048, 16, 32, 8192, factor=32.0, tied=True),
    "llama3.2_3b": _llama3(3072, 28, 24, 8192, factor=32.0, tied=True),
    "mistral_7b": dict(
        vocab=32000, context=32768, width=4096, depth=32, heads=32, kv_heads=8, hidden=14336, window=4096
    ),
    "qwen3_0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3_1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3_4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3_8b": _qwen3(4096, 36, 32, 12288),
    "qwen3_14b": _qwen3(5120, 40, 40, 17408),
    "qwen3_32b": _qwen3(5120, 64, 64, 25600),
}


@dataclass(frozen=True)
class Config(SlidingWindowDecoder):
    """Shape and options of a Llama."""

    attention_bias: bool = False  # on q, k, v and out
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head's queries and keys


def block_specs(c: Config, stack: str, L: int) -> Specs:
    """Specs of L layers."""
    return {
        **rms_norm_specs(L, c.width, "norm1", "norm2"),
        **gqa_specs(c, L, c.attention_bias),
        **(rms_norm_specs(L, c.head_width, "q_norm", "k_norm") if c.qk_norm else {}),
        **gated_mlp_specs(c, L, c.feed_forward, c.mlp_bias),
    }


def block(x: Array, p: Params, c: Config, context: LayerContext) -> tuple[Array, Cache | None, None]:
    """A layer: x [B T D] -> [B T D], and its new cache."""
    a, cache = self_attention(context.norm(x, p["norm1"]), p, c, context)
    x = fence(x + a)
    return x + gated_mlp(context.norm(x, p["norm2"]), p, c.activation, context.place), cache, None


specs = partial(decoder_specs, block_specs)
cache = cache_specs
apply = partial(forward, block)
