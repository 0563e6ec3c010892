"""gpt-oss: a mixture of experts with alternating sliding-window layers and attention sinks.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden of an expert, E experts, A experts per token.
Source: OpenAI 2025, arXiv:2508.10925, section 2, and the code released with it. Initial values are GPT-2's, as none
are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from models.attention import attention
from models.decoder import (
    SlidingWindowDecoder,
    cache_specs,
    embed_and_head_specs,
    gqa_specs,
    open_cache,
    qkv_projection,
    rms_norm_specs,
)
from models.dispatch import mixture
from models.layers import embed, fold_in_each, linear, rms_norm
from models.moe import MoEDecoder, expert_specs, moe_outputs, router_stats
from models.rope import apply_rope, frequencies
from models.routers import router_logits, top_then_softmax
from models.spec import Array, LazyLogits, Outputs, Place, Spec, normal, unsharded
from models.stack import Layer, scan_layers
from models.validate import COMPUTE, require

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}

_YARN = dict(rope="yarn", rope_base=150000.0, rope_factor=32.0, rope_context=4096, rope_high=32.0, rope_truncate=False)
_SHAPE: dict[str, Any] = dict(
    **dict(vocab=201088, context=131072, width=2880, heads=64, kv_heads=8, head_dim=64, hidden=2880, window=128),
    **dict(experts_per_token=4, rope_scale=1.3465735902799727, **_YARN),  # 0.1 ln 32 + 1
)
SIZES: dict[str, dict[str, Any]] = {
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
        require(self, "positive", "swiglu_alpha", "swiglu_limit")

    @property
    def default_sliding_layers(self) -> Sequence[int]:
        """Every other layer, from the first on."""
        return range(0, self.depth, 2)


def traits(c: Config) -> frozenset[str]:
    """A load-balancing loss couples the rows of a batch."""
    return TRAITS | {"batch_coupled"} if c.aux_loss_weight else TRAITS


def specs(c: Config) -> dict[str, Any]:
    """Specs of the parameters."""
    L, D, N = c.depth, c.width, c.heads
    blocks: dict[str, Any] = {
        **rms_norm_specs(L, D, "norm1", "norm2"),
        **gqa_specs(c, L, c.attention_bias),
        "sink": Spec((L, N), "layers heads", normal(0.02)),
        **expert_specs(c, L, bias=True, router_bias=True),
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

    def gate(gate: Array, up: Array) -> Array:
        gate, up = jnp.minimum(gate, c.swiglu_limit), jnp.clip(up, -c.swiglu_limit, c.swiglu_limit)
        return gate * jax.nn.sigmoid(c.swiglu_alpha * gate) * (up + 1)

    def block(layer: Layer, x: Array, p: Any, index: Array, held: Any) -> tuple[Array, Any, Any]:
        q, k, v = qkv_projection(norm(x, p["norm1"]), p, place)
        q, k = (apply_rope(x, time.position, turns, c.rope_scale) for x in (q, k))
        k, v, held = time.append_kv(layer.kind, held, k=k, v=v)
        how: dict[str, Any] = dict(backend=backend, dropout_rate=c.dropout, keys=fold_in_each(keys, index), place=place)
        a = attention(q, k, v, time.masks[layer.kind], scale=c.head_width**-0.5, sinks=p["sink"], **how)
        x = x + linear("btnh,nhd->btd", a, p["out"], stream)
        h = norm(x, p["norm2"])
        routes = top_then_softmax(router_logits(h, p["router"], place), c.experts_per_token)
        y, served = mixture(h, routes, p["experts"], gate, dispatch=c.dispatch, place=place)
        return x + y, held, router_stats(routes, served, time.position)

    x = embed(p["embed"]["token"], inputs["tokens"], stream).astype(COMPUTE[c.compute])
    blocks = {"blocks": p["blocks"]}
    x, held, says = scan_layers(block, c.layers, x, blocks, time.layer_caches, remat=c.remat, scan=c.scan)
    x, new = time.finish(norm(x, p["norm"]), held)
    value = LazyLogits(x, p["embed"]["token"] if c.tied else p["head"], c.vocab)
    return Outputs(value, cache=new, **moe_outputs(says, c.aux_loss_weight))
