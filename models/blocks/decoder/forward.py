"""The forward pass that all decoders with rotary positions share, and the self-attention of most.

A family adds its block, which maps the residual stream through one layer, and has `apply = partial(forward, block)`.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L layers of a stack, N query heads,
K key-value heads, H head width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from models.blocks.attention.attention import attention
from models.blocks.attention.mask import AttentionMask
from models.blocks.attention.rope import Rope, apply_rope
from models.blocks.decoder.config import Decoder, GQADecoder, open_cache, qkv_projection
from models.blocks.decoder.kv_cache import CacheView
from models.blocks.decoder.stack import Layer, scan_layers
from models.core.checks import COMPUTE
from models.core.layers import embed_tokens, fold_in_each, linear, rms_norm
from models.core.spec import LazyLogits, Outputs, Place, flatten, unflatten, unsharded
from models.core.types import Cache, Inputs, Params, Sums, Tree, Variables

StackStats = dict[str, PyTree]  # of routers, by stack of layers, [L ...]; None for a stack without a router
Norm = Callable[[Array, Any, Any], Array]  # (x [... D], its parameters, config) -> x, normalised over D


def rms(x: Float[Array, "*b d"], p: Params | None, c: Decoder) -> Float[Array, "*b d"]:
    """RMSNorm over the last dim; without a scale if `p` is None."""
    return rms_norm(x, None if p is None else p["scale"], c.eps)


@dataclass(frozen=True)
class LayerContext:
    """The inputs of a layer other than the residual stream and its parameters."""

    config: Decoder
    view: CacheView
    ropes: Mapping[str, Rope]  # by kind of layer
    norm_by: Norm
    backend: str  # of attention
    row_keys: Array | None  # one PRNG key per row, [B]; None disables dropout
    place: Place
    layer: Layer
    index: Array  # of the layer among all layers, []
    cache: Cache | None  # of the layer: name -> [B S ...]; None without a cache

    @property
    def mask(self) -> AttentionMask:
        """The attention mask of the layer."""
        return self.view.masks[self.layer.kind]

    @property
    def keys(self) -> Array | None:
        """The layer's PRNG keys, one per row, [B]."""
        return fold_in_each(self.row_keys, self.index)

    def norm(self, x: Float[Array, "*b d"], p: Params | None) -> Float[Array, "*b d"]:
        """The family's norm over the last dim."""
        return self.norm_by(x, p, self.config)

    def rotate(self, x: Float[Array, "b t n h"]) -> Float[Array, "b t n h"]:
        """Queries or keys with rotary positions: [B T N H] -> [B T N H]."""
        return apply_rope(x, self.view.position, *self.ropes[self.layer.kind])


# (x [B T D], the layer's parameters, config, context) -> x, the layer's new cache, its router's statistics or None
Block = Callable[[Array, Params, Any, LayerContext], tuple[Array, Cache | None, PyTree]]


def self_attention(
    x: Float[Array, "b t d"], p: Params, c: GQADecoder, context: LayerContext, sinks: Float[Array, " n"] | None = None
) -> tuple[Float[Array, "b t d"], Cache | None]:
    """Grouped-query attention with rotary positions: x [B T D] -> [B T D], and the layer's new cache.

    Queries and keys are normalised if the layer has a `q_norm` and a `k_norm`. `sinks` are those of `attention`.
    """
    q, k, v = qkv_projection(x, p, context.place)
    if "q_norm" in p:
        q, k = context.norm(q, p["q_norm"]), context.norm(k, p["k_norm"])
    return attend(context.rotate(q), context.rotate(k), v, p, c, context, sinks)


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    p: Params,
    c: GQADecoder,
    context: LayerContext,
    sinks: Float[Array, " n"] | None = None,
) -> tuple[Float[Array, "b t d"], Cache | None]:
    """Attention over the cached tokens and these, and the output projection: -> [B T D], the layer's new cache."""
    kv, cache = context.view.append_kv(context.layer.kind, context.cache, k=k, v=v)
    a = dot_product_attention(q, kv["k"], kv["v"], c, context, sinks)
    return linear("btnh,nhd->btd", a, p["out"], context.place("batch seq width")), cache


def dot_product_attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k w"],
    c: Decoder,
    context: LayerContext,
    sinks: Float[Array, " n"] | None = None,
) -> Float[Array, "b t n w"]:
    """Attention with the layer's mask and the config's scale, soft cap, dropout and backend."""
    return attention(
        q,
        k,
        v,
        context.mask,
        scale=c.attention_scale,
        backend=context.backend,
        dropout_rate=c.dropout,
        keys=context.keys,
        logit_softcap=c.attn_logit_softcap,
        sinks=sinks,
        place=context.place,
    )


@dataclass(frozen=True)
class Hidden:
    """The last hidden states of a forward pass, with the new cache and the routers' statistics."""

    x: Array  # normalised, [B T D]
    cache: Cache | None  # after the pass
    router_stats: StackStats
    context: Callable[[Layer, Array, Cache | None], LayerContext]  # of a layer, by its index and its cache


def run_layers(
    block: Block,
    variables: Variables,
    inputs: Inputs,
    c: Decoder,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: Cache | None = None,
    place: Place = unsharded,
    norm: Norm = rms,
) -> Hidden:
    """Embed tokens [B T] (or take embeds [B T D]), run the layers, normalise: -> hidden states [B T D].

    Raises UsageError for more tokens than the context has.
    """
    p = variables["params"]
    stream = place("batch seq width")
    view = open_cache(c, inputs, cache, place)
    backend = c.attention if cache is None else "reference"
    context = partial(LayerContext, c, view, c.ropes, norm, backend, key if train else None, place)

    def run(layer: Layer, x: Array, p: Params, index: Array, own: Cache | None) -> tuple[Array, Cache | None, PyTree]:
        return block(x, p, c, context(layer, index, own))

    x = embed_tokens(p["embed"]["token"], inputs, stream).astype(COMPUTE[c.compute])
    x = x if c.embed_scale == 1 else x * jnp.asarray(c.embed_scale, x.dtype)
    blocks = layer_parameters(variables)
    stacks = {"blocks": blocks} if {layer.stack for layer in c.layers} == {"blocks"} else blocks
    x, caches, stats = scan_layers(run, c.layers, x, stacks, view.layer_caches, remat=c.remat, scan=c.scan)
    x, new = view.finish(norm(x, p["norm"], c), caches)
    return Hidden(x, new, stats, context)


def layer_parameters(variables: Variables, name: str = "blocks") -> Tree:
    """Parameters and statistics of layers, in one tree."""
    stats = variables.get("stats", {}).get(name, {})
    return unflatten(flatten(variables["params"][name]) | flatten(stats))


def head(x: Float[Array, "b t d"], params: Params, c: Decoder) -> LazyLogits:
    """Next-token logits of normalised hidden states."""
    table = params["embed"]["token"] if c.tied else params["head"]
    return LazyLogits(x * c.logit_scale if c.logit_scale != 1 else x, table, c.vocab, softcap=c.final_logit_softcap)


def keep_inputs(inputs: Inputs, c: Decoder, cache: Cache | None) -> Inputs:
    """The inputs as they are."""
    return inputs


def no_router_outputs(router_stats: StackStats, c: Decoder) -> tuple[Sums, Sums]:
    """No metrics and no losses: of a decoder without experts."""
    return {}, {}


def forward(
    block: Block,
    variables: Variables,
    inputs: Inputs,
    c: Decoder,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: Cache | None = None,
    place: Place = unsharded,
    norm: Norm = rms,
    mask_inputs: Callable[[Inputs, Any, Cache | None], Inputs] = keep_inputs,
    router_outputs: Callable[[StackStats, Any], tuple[Sums, Sums]] = no_router_outputs,
) -> Outputs:
    """Next-token logits, float32, masked beyond the vocabulary: tokens [B T] -> [B T V].

    `key` is one PRNG key per row, [B]; None disables dropout. Optional inputs: position [B T], below 0 where a token is
    padding; segment [B T] (tokens attend to their own segment only; not with a cache). With a cache, the tokens follow
    those already in it. Families may give a `norm` over the width, `mask_inputs(inputs, c, cache)` to change the inputs
    first, and `router_outputs`, which returns metrics and auxiliary losses from the routers' statistics.

    Raises UsageError for more tokens than the context has.
    """
    inputs = mask_inputs(inputs, c, cache)
    last = run_layers(block, variables, inputs, c, train=train, key=key, cache=cache, place=place, norm=norm)
    metrics, aux_losses = router_outputs(last.router_stats, c)
    return Outputs(
        head(last.x, variables["params"], c),
        stats=variables.get("stats"),
        cache=last.cache,
        metrics=metrics,
        aux_losses=aux_losses,
    )
