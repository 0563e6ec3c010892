"""GPT-2: a decoder of pre-norm Transformer blocks with learned positions and tied embeddings.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N heads, H = D/N, F = 4D.
Source: Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3; initial values as in
the released code (openai/gpt-2, src/model.py), residual projections by 1/sqrt(2L) as in the paper.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from models.blocks.attention.attention import attention
from models.blocks.decoder.kv_cache import AttentionSpan, cache_specs, open_cache
from models.blocks.decoder.stack import Layer, scan_layers
from models.blocks.transformer_layers import TransformerConfig, mlp, mlp_specs
from models.core.checks import COMPUTE, at_least, positive, probability
from models.core.fence import fence
from models.core.layers import (
    add_bias,
    drop_path,
    dropout,
    einsum,
    embed,
    embed_tokens,
    fold_in_each,
    layer_norm,
    linear,
    norm_specs,
    sequence_shape,
)
from models.core.spec import LazyLogits, Outputs, Place, Spec, normal, round_up, unsharded, zeros
from models.core.types import Array, Cache, Fields, Inputs, Params, Specs, Variables

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}

SIZES: dict[str, Fields] = {
    "gpt2": dict(width=768, depth=12, heads=12),
    "gpt2_medium": dict(width=1024, depth=24, heads=16),
    "gpt2_large": dict(width=1280, depth=36, heads=20),
    "gpt2_xl": dict(width=1600, depth=48, heads=25),
}


@dataclass(frozen=True, kw_only=True)
class Config(TransformerConfig):
    """Shape and options of a GPT; `dropout` applies to each of the three sites whose own rate is None."""

    vocab: int = 50257  # tokens
    vocab_multiple: int = 128  # the embedding is padded to a multiple of it
    context: int = 1024  # longest sequence, tokens
    activation: str = "gelu_tanh"
    dropout_embed: float | None = None  # rate on the embeddings
    dropout_attention: float | None = None  # rate on the attention weights
    dropout_residual: float | None = None  # rate on the output of each branch
    drop_path: float = 0.0  # probability of dropping the last block's branches; grows linearly with depth
    scale_by_layer_index: bool = False  # divide the scores of layer i, counted from 1, by i
    tied: bool = True  # the output head is the token embedding

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "vocab", "vocab_multiple", "context")
        probability(self, "dropout_embed", "dropout_attention", "dropout_residual", "drop_path")


def specs(c: Config) -> Specs:
    """Specs of the parameters."""
    L, D, N, H = c.depth, c.width, c.heads, c.head_width
    V = round_up(c.vocab, c.vocab_multiple)
    residual = normal(0.02 / (2 * L) ** 0.5)
    params: Specs = {
        "embed": {
            "token": Spec((V, D), "vocab embed", normal(0.02)),
            "position": Spec((c.context, D), "time embed", normal(0.01)),
        },
        "blocks": {
            "norm1": norm_specs(D, (L,)),
            "qkv": {
                "kernel": Spec((L, 3, D, N, H), "layers qkv embed heads head_dim", normal(0.02), fan_in="embed"),
                "bias": Spec((L, 3, N, H), "layers qkv heads head_dim", zeros),
            },
            "out": {
                "kernel": Spec((L, N, H, D), "layers heads head_dim embed", residual, fan_in="heads head_dim"),
                "bias": Spec((L, D), "layers norm", zeros),
            },
            "norm2": norm_specs(D, (L,)),
            **mlp_specs(c, L, normal(0.02), residual),
        },
        "norm": norm_specs(D),
    }
    if not c.tied:
        params["head"] = Spec((V, D), "vocab embed", normal(0.02), fan_in="embed")
    return {"params": params}


SPANS = {"full": AttentionSpan()}


def cache(c: Config, batch: int, length: int) -> Specs:
    """Specs of a key-value cache for `length` tokens: k v [L B S N H]."""
    at_least(c, "context", length, f"the cache's length {length}")
    token = dict.fromkeys(("k", "v"), ("kv_heads head_dim", (c.heads, c.head_width)))
    return cache_specs(SPANS, {"full": c.depth}, {"full": token}, batch, length, c.compute)


def rate(c: Config, site: str) -> float:
    """The dropout rate of a site: embed, attention or residual."""
    own = getattr(c, f"dropout_{site}")
    return c.dropout if own is None else own


def apply(
    variables: Variables,
    inputs: Inputs,
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: Cache | None = None,
    place: Place = unsharded,
) -> Outputs:
    """Next-token logits, float32, masked beyond the vocabulary: tokens [B T] -> [B T V].

    `key` is one PRNG key per row, [B]; None disables dropout. Optional inputs: position [B T], below 0 where a token is
    padding; segment [B T] (tokens attend to their own segment only; not with a cache). With a cache, the tokens follow
    those already in it.
    """
    p = variables["params"]
    keys = key if train else None
    stream = place("batch seq width")
    _, T = sequence_shape(inputs)
    at_least(c, "context", T, f"the {T} tokens of the input")
    view = open_cache(inputs, SPANS, cache, place)
    backend = c.attention if cache is None else "reference"

    x = embed_tokens(p["embed"]["token"], inputs, stream)
    over = stream if view.position.shape[0] > 1 else place("one seq width")
    x = x + embed(p["embed"]["position"], jnp.maximum(view.position, 0), over)
    x = dropout(x.astype(COMPUTE[c.compute]), keys, rate(c, "embed"), "embed", stream)

    def branch(x: Array, keys: Array | None, index: Array, site: str) -> Array:
        x = dropout(x, keys, rate(c, "residual"), site, stream)
        return drop_path(x, keys, c.drop_path * (index + 1) / c.depth, f"{site}_path") if c.drop_path else x

    def block(layer: Layer, x: Array, p: Params, index: Array, cache: Cache | None) -> tuple[Array, Cache | None, None]:
        own = fold_in_each(keys, index)
        h = layer_norm(x, p["norm1"], c.eps)
        kernels, biases = p["qkv"]["kernel"], p["qkv"]["bias"]
        over = place("batch seq heads head_dim")
        q, k, v = (add_bias(einsum("btd,dnh->btnh", h, kernels[i], over), biases[i]) for i in range(3))
        kv, cache = view.append_kv(layer.kind, cache, k=k, v=v)
        scale = c.head_width**-0.5 / (index + 1 if c.scale_by_layer_index else 1)
        drop = rate(c, "attention")
        k, v = kv["k"], kv["v"]
        mask = view.masks[layer.kind]
        a = attention(q, k, v, mask, scale=scale, backend=backend, dropout_rate=drop, keys=own, place=place)
        x = fence(x + branch(linear("btnh,nhd->btd", a, p["out"], stream), own, index, "attention_out"))

        h = mlp(layer_norm(x, p["norm2"], c.eps), p, c.activation, place("batch seq mlp"), stream)
        return x + branch(h, own, index, "mlp_out"), cache, None

    layers = (Layer("full"),) * c.depth
    blocks = {"blocks": p["blocks"]}
    x, caches, _ = scan_layers(block, layers, x, blocks, view.layer_caches, remat=c.remat, scan=c.scan)
    x, new_cache = view.finish(layer_norm(x, p["norm"], c.eps), caches)
    return Outputs(LazyLogits(x, p["embed"]["token"] if c.tied else p["head"], c.vocab), cache=new_cache)
