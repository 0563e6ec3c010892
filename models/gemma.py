"""Gemma: a Llama with norms also after each branch, soft-capped scores and logits, and alternating window layers.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden.
Source: Gemma Team 2024, arXiv:2408.00118 (2: alternating window layers, soft caps, norms after branches); 2025,
arXiv:2503.19786 (3: five window layers per full layer, with a rotary base of their own; norms on queries and keys).
Initial values are GPT-2's, as the papers give none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

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
from models.rope import RopeScaling, apply_rope, frequencies
from models.spec import Array, LazyLogits, Outputs, Place, unsharded, zeros
from models.stack import Layer, scan_layers
from models.validate import COMPUTE, require

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}


def _gemma2(
    width: int, depth: int, heads: int, kv_heads: int, hidden: int, *, query: int, head_dim: int
) -> dict[str, Any]:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_dim=head_dim, hidden=hidden)
    more = dict(window=4096, query_pre_attn_scalar=float(query), attn_logit_softcap=50.0, final_logit_softcap=30.0)
    return dict(vocab=256000, context=8192, **shape, **more)


def _gemma3(width: int, depth: int, heads: int, kv_heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_dim=256, hidden=hidden)
    near = dict(
        window=512, sliding_pattern=6, rope_local_base=1e4, rope_base=1e6, query_pre_attn_scalar=256.0, qk_norm=True
    )
    return dict(vocab=262144, context=32768, **shape) | near | more


_LONG: dict[str, Any] = dict(vocab=262208, context=131072, window=1024, rope="linear", rope_factor=8.0)
SIZES: dict[str, dict[str, Any]] = {  # the language models only
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
        require(
            self,
            "positive",
            "sliding_pattern",
            "rope_local_base",
            "query_pre_attn_scalar",
            "attn_logit_softcap",
            "final_logit_softcap",
        )

    @property
    def default_sliding_layers(self) -> Sequence[int]:
        """All layers except every `sliding_pattern`-th."""
        return [i for i in range(self.depth) if (i + 1) % self.sliding_pattern]


def specs(c: Config) -> dict[str, Any]:
    """Specs of the parameters; norms multiply by 1 + scale."""
    L, D = c.depth, c.width
    blocks: dict[str, Any] = {
        **rms_norm_specs(L, D, "norm1", "norm1_post", "norm2", "norm2_post", init=zeros),
        **gqa_specs(c, L, c.attention_bias),
        **gated_mlp_specs(c, L, c.feed_forward),
    }
    if c.qk_norm:
        blocks |= rms_norm_specs(L, c.head_width, "q_norm", "k_norm", init=zeros)
    return {"params": {**embed_and_head_specs(c, norm=zeros), "blocks": blocks}}


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
    turns = {"full": (frequencies(c.head_width, c.rope_base, c.rope_scaling), c.rope_scale)}
    local = (frequencies(c.head_width, c.rope_local_base, RopeScaling()), 1.0) if c.rope_local_base else turns["full"]
    turns["sliding"] = local

    def norm(x: Array, p: dict[str, Array]) -> Array:
        return rms_norm(x.astype(jnp.float32), 1 + p["scale"].astype(jnp.float32), c.eps).astype(x.dtype)

    def block(layer: Layer, x: Array, p: Any, index: Array, held: Any) -> tuple[Array, Any, None]:
        q, k, v = qkv_projection(norm(x, p["norm1"]), p, place)
        if c.qk_norm:
            q, k = norm(q, p["q_norm"]), norm(k, p["k_norm"])
        q, k = (apply_rope(x, time.position, *turns[layer.kind]) for x in (q, k))
        k, v, held = time.append_kv(layer.kind, held, k=k, v=v)
        how: dict[str, Any] = dict(backend=backend, dropout_rate=c.dropout, keys=fold_in_each(keys, index), place=place)
        how |= dict(scale=(c.query_pre_attn_scalar or c.head_width) ** -0.5, logit_softcap=c.attn_logit_softcap)
        a = attention(q, k, v, time.masks[layer.kind], **how)
        x = x + norm(linear("btnh,nhd->btd", a, p["out"], stream), p["norm1_post"])
        h = gated_mlp(norm(x, p["norm2"]), p, c.activation, place)
        return x + norm(h, p["norm2_post"]), held, None

    x = embed(p["embed"]["token"], inputs["tokens"], stream).astype(COMPUTE[c.compute])
    x = x * jnp.asarray(c.width**0.5, x.dtype)
    blocks = {"blocks": p["blocks"]}
    x, held, _ = scan_layers(block, c.layers, x, blocks, time.layer_caches, remat=c.remat, scan=c.scan)
    x, new = time.finish(norm(x, p["norm"]), held)
    return Outputs(
        LazyLogits(x, p["embed"]["token"] if c.tied else p["head"], c.vocab, softcap=c.final_logit_softcap), cache=new
    )
