"""BERT: an encoder of post-norm blocks with bidirectional attention.

Legend: B batch, T time, V padded vocabulary, D width, L depth, N heads, H head width, F hidden, C classes.
Source: Devlin et al. 2019, arXiv:1810.04805, section 3 and appendix A; Wang et al. 2020, arXiv:2002.10957 (MiniLM);
Reimers, Gurevych 2019, arXiv:1908.10084, section 3 (a sentence is the mean of its tokens). The hidden layer of the
masked-language head, which the paper does not mention, is that of the released code.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float

from models.blocks.attention.attention import attention
from models.blocks.attention.mask import PAD_POSITION, AttentionMask
from models.blocks.transformer_layers import TransformerConfig, attention_specs, mlp, mlp_specs
from models.core.checks import COMPUTE, at_least, one_of, positive, probability, refuse
from models.core.fence import fence
from models.core.intermediates import sow
from models.core.layers import (
    ACTIVATIONS,
    dense,
    dropout,
    embed,
    embed_tokens,
    fold_in_each,
    layer_norm,
    linear,
    linear_specs,
    norm_specs,
    reshard,
    sequence_shape,
)
from models.core.loop import scan_blocks
from models.core.spec import LazyLogits, Outputs, Place, Spec, normal, round_up, unsharded, zeros
from models.core.types import Array, Fields, Inputs, Params, Specs, Variables

TRAITS = frozenset({"encoder"})
INPUT = "tokens"
READS = (("embeds", "tokens"), ("mask", "token_type", "position"))
HEADS = ("none", "mlm", "classes")
POOLS = ("none", "first", "mean")
ZERO_GRAD = {"blocks/k/bias": "adds one number to all scores of a query, which the softmax removes"}

SIZES: dict[str, Fields] = {
    "bert_base": dict(width=768, depth=12, heads=12),
    "bert_large": dict(width=1024, depth=24, heads=16),
    "bert_base_cased": dict(vocab=28996, width=768, depth=12, heads=12),
    "bert_large_cased": dict(vocab=28996, width=1024, depth=24, heads=16),
    "minilm_l6": dict(width=384, depth=6, heads=12),
    "minilm_l12": dict(width=384, depth=12, heads=12),
}


@dataclass(frozen=True, kw_only=True)
class Config(TransformerConfig):
    """Shape and options of a BERT."""

    vocab: int = 30522  # tokens
    vocab_multiple: int = 128  # the table is padded to a multiple of it
    context: int = 512  # longest sequence, tokens
    types: int = 2  # token types: first and second text
    head: str = "none"  # the output: vectors, logits of every token (mlm), or logits of classes
    pool: str = "none"  # the vector: of each token, of the first token, or the mean of the tokens
    pooler: bool = True  # a layer on the first token's vector, if pool is first
    classes: int = 2
    dropout_attention: float | None = None  # on the attention weights; None is `dropout`
    tied: bool = True  # the head of mlm is the token embedding
    eps: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "vocab", "vocab_multiple", "context", "types", "classes")
        probability(self, "dropout_attention")
        one_of(self, head=HEADS, pool=POOLS)
        if self.head == "mlm" and self.pool != "none":
            refuse(self, "pool", "'none' for head='mlm'")
        if self.head == "classes" and self.pool == "none":
            refuse(self, "pool", "'first' or 'mean' for head='classes'")


def traits(c: Config) -> frozenset[str]:
    """The traits of a Config: an encoder, and the output kind of its head."""
    return TRAITS | {"mlm": {"language_model"}, "classes": {"classifier"}}.get(c.head, set())


def specs(c: Config) -> Specs:
    """Specs of the parameters."""
    L, D = c.depth, c.width
    V = round_up(c.vocab, c.vocab_multiple)
    init = normal(0.02)
    params: Specs = {
        "embed": {
            "token": Spec((V, D), "vocab embed", init),
            "position": Spec((c.context, D), "time embed", init),
            "type": Spec((c.types, D), "time embed", init),
            "norm": norm_specs(D),
        },
        "blocks": {
            **attention_specs(c, L, init),
            "norm1": norm_specs(D, (L,)),
            **mlp_specs(c, L, init, init),
            "norm2": norm_specs(D, (L,)),
        },
    }
    if c.pooler:
        params["pooler"] = linear_specs(D, D, "embed width", init)
    if c.head == "classes":
        params["head"] = linear_specs(D, c.classes, "embed classes", init, "classes")
    if c.head == "mlm":
        params["head"] = {**linear_specs(D, D, "embed width", init), "norm": norm_specs(D)}
        params["head"]["vocab"] = {"bias": Spec((V,), "vocab", zeros)}
        if not c.tied:
            params["head"]["vocab"]["kernel"] = Spec((V, D), "vocab embed", init, fan_in="embed")
    return {"params": params}


def apply(
    variables: Variables,
    inputs: Inputs,
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: None = None,
    place: Place = unsharded,
) -> Outputs:
    """Vectors or logits by `head` and `pool`, float32: tokens [B T] -> [B T D], [B D], [B C], or [B T V] for mlm.

    `key` is one PRNG key per row, [B]; None disables dropout. Optional inputs: mask [B T], 0 where a token is padding;
    token_type [B T], below `types`; position [B T].
    """
    p = variables["params"]
    keys = key if train else None
    B, T = sequence_shape(inputs)
    stream = place("batch seq width")
    at_least(c, "context", T, f"the {T} tokens of the input")
    now = jnp.arange(T)[None]
    mask = reshard(inputs.get("mask", jnp.ones((B, T))), place("batch query"))
    visible = AttentionMask(now, jnp.where(mask > 0, now, PAD_POSITION), causal=False, contiguous="mask" not in inputs)
    position = inputs.get("position", now)

    x = embed_tokens(p["embed"]["token"], inputs, stream)
    x = x + embed(p["embed"]["position"], position, stream if position.shape[0] > 1 else place("one seq width"))
    x = x + embed(p["embed"]["type"], inputs.get("token_type", jnp.zeros((B, T), jnp.int32)), stream)
    x = layer_norm(x.astype(COMPUTE[c.compute]), p["embed"]["norm"], c.eps)
    x = dropout(x, keys, c.dropout, "embed", stream)

    def block(x: Array, layer: tuple[Params, Array]) -> tuple[Array, None]:
        p, index = layer
        own = fold_in_each(keys, index)
        q, k, v = (linear("btd,dnh->btnh", x, p[n], place("batch seq heads head_dim")) for n in ("q", "k", "v"))
        rate = c.dropout if c.dropout_attention is None else c.dropout_attention
        scale = c.head_width**-0.5
        a = attention(q, k, v, visible, scale=scale, backend=c.attention, dropout_rate=rate, keys=own, place=place)
        a = dropout(linear("btnh,nhd->btd", a, p["out"], stream), own, c.dropout, "attention_out", stream)
        x = fence(layer_norm(x + a, p["norm1"], c.eps))
        h = mlp(x, p, c.activation, place("batch seq mlp"), stream)
        x = fence(layer_norm(x + dropout(h, own, c.dropout, "mlp_out", stream), p["norm2"], c.eps))
        sow("residual", x)
        return x, None

    layers = (p["blocks"], jnp.arange(c.depth))
    x, _ = scan_blocks(block, x, layers, c.depth, remat=c.remat, scan=c.scan)
    return Outputs(output(x, p, mask, keys, c, place))


def output(
    x: Array, p: Params, mask: Array, keys: Array | None, c: Config, place: Place
) -> LazyLogits | Float[Array, "b *t d"]:
    """The network's output by `head` and `pool`: hidden states [B T D], mask [B T] -> as `apply`."""
    if c.head == "mlm":
        h = linear("btd,de->bte", x, p["head"], place("batch seq width"))
        h = layer_norm(ACTIVATIONS[c.activation](h), p["head"]["norm"], c.eps)
        vocab = p["head"]["vocab"]
        table = p["embed"]["token"] if c.tied else vocab["kernel"]
        return LazyLogits(h, table, c.vocab, vocab["bias"])
    if c.pool == "first":
        x = reshard(x, place("batch query width"))[:, 0]
        x = jnp.tanh(dense(x, p["pooler"], place("batch width"))) if c.pooler else x
    elif c.pool == "mean":
        total = jnp.einsum("btd,bt->bd", x, mask.astype(x.dtype), out_sharding=place("batch width"))
        x = total / jnp.maximum(jnp.sum(mask, 1, keepdims=True), 1).astype(x.dtype)
    if c.head == "classes":
        x = dropout(x, keys, c.dropout, "pooled", place("batch width"))
        return dense(x, p["head"], place("batch classes"), jnp.float32)
    return x.astype(jnp.float32)
