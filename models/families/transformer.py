"""The Transformer: an encoder of a source, and a decoder of tokens with cross-attention to it.

Legend: B batch, T time of tokens, S of the source, V padded vocabulary, D width, L depth, N heads, H head width,
F hidden.
Source: Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762. Norms before the branches as in Wang et al.
2019, arXiv:1906.01787. Biases, initial values (Glorot, Bengio 2010) and final norms, which the paper does not specify,
as in torch.nn.Transformer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float, Int, PyTree

from models.blocks.attention.attention import attention
from models.blocks.attention.mask import PAD_POSITION, AttentionMask
from models.blocks.decoder.kv_cache import AttentionSpan, cache_specs, open_cache
from models.blocks.encoder_memory import MASK, pad_to_capacity, source_inputs
from models.blocks.transformer_layers import TransformerConfig, attention_specs, mlp, mlp_specs
from models.core.checks import COMPUTE, at_least, one_of, positive, probability, refuse
from models.core.fence import fence
from models.core.intermediates import name_scope, sow
from models.core.layers import dropout, embed, fold_in_each, layer_norm, linear, norm_specs, reshard
from models.core.loop import scan_blocks
from models.core.spec import Initializer, LazyLogits, Outputs, Place, Spec, normal, round_up, uniform, unsharded, zeros
from models.core.types import Array, Cache, Fields, Inputs, Params, Specs, Variables

TRAITS = frozenset({"causal", "cached", "encoder_decoder"})
INPUT = "tokens"
READS = (("tokens",), ("source", "source_mask", "position", "segment"))
ZERO_GRAD = {
    f"{path}/k/bias": "adds one number to all scores of a query, which the softmax removes"
    for path in ("encoder/blocks/attention", "decoder/blocks/attention", "decoder/blocks/cross")
}
TIED = ("all", "decoder", "none")
POSITIONS = ("sinusoidal", "learned")
SPANS = {"full": AttentionSpan()}

SIZES: dict[str, Fields] = {
    "base": dict(width=512, depth=6, heads=8, hidden=2048, dropout=0.1),
    "big": dict(width=1024, depth=6, heads=16, hidden=4096, dropout=0.3),
}


@dataclass(frozen=True, kw_only=True)
class Config(TransformerConfig):
    """Shape and options of a Transformer; the paper's dropout is `dropout`, of embeddings and branch outputs."""

    vocab: int = 37000  # tokens
    source_vocab: int | None = None  # tokens of the source, if it has a table of its own; None is vocab
    vocab_multiple: int = 128  # the tables are padded to a multiple of it
    context: int = 512  # longest sequence on either side, tokens
    width: int = 512
    depth: int = 6  # layers of the encoder
    decoder_depth: int | None = None  # None is depth
    heads: int = 8
    activation: str = "relu"
    pre_norm: bool = False  # normalise the input of each branch, instead of the sum after it
    final_norm: bool | None = None  # after the last layer of encoder and decoder; None is pre_norm
    positions: str = "sinusoidal"
    tied: str = "all"  # one table for source, tokens and head (all), for tokens and head (decoder), or three (none)
    bias: bool = True  # of every product and normalisation
    scaled: bool = True  # embeddings are multiplied by sqrt(width)
    dropout_attention: float = 0.0  # on the attention weights
    dropout_hidden: float = 0.0  # inside the MLPs

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "vocab", "source_vocab", "vocab_multiple", "context", "decoder_depth")
        probability(self, "dropout_attention", "dropout_hidden")
        one_of(self, positions=POSITIONS, tied=TIED)
        if self.tied == "all" and self.source_vocab is not None:
            refuse(self, "source_vocab", "None for tied='all', one table for both sides")
        if self.positions == "sinusoidal" and self.width % 2:
            refuse(self, "width", "even for sinusoidal positions")

    @property
    def has_final_norm(self) -> bool:
        """Whether the outputs of encoder and decoder are normalised."""
        return self.pre_norm if self.final_norm is None else self.final_norm


def specs(c: Config) -> Specs:
    """Specs of the parameters."""
    D, F = c.width, c.feed_forward
    V = round_up(c.vocab, c.vocab_multiple)
    source_rows = round_up(c.source_vocab or c.vocab, c.vocab_multiple)
    table = normal(D**-0.5)

    def glorot(i: int, o: int) -> Initializer:
        return uniform((6 / (i + o)) ** 0.5)

    def blocks(L: int, attentions: tuple[str, ...]) -> Specs:
        norms = [f"norm{i + 1}" for i in range(len(attentions) + 1)]
        return {
            **{name: attention_specs(c, L, glorot(D, D), qkv_bias=c.bias, bias=c.bias) for name in attentions},
            **mlp_specs(c, L, glorot(D, F), glorot(F, D), c.bias),
            **{name: norm_specs(D, (L,), c.bias) for name in norms},
        }

    embed = {"token": Spec((V, D), "vocab embed", table)}
    params: Specs = {
        "embed": embed,
        "encoder": {"blocks": blocks(c.depth, ("attention",))},
        "decoder": {"blocks": blocks(c.decoder_depth or c.depth, ("attention", "cross"))},
    }
    if c.tied != "all":
        embed["source"] = Spec((source_rows, D), "vocab embed", table)
    if c.positions == "learned":
        embed |= dict.fromkeys(("position", "source_position"), Spec((c.context, D), "time embed", table))
    if c.tied == "none":
        params["head"] = Spec((V, D), "vocab embed", table, fan_in="embed")
    if c.has_final_norm:
        params["encoder"]["norm"], params["decoder"]["norm"] = (norm_specs(D, bias=c.bias) for _ in range(2))
    return {"params": params}


def cache(c: Config, batch: int, length: int, source: int | None = None) -> Specs:
    """Specs of a cache for `length` tokens and `source` source tokens: k and v [L B S N H] of both."""
    room = c.context if source is None else source
    at_least(c, "context", length, f"the cache's length {length}")
    at_least(c, "context", room, f"the cache's {room} source tokens")
    L = c.decoder_depth or c.depth
    N, H = c.heads, c.head_width
    token = dict.fromkeys("kv", ("kv_heads head_dim", (N, H)))
    memory = Spec((L, batch, room, N, H), "layers batch key kv_heads head_dim", zeros, dtype=c.compute)
    table = cache_specs(SPANS, {"full": L}, {"full": token}, batch, length, c.compute)
    return {**table, "memory": {"k": memory, "v": memory, MASK: Spec((batch, room), "batch key", zeros)}}


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
    """Next-token logits, float32, masked beyond the vocabulary: tokens [B T], source [B S] -> [B T V].

    `key` is one PRNG key per row, [B]; None disables dropout. Optional inputs: source_mask [B S], 0 where the source is
    padded at its end; position [B T], below 0 where a token is padding. With a cache, the tokens follow those already
    in it. The source is passed once; later calls without it attend to the cached source.

    Raises UsageError for inputs longer than the context or the cache, and if there is neither a source nor a cache.
    """
    p = variables["params"]
    x, new, _ = _decode(variables, inputs, c, key if train else None, cache, place)
    return Outputs(LazyLogits(x, p["head"] if c.tied == "none" else p["embed"]["token"], c.vocab), cache=new)


def alignment(variables: Variables, inputs: Inputs, c: Config) -> Float[Array, "b t s"]:
    """The attention weights of each token over the source: tokens [B T], source [B S] -> [B T S].

    The mean over the heads of the last layer.
    """
    _, _, weights = _decode(variables, inputs, c, None, None, unsharded, return_weights=True)
    assert weights is not None
    return weights


def sinusoids(position: Int[Array, "b t"], width: int) -> Float[Array, "b t d"]:
    """Sines and cosines of positions, of wavelengths from 2 pi to 10,000 * 2 pi (section 3.5): [B T] -> [B T D]."""
    rates = jnp.exp(-math.log(10_000.0) * jnp.arange(0, width, 2) / width)
    angle = position[:, :, None] * rates[None, None]
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(*position.shape, width)


Block = Callable[[Array, PyTree], tuple[Array, PyTree]]  # x, (parameters, index, inputs) of a layer -> x, outputs


@dataclass(frozen=True)
class _Sublayers:
    """The sublayers of encoder and decoder; `x` is [B T D] throughout, `p` are the parameters of a sublayer."""

    c: Config
    place: Place
    backend: str

    def embed(self, tokens: Array, position: Array, table: Array, learned: Array | None, keys: Array | None) -> Array:
        """Embeddings of tokens [B T] at positions [B or 1, T]; `learned` is the table of learned positions, if any."""
        c = self.c
        stream = self.place("batch seq width")
        x = embed(table, tokens, stream)
        x = x * c.width**0.5 if c.scaled else x
        over = stream if position.shape[0] > 1 else self.place("one seq width")
        position = jnp.maximum(position, 0)
        x = x + (reshard(sinusoids(position, c.width), over) if learned is None else embed(learned, position, over))
        return dropout(x.astype(COMPUTE[c.compute]), keys, c.dropout, "embed", stream)

    def branch_input(self, x: Array, p: Params) -> Array:
        """The input of a branch: normalised with `pre_norm`."""
        return layer_norm(x, p, self.c.eps) if self.c.pre_norm else x

    def add_branch(self, x: Array, branch: Array, p: Params, keys: Array | None, site: str) -> Array:
        """The sum of x and a branch, normalised without `pre_norm`."""
        x = x + dropout(branch, keys, self.c.dropout, site, self.place("batch seq width"))
        return fence(x if self.c.pre_norm else layer_norm(x, p, self.c.eps))

    def project_heads(self, x: Array, p: Params) -> Array:
        """Queries, keys or values, [B T N H]."""
        return linear("btd,dnh->btnh", x, p, self.place("batch seq heads head_dim"))

    def attend(self, x: Array, k: Array, v: Array, p: Params, mask: AttentionMask, keys: Array | None) -> Array:
        """Attention of x to keys and values, before the output projection: [B T N W]."""
        q = self.project_heads(x, p["q"])
        scale = self.c.head_width**-0.5
        rate = self.c.dropout_attention
        backend, place = self.backend, self.place
        return attention(q, k, v, mask, scale=scale, backend=backend, dropout_rate=rate, keys=keys, place=place)

    def attention_branch(
        self, x: Array, k: Array, v: Array, p: Params, mask: AttentionMask, keys: Array | None
    ) -> Array:
        """The branch of self- or cross-attention."""
        a = self.attend(x, k, v, p, mask, keys)
        return linear("btnh,nhd->btd", a, p["out"], self.place("batch seq width"))

    def mean_weights(self, x: Array, k: Array, p: Params, mask: AttentionMask) -> Array:
        """The attention weights [B T S], their mean over the heads: the attention to one-hot values."""
        S = k.shape[1]
        one_hot = jnp.broadcast_to(jnp.eye(S, dtype=x.dtype)[None, :, None], (*k.shape[:3], S))
        return jnp.mean(self.attend(x, k, one_hot, p, mask, None).astype(jnp.float32), 2)

    def mlp(self, x: Array, p: Params, keys: Array | None) -> Array:
        """The branch of the MLP."""
        hidden, stream = self.place("batch seq mlp"), self.place("batch seq width")
        return mlp(x, p, self.c.activation, hidden, stream, keys, self.c.dropout_hidden)

    def run_layers(self, block: Block, x: Array, p: Params, depth: int, inputs: PyTree = None) -> tuple[Array, PyTree]:
        """All layers of a side, and its final norm -> x, and the stacked outputs of the layers."""
        xs = p["blocks"], jnp.arange(depth), inputs
        x, outputs = scan_blocks(block, x, xs, depth, remat=self.c.remat, scan=self.c.scan)
        return layer_norm(x, p["norm"], self.c.eps) if "norm" in p else x, outputs


def _encode(p: Params, source: Array, source_mask: Array | None, keys: Array | None, sublayers: _Sublayers) -> Array:
    """The encoder: source [B S], source_mask [B S] -> [B S D]."""
    c = sublayers.c
    S = source.shape[1]
    tables = p["embed"]
    at_least(c, "context", S, f"the {S} tokens of the source")
    position = jnp.arange(S)[None]
    key_position = _key_positions(source_mask, position)
    mask = AttentionMask(position, key_position, causal=False, contiguous=source_mask is None)

    def block(x: Array, layer: tuple[Params, Array, None]) -> tuple[Array, None]:
        p, index, _ = layer
        own = fold_in_each(keys, index)
        h = sublayers.branch_input(x, p["norm1"])
        k, v = (sublayers.project_heads(h, p["attention"][n]) for n in "kv")
        a = sublayers.attention_branch(h, k, v, p["attention"], mask, own)
        x = sublayers.add_branch(x, a, p["norm1"], own, "attention_out")
        h = sublayers.branch_input(x, p["norm2"])
        x = sublayers.add_branch(x, sublayers.mlp(h, p, own), p["norm2"], own, "mlp_out")
        sow("residual", x)
        return x, None

    table = tables.get("source", tables["token"])
    x = sublayers.embed(source, position, table, tables.get("source_position"), keys)
    return sublayers.run_layers(block, x, p["encoder"], c.depth)[0]


def _decode(
    variables: Variables,
    inputs: Inputs,
    c: Config,
    key: Array | None,
    cache: Cache | None,
    place: Place,
    return_weights: bool = False,
) -> tuple[Array, Cache | None, Array | None]:
    """The head's input [B T D], the new cache and, with `return_weights`, the alignment [B T S]."""
    p = variables["params"]
    tokens = inputs["tokens"]
    depth = c.decoder_depth or c.depth
    T = tokens.shape[1]
    backend = c.attention if cache is None and not return_weights else "reference"
    sublayers = _Sublayers(c, place, backend)
    at_least(c, "context", T, f"the {T} tokens of the input")
    encoder_keys, keys = (fold_in_each(key, jnp.asarray(side)) for side in range(2))
    time = open_cache(inputs, SPANS, cache, place)
    encoder_inputs = source_inputs(inputs, cache, place)
    if encoder_inputs is None:  # the cache holds the keys and values of the source
        assert cache is not None  # source_inputs needs either
        memory = None
        source_mask = cache["memory"][MASK]
    else:
        source, source_mask = encoder_inputs
        with name_scope("encoder"):
            memory = _encode(p, source, source_mask, encoder_keys, sublayers)
        memory = pad_to_capacity(memory, cache)
        source_mask = None if source_mask is None else pad_to_capacity(source_mask, cache)
    S = source_mask.shape[1] if memory is None else memory.shape[1]
    key_position = _key_positions(source_mask, jnp.arange(S)[None])
    mask = AttentionMask(jnp.arange(T)[None], key_position, causal=False, contiguous=source_mask is None)

    def block(x: Array, layer: tuple[Params, Array, PyTree]) -> tuple[Array, PyTree]:
        p, index, (entries, cross) = layer
        own, cross_keys = (fold_in_each(fold_in_each(keys, index), jnp.asarray(i)) for i in range(2))
        h = sublayers.branch_input(x, p["norm1"])
        kv = {n: sublayers.project_heads(h, p["attention"][n]) for n in "kv"}
        kv, entries = time.append_kv("full", entries, **kv)
        a = sublayers.attention_branch(h, kv["k"], kv["v"], p["attention"], time.masks["full"], own)
        x = sublayers.add_branch(x, a, p["norm1"], own, "attention_out")
        h = sublayers.branch_input(x, p["norm2"])
        cross = cross if memory is None else {n: sublayers.project_heads(memory, p["cross"][n]) for n in "kv"}
        with name_scope("cross"):
            a = sublayers.attention_branch(h, cross["k"], cross["v"], p["cross"], mask, cross_keys)
        x = sublayers.add_branch(x, a, p["norm2"], own, "cross_out")
        weights = sublayers.mean_weights(h, cross["k"], p["cross"], mask) if return_weights else None
        h = sublayers.branch_input(x, p["norm3"])
        x = sublayers.add_branch(x, sublayers.mlp(h, p, own), p["norm3"], own, "mlp_out")
        sow("residual", x)
        return x, (entries, None if cache is None else cross, weights)

    x = sublayers.embed(tokens, time.position, p["embed"]["token"], p["embed"].get("position"), keys)
    cached = (None, None) if cache is None else (cache["full"]["entries"], {n: cache["memory"][n] for n in "kv"})
    x, (entries, cross, weights) = sublayers.run_layers(block, x, p["decoder"], depth, cached)
    x, new = time.finish(x, {"full": entries})
    new = None if new is None else {**new, "memory": {**cross, MASK: source_mask}}
    return x, new, weights[-1] if return_weights else None


def _key_positions(mask: Array | None, position: Array) -> Array:
    """Positions of the keys, PAD_POSITION where the mask is 0."""
    return position if mask is None else jnp.where(mask > 0, position, PAD_POSITION)
