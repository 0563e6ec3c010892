"""Grok-1: a mixture of eight experts with norms before and after each branch and soft-capped scores.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden of an expert, E experts, A experts per token.
Source: xAI 2024, the code released with Grok-1 (github.com/xai-org/grok-1, model.py and run.py); there is no paper.
Initial values are GPT-2's, as none are given.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from models.attention import attention
from models.decoder import (
    GQADecoder,
    cache_specs,
    embed_and_head_specs,
    gqa_specs,
    open_cache,
    qkv_projection,
    rms_norm_specs,
)
from models.dispatch import glu, mixture
from models.layers import embed, fold_in_each, linear, rms_norm
from models.moe import MoEDecoder, expert_specs, moe_outputs, router_stats
from models.rope import apply_rope, frequencies
from models.routers import router_logits, softmax_then_top
from models.sight import PAD_POSITION
from models.spec import Array, LazyLogits, Outputs, Place, unsharded
from models.stack import Layer, scan_layers
from models.validate import COMPUTE, require

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}

SIZES: dict[str, dict[str, Any]] = {
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
        require(
            self,
            "positive",
            "widening",
            "embed_multiplier",
            "attention_multiplier",
            "output_multiplier",
            "attn_logit_softcap",
        )
        require(self, "not negative", "pad_token")

    @property
    def feed_forward(self) -> int:
        """F."""
        return self.hidden or -(-(int(self.widening * self.width) * 2 // 3) // 8) * 8

    @property
    def embed_scale(self) -> float:
        """The factor of the token embeddings."""
        return self.width**0.5 if self.embed_multiplier is None else self.embed_multiplier

    @property
    def score_scale(self) -> float:
        """The factor of the scores, before the soft cap."""
        return self.head_width**-0.5 if self.attention_multiplier is None else self.attention_multiplier


def traits(c: Config) -> frozenset[str]:
    """A load-balancing loss couples the rows of a batch."""
    return TRAITS | {"batch_coupled"} if c.aux_loss_weight else TRAITS


def specs(c: Config) -> dict[str, Any]:
    """Specs of the parameters."""
    L, D = c.depth, c.width
    blocks: dict[str, Any] = {
        **rms_norm_specs(L, D, "norm1", "norm1_post", "norm2", "norm2_post"),
        **gqa_specs(c, L),
        **expert_specs(c, L),
    }
    return {"params": {**embed_and_head_specs(c), "blocks": blocks}}


def cache(c: Config, batch: int, length: int) -> dict[str, Any]:
    """Specs of a cache for `length` tokens."""
    return cache_specs(c, batch, length)


def mask_pad_tokens(inputs: dict[str, Array], c: Config, cache: dict[str, Any] | None) -> dict[str, Array]:
    """Inputs whose position [B T] is below 0 where the token id is padding.

    In the release, padding attends to earlier tokens, and no token attends to it. Here padding attends to padding only,
    which changes the outputs at padding and no others.
    """
    if c.pad_token is None:
        return inputs
    tokens, start = inputs["tokens"], 0 if cache is None else cache["filled"]
    position = inputs.get("position", start + jnp.arange(tokens.shape[1])[None])
    return {**inputs, "position": jnp.where(tokens > c.pad_token, position, PAD_POSITION)}


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
    those already in it. Logits at padding are meaningless.
    """
    p, keys, stream = variables["params"], key if train else None, place("batch seq width")
    time = open_cache(c, mask_pad_tokens(inputs, c, cache), cache, place)
    backend = c.attention if cache is None else "reference"
    turns = frequencies(c.head_width, c.rope_base, c.rope_scaling)

    def norm(x: Array, p: dict[str, Array]) -> Array:
        return rms_norm(x, p["scale"], c.eps)

    def block(layer: Layer, x: Array, p: Any, index: Array, held: Any) -> tuple[Array, Any, Any]:
        q, k, v = qkv_projection(norm(x, p["norm1"]), p, place)
        q, k = (apply_rope(x, time.position, turns, c.rope_scale) for x in (q, k))
        k, v, held = time.append_kv(layer.kind, held, k=k, v=v)
        how: dict[str, Any] = dict(backend=backend, dropout_rate=c.dropout, keys=fold_in_each(keys, index), place=place)
        a = attention(q, k, v, time.masks[layer.kind], scale=c.score_scale, logit_softcap=c.attn_logit_softcap, **how)
        x = x + norm(linear("btnh,nhd->btd", a, p["out"], stream), p["norm1_post"])
        h = norm(x, p["norm2"])
        routes = softmax_then_top(router_logits(h, p["router"], place), c.experts_per_token, norm_topk=False)
        y, served = mixture(h, routes, p["experts"], glu(c.activation), dispatch=c.dispatch, place=place)
        return x + norm(y, p["norm2_post"]), held, router_stats(routes, served, time.position)

    x = embed(p["embed"]["token"], inputs["tokens"], stream).astype(COMPUTE[c.compute]) * c.embed_scale
    blocks = {"blocks": p["blocks"]}
    x, held, says = scan_layers(block, c.layers, x, blocks, time.layer_caches, remat=c.remat, scan=c.scan)
    x, new = time.finish(norm(x, p["norm"]), held)
    value = LazyLogits(x * c.output_multiplier, p["embed"]["token"] if c.tied else p["head"], c.vocab)
    return Outputs(value, cache=new, **moe_outputs(says, c.aux_loss_weight))
