"""Llama: a decoder of pre-norm blocks with RMSNorm, rotary positions, grouped-query attention and SwiGLU.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden.
Source: Touvron et al. 2023, arXiv:2302.13971 (1) and arXiv:2307.09288 (2); Grattafiori et al. 2024, arXiv:2407.21783
(3); Jiang et al. 2023, arXiv:2310.06825 (Mistral: a sliding window); Yang et al. 2025, arXiv:2505.09388 (Qwen 3: norms
on queries and keys). Initial values are GPT-2's, as the papers give none.
"""

from dataclasses import dataclass
from typing import Any

from models.attention import attention
from models.decoder import (
    SlidingWindowDecoder,
    cache_specs,
    embed_and_head_specs,
    gated_mlp,
    gated_mlp_specs,
    gqa_specs,
    open_cache,
    qkv_projection,
    rms_norm_specs,
)
from models.layers import embed, fold_in_each, linear, rms_norm
from models.rope import apply_rope, frequencies
from models.spec import Array, LazyLogits, Outputs, Place, unsharded
from models.stack import Layer, scan_layers
from models.validate import COMPUTE

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}


def _llama1(width: int, depth: int, hidden: int) -> dict[str, Any]:
    return dict(vocab=32000, context=2048, width=width, depth=depth, heads=width // 128, hidden=hidden, eps=1e-6)


def _llama2(width: int, depth: int, hidden: int, kv_heads: int | None = None) -> dict[str, Any]:
    shape = dict(width=width, depth=depth, heads=width // 128, kv_heads=kv_heads, hidden=hidden)
    return dict(vocab=32000, context=4096, **shape)


def _llama3(
    width: int, depth: int, heads: int, hidden: int, factor: float | None = None, **more: Any
) -> dict[str, Any]:
    shape = dict(vocab=128256, width=width, depth=depth, heads=heads, kv_heads=8, hidden=hidden, rope_base=5e5)
    if factor is None:
        return dict(context=8192, **shape, **more)
    return dict(context=131072, rope="llama3", rope_factor=factor, rope_context=8192, **shape, **more)


def _qwen3(width: int, depth: int, heads: int, hidden: int, tied: bool = False) -> dict[str, Any]:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=8, head_dim=128, hidden=hidden, tied=tied)
    return dict(vocab=151936, context=40960, rope_base=1e6, eps=1e-6, qk_norm=True, **shape)


SIZES: dict[str, dict[str, Any]] = {
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


def specs(c: Config) -> dict[str, Any]:
    """Specs of the parameters."""
    L, D, H, F = c.depth, c.width, c.head_width, c.feed_forward
    blocks: dict[str, Any] = {
        **rms_norm_specs(L, D, "norm1", "norm2"),
        **gqa_specs(c, L, c.attention_bias),
        **gated_mlp_specs(c, L, F, c.mlp_bias),
    }
    if c.qk_norm:
        blocks |= rms_norm_specs(L, H, "q_norm", "k_norm")
    return {"params": {**embed_and_head_specs(c), "blocks": blocks}}


def cache(c: Config, batch: int, length: int) -> dict[str, Any]:
    """Specs of a cache for `length` tokens, by kind of layer; sliding layers cache their window only."""
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

    def block(layer: Layer, x: Array, p: Any, index: Array, held: Any) -> tuple[Array, Any, None]:
        q, k, v = qkv_projection(norm(x, p["norm1"]), p, place)
        if c.qk_norm:
            q, k = norm(q, p["q_norm"]), norm(k, p["k_norm"])
        q, k = (apply_rope(x, time.position, turns, c.rope_scale) for x in (q, k))
        k, v, held = time.append_kv(layer.kind, held, k=k, v=v)
        how: dict[str, Any] = dict(backend=backend, dropout_rate=c.dropout, keys=fold_in_each(keys, index), place=place)
        a = attention(q, k, v, time.masks[layer.kind], scale=c.head_width**-0.5, **how)
        x = x + linear("btnh,nhd->btd", a, p["out"], stream)
        return x + gated_mlp(norm(x, p["norm2"]), p, c.activation, place), held, None

    x = embed(p["embed"]["token"], inputs["tokens"], stream).astype(COMPUTE[c.compute])
    blocks = {"blocks": p["blocks"]}
    x, held, _ = scan_layers(block, c.layers, x, blocks, time.layer_caches, remat=c.remat, scan=c.scan)
    x, new = time.finish(norm(x, p["norm"]), held)
    return Outputs(LazyLogits(x, p["embed"]["token"] if c.tied else p["head"], c.vocab), cache=new)
