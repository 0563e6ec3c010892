"""Mixtral: a Llama whose MLPs are mixtures of experts with top-k softmax routing.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L layers of a stack, N query heads, K key-value
heads, H head width, F hidden of an MLP or an expert, E experts, A experts per token.
Source: Jiang et al. 2024, arXiv:2401.04088; Yang et al. 2025, arXiv:2505.09388 (Qwen 3: norms on queries and keys; its
smaller siblings do not normalise the experts' weights). Initial values are GPT-2's, as the papers give none.
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
from models.dispatch import glu, mixture
from models.layers import embed, fold_in_each, linear, rms_norm
from models.moe import InterleavedMoEDecoder, expert_specs, moe_outputs, router_stats
from models.rope import apply_rope, frequencies
from models.routers import router_logits, softmax_then_top
from models.spec import Array, LazyLogits, Outputs, Place, unsharded
from models.stack import Layer, scan_layers
from models.validate import COMPUTE

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}


def _qwen3(width: int, depth: int, heads: int, kv_heads: int, hidden: int, expert_hidden: int) -> dict[str, Any]:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_dim=128, hidden=hidden)
    routed = dict(experts=128, experts_per_token=8, expert_hidden=expert_hidden, norm_topk=True)
    return dict(vocab=151936, context=40960, rope_base=1e6, eps=1e-6, qk_norm=True, **shape, **routed)


SIZES: dict[str, dict[str, Any]] = {
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


def traits(c: Config) -> frozenset[str]:
    """A load-balancing loss couples the rows of a batch."""
    return TRAITS | {"batch_coupled"} if c.aux_loss_weight else TRAITS


def specs(c: Config) -> dict[str, Any]:
    """Specs of the parameters."""
    blocks: dict[str, Any] = {}
    for stack in dict.fromkeys(layer.stack for layer in c.layers):
        L = sum(layer.stack == stack for layer in c.layers)
        mlp = gated_mlp_specs(c, L, c.feed_forward) if stack == "dense" else expert_specs(c, L)
        blocks[stack] = {
            **rms_norm_specs(L, c.width, "norm1", "norm2"),
            **gqa_specs(c, L, c.attention_bias),
            **(rms_norm_specs(L, c.head_width, "q_norm", "k_norm") if c.qk_norm else {}),
            **mlp,
        }
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

    def block(layer: Layer, x: Array, p: Any, index: Array, held: Any) -> tuple[Array, Any, Any]:
        q, k, v = qkv_projection(norm(x, p["norm1"]), p, place)
        if c.qk_norm:
            q, k = norm(q, p["q_norm"]), norm(k, p["k_norm"])
        q, k = (apply_rope(x, time.position, turns, c.rope_scale) for x in (q, k))
        k, v, held = time.append_kv(layer.kind, held, k=k, v=v)
        how: dict[str, Any] = dict(backend=backend, dropout_rate=c.dropout, keys=fold_in_each(keys, index), place=place)
        a = attention(q, k, v, time.masks[layer.kind], scale=c.head_width**-0.5, **how)
        x = x + linear("btnh,nhd->btd", a, p["out"], stream)
        h = norm(x, p["norm2"])
        if layer.stack == "dense":
            return x + gated_mlp(h, p, c.activation, place), held, None
        routes = softmax_then_top(router_logits(h, p["router"], place), c.experts_per_token, c.norm_topk)
        y, served = mixture(h, routes, p["experts"], glu(c.activation), dispatch=c.dispatch, place=place)
        return x + y, held, router_stats(routes, served, time.position)

    x = embed(p["embed"]["token"], inputs["tokens"], stream).astype(COMPUTE[c.compute])
    x, held, says = scan_layers(block, c.layers, x, p["blocks"], time.layer_caches, remat=c.remat, scan=c.scan)
    x, new = time.finish(norm(x, p["norm"]), held)
    value = LazyLogits(x, p["embed"]["token"] if c.tied else p["head"], c.vocab)
    return Outputs(value, cache=new, **moe_outputs(says, c.aux_loss_weight))
