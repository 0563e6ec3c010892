"""Sequence to sequence: an LSTM encodes a source; another LSTM, perhaps with attention to the source, predicts tokens.

Legend: B batch, T time of tokens, S of the source, V padded vocabulary, E width of an embedding, D units of a layer (of
both directions together), L depth, R width of the readout, which is the head's input.
Source: Sutskever, Vinyals, Le 2014, arXiv:1409.3215 (attention_score = none); Bahdanau, Cho, Bengio 2015,
arXiv:1409.0473 (additive; our cell is an LSTM, and layers may be stacked); Luong, Pham, Manning 2015, arXiv:1508.04025
(dot, general). Each decoder layer starts from the last state of the encoder's layer, its two directions concatenated:
Bahdanau et al. start from a trained map of the backward one.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree

from errors import UsageError
from models.blocks.encoder_memory import MASK, pad_to_capacity, source_inputs
from models.blocks.recurrent import gather_params, layer_specs, layer_step, run_directions, state_specs, where_real
from models.core.checks import COMPUTE, one_of, positive, probability, refuse
from models.core.intermediates import name_scope, sow
from models.core.layers import MASK_VALUE, dropout, einsum, embed, linear, reshard
from models.core.spec import (
    Initializer,
    LazyLogits,
    Outputs,
    Place,
    Spec,
    lecun_normal,
    normal,
    round_up,
    uniform,
    unsharded,
    zeros,
)
from models.core.types import Array, Cache, Fields, Inputs, OutSharding, Params, Specs, Variables

TRAITS = frozenset({"causal", "cached", "encoder_decoder"})
INPUT = "tokens"
READS = (("tokens",), ("source", "source_mask", "position"))
ZERO_GRAD: dict[str, str] = {}
SIZES: dict[str, Fields] = {}
SCORES = ("none", "additive", "dot", "general")
TIED = ("all", "decoder", "none")
LUONG = ("dot", "general")


@dataclass(frozen=True)
class Config:
    """Shape of an encoder and a decoder, and the attention between them."""

    vocab: int = 8000  # tokens
    source_vocab: int | None = None  # tokens of the source, if it has a table of its own; None is vocab
    vocab_multiple: int = 128  # the tables are padded to a multiple of it
    context: int = 64  # tokens of either side; the network itself has no limit
    embed: int = 256
    width: int = 512  # units of a layer; two directions have half of them each
    depth: int = 1  # layers of the encoder, and of the decoder
    bidirectional: bool = True  # of the encoder
    reverse_source: bool = False  # the encoder reads the source backwards, as in Sutskever et al.
    attention_score: str = "general"  # of a decoder state and a source token
    score_width: int | None = None  # hidden units of an additive score; None is width
    input_feeding: bool = True  # the readout is an input of the next step, if the score is dot or general
    forget_bias: float = 0.0  # added to the input bias of the forget gates
    tied: str = "all"  # one table for source, tokens and head (all), for tokens and head (decoder), or three (none)
    dropout: float = 0.0  # probability: on embeddings, between layers and on the readout
    compute: str = "float32"

    def __post_init__(self) -> None:
        positive(self, "vocab", "source_vocab", "vocab_multiple", "context", "embed", "width", "depth")
        positive(self, "score_width")
        probability(self, "dropout")
        one_of(self, attention_score=SCORES, tied=TIED, compute=COMPUTE)
        if self.tied == "all" and self.source_vocab is not None:
            refuse(self, "source_vocab", "None for tied='all', one table for both sides")
        if self.attention_score != "additive" and self.score_width is not None:
            refuse(self, "score_width", "None unless attention_score is 'additive'")
        if self.bidirectional and self.width % 2:
            refuse(self, "width", "even for two directions")
        if self.bidirectional and self.reverse_source:
            refuse(self, "reverse_source", "False with bidirectional")

    @property
    def readout_width(self) -> int:
        """R: the width of the head's table, which is the embeddings' if tied."""
        return self.width if self.tied == "none" else self.embed

    @property
    def extra_width(self) -> int:
        """Decoder inputs beside the embedding: the attended source (additive), or the last readout (input feeding)."""
        return self.width if self.attention_score == "additive" else self.readout_width if self.feeds_readout else 0

    @property
    def feeds_readout(self) -> bool:
        """Whether the readout is an input of the next step."""
        return self.input_feeding and self.attention_score in LUONG


def directions(c: Config) -> tuple[str, ...]:
    """The names of the encoder's directions."""
    return ("forward", "backward") if c.bidirectional else ("backward",) if c.reverse_source else ("forward",)


def specs(c: Config) -> Specs:
    """Specs of the parameters."""
    E, D, R = c.embed, c.width, c.readout_width
    V, Vs = (round_up(n, c.vocab_multiple) for n in (c.vocab, c.source_vocab or c.vocab))

    def lstm(inputs: int, width: int) -> Specs:
        return layer_specs(
            inputs, width, "lstm", projection=None, bias=True, forget_bias=c.forget_bias, chrono_max=None, axis="embed"
        )

    def matrix(i: int, o: int, axes: str, init: Initializer = lecun_normal) -> dict[str, Spec]:
        return {"kernel": Spec((i, o), axes, init, fan_in=axes.split()[0])}

    def encoder(i: int) -> Specs:
        ways = directions(c)
        return {name: lstm(D if i else E, D // len(ways)) for name in ways}

    params: Specs = {
        "embed": {"token": Spec((V, E), "vocab embed", normal(0.1))},
        "encoder": {"cells": {str(i): encoder(i) for i in range(c.depth)}},
        "decoder": {"cells": {str(i): lstm(D if i else E + c.extra_width, D) for i in range(c.depth)}},
    }
    if c.tied != "all":
        params["embed"]["source"] = Spec((Vs, E), "vocab embed", normal(0.1))
    if c.tied == "none":
        params["head"] = Spec((V, R), "vocab embed", uniform(R**-0.5), fan_in="embed")
    if c.attention_score == "general":
        params["decoder"]["key"] = matrix(D, D, "embed width")
    if c.attention_score == "additive":
        A = c.score_width or D
        names = {"query": "embed mlp", "key": "embed mlp"}
        params["decoder"] |= {name: matrix(D, A, axes) for name, axes in names.items()}
        params["decoder"]["score"] = Spec((A,), "mlp", normal(A**-0.5))
    readout_inputs = {"none": D, "additive": D + E + D}.get(c.attention_score, D + D)
    if c.attention_score != "none" or R != D:
        params["decoder"]["read"] = matrix(
            readout_inputs, 2 * R if c.attention_score == "additive" else R, "embed width"
        )
    return {"params": params}


def cache(c: Config, batch: int, length: int, source: int | None = None) -> Specs:
    """Specs of the decoder's state, whose size does not depend on `length`, and of `source` tokens to attend to."""
    room = c.context if source is None else source
    memory = {MASK: Spec((batch, room), "batch key", zeros)}
    if c.attention_score != "none":
        memory["value"] = Spec((batch, room, c.width), "batch key width", zeros, dtype=c.compute)
    if c.attention_score == "general":
        memory["key"] = memory["value"]
    if c.attention_score == "additive":
        shape = (batch, room, c.score_width or c.width)
        memory["key"] = Spec(shape, "batch key mlp", zeros, dtype=c.compute)
    state: Specs = {"cells": {str(i): state_specs(batch, c.width, "lstm", None, c.compute) for i in range(c.depth)}}
    if c.feeds_readout:
        state["read"] = Spec((batch, c.readout_width), "batch width", zeros, dtype=c.compute)
    return {**state, "memory": memory}


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
    padding; position [B T], below 0 where a token is padding (its other values are not used). With a cache the tokens
    continue the cached ones. The source is passed once; later calls without it attend to the cached source.

    Raises UsageError if there is neither a source nor a cache, and for a source longer than the cache's capacity.
    """
    x, new, _ = _decode(variables, inputs, c, key if train else None, cache, place)
    p = variables["params"]
    return Outputs(LazyLogits(x, p["head"] if c.tied == "none" else p["embed"]["token"], c.vocab), cache=new)


def alignment(variables: Variables, inputs: Inputs, c: Config) -> Float[Array, "b t s"]:
    """The attention weights of each token over the source: tokens [B T], source [B S] -> [B T S].

    Raises UsageError for attention_score = 'none'.
    """
    if c.attention_score == "none":
        raise UsageError("seq2seq: attention_score = 'none' has no alignment; 'additive', 'dot' and 'general' have one")
    _, _, weights = _decode(variables, inputs, c, None, None, unsharded)
    assert weights is not None
    return weights


def _embed(table: Array, tokens: Array, c: Config, keys: Array | None, site: str, place: Place) -> Array:
    x = embed(table, tokens, place("batch time width")).astype(COMPUTE[c.compute])
    return dropout(x, keys, c.dropout, site, place("batch time width"))


def _encode(
    p: Params, source: Array, mask: Array | None, c: Config, keys: Array | None, place: Place
) -> tuple[Array, Cache]:
    """The encoder: source [B S], mask [B S] -> its outputs [B S D], and the initial state of the decoder."""
    x = _embed(p["embed"].get("source", p["embed"]["token"]), source, c, keys, "source_embed", place)
    states: Cache = {}
    for i in range(c.depth):
        x = dropout(x, keys, c.dropout, f"encoder{i}", place("batch time width")) if i else x
        x, lasts = run_directions(x, p["encoder"]["cells"][str(i)], directions(c), "lstm", None, mask, place)
        state = {}
        for part in ("h", "c"):
            state[part] = jnp.concatenate([reshard(last[part], place("batch width")) for last in lasts], -1)
        states[str(i)] = {part: reshard(value, place("batch mlp")) for part, value in state.items()}
    return x, states


def _make_memory(p: Params, x: Array, c: Config, place: Place) -> dict[str, Array]:
    """The encoder's outputs [B S D] -> values [B S D] and keys [B S ...]; for a dot product the keys are the values."""
    if c.attention_score == "none":
        return {}
    if c.attention_score == "dot":
        return {"value": x}
    over = place("batch key mlp") if c.attention_score == "additive" else place("batch key width")
    return {"value": x, "key": einsum("bsd,de->bse", x, p["key"]["kernel"], over)}


def _attend(h: Array, memory: dict[str, Array], p: Params, c: Config, place: Place) -> tuple[Array, Array]:
    """Attention of a decoder state to the source: h [B D] -> weighted mean of the values [B D], weights [B S]."""
    over = place("batch key")
    if c.attention_score == "additive":
        query = einsum("bd,da->ba", h, p["query"]["kernel"], place("batch mlp"))
        score = einsum("bsa,a->bs", jnp.tanh(memory["key"] + query[:, None]), p["score"], over)
    else:
        score = einsum("bd,bsd->bs", h, memory.get("key", memory["value"]), over)
    score = jnp.where(memory[MASK] > 0, score.astype(jnp.float32), MASK_VALUE)
    weights = jax.nn.softmax(score, -1)
    return einsum("bs,bsd->bd", weights.astype(h.dtype), memory["value"], place("batch width")), weights


def _readout(h: Array, y: Array, attended: Array | None, p: Params, c: Config, over: OutSharding) -> Array:
    """The head's input: top layer h [B ... D], embedding y [B ... E], attended source [B ... D] -> [B ... R].

    Source: Luong et al. 2015, eq. 5; Bahdanau et al. 2015, eq. 4 and, for the maxout layer, appendix A.2.2.
    """
    if "read" not in p:
        return h
    parts = [h]
    if attended is not None:
        parts = [h, y, attended] if c.attention_score == "additive" else [attended, h]
    x = jnp.concatenate(parts, -1)
    x = einsum("b...i,io->b...o", x, p["read"]["kernel"], over)
    if c.attention_score == "additive":
        return jnp.max(x.reshape(*x.shape[:-1], c.readout_width, 2), -1)
    return x if c.attention_score == "none" else jnp.tanh(x)


def _init_carry(
    variables: Variables, inputs: Inputs, c: Config, keys: Array | None, cache: Cache | None, place: Place
) -> tuple[Cache, dict[str, Array]]:
    """The decoder's initial state, and the memory to attend to: from the source, or without one from the cache."""
    p = variables["params"]
    encoder_inputs = source_inputs(inputs, cache, place)
    if encoder_inputs is None:
        assert cache is not None  # source_inputs needs either
        return {name: value for name, value in cache.items() if name != "memory"}, cache["memory"]
    source, mask = encoder_inputs
    with name_scope("encoder"):
        x, cells = _encode(p, source, mask, c, keys, place)
    state: Cache = {"cells": cells}
    if c.feeds_readout:
        state["read"] = reshard(jnp.zeros((len(source), c.readout_width), x.dtype), place("batch width"))
    mask = reshard(jnp.ones(source.shape), place("batch key")) if mask is None else mask
    memory = {**_make_memory(p["decoder"], x, c, place), MASK: mask}
    return state, {name: pad_to_capacity(value, cache) for name, value in memory.items()}


def _decode(
    variables: Variables, inputs: Inputs, c: Config, keys: Array | None, cache: Cache | None, place: Place
) -> tuple[Array, Cache | None, Array | None]:
    """The readout [B T R], the new cache, and the alignment [B T S] of a decoder with attention."""
    over_time = place("batch time width")
    at_step = place("batch width")
    gates = place("batch gates mlp")
    start, memory = _init_carry(variables, inputs, c, keys, cache, place)
    y = _embed(variables["params"]["embed"]["token"], inputs["tokens"], c, keys, "embed", place)
    ones = reshard(jnp.ones((*y.shape[:2], c.width), y.dtype), over_time)
    noise = [dropout(ones, keys, c.dropout, f"decoder{i}", over_time) for i in range(1, c.depth)]  # between layers
    real = reshard(inputs["position"] >= 0, place("batch time")).T if "position" in inputs else None
    p = gather_params(variables["params"]["decoder"], y)
    cells = [p["cells"][str(i)] for i in range(c.depth)]
    kernel = cells[0]["input"]["kernel"]  # its rows for embeddings are applied before the loop, to all times at once
    embed_rows = {**cells[0]["input"], "kernel": kernel[: c.embed]}
    x_gates = linear("bti,igh->btgh", y, embed_rows, place("batch time gates mlp"))

    def step(state: Cache, inputs: PyTree) -> tuple[Cache, PyTree]:
        x_gates, y, noise, real = inputs
        extra = state.get("read")
        attended = None
        weights = None
        if c.attention_score == "additive":
            h = reshard(state["cells"][str(c.depth - 1)]["h"], at_step)
            attended, weights = _attend(h, memory, p, c, place)
            extra = attended
        x_gates = x_gates if extra is None else x_gates + einsum("bi,igh->bgh", extra, kernel[c.embed :], gates)
        new: Cache = {"cells": {}}
        for i, cell in enumerate(cells):
            x_gates = linear("bi,igh->bgh", h * noise[i - 1], cell["input"], gates) if i else x_gates
            new["cells"][str(i)] = layer_step(x_gates, cell, "lstm", state["cells"][str(i)], place)
            h = reshard(new["cells"][str(i)]["h"], at_step)
        if c.attention_score in LUONG:
            attended, weights = _attend(h, memory, p, c, place)
        if c.feeds_readout:
            new["read"] = _readout(h, y, attended, p, c, at_step)
        return where_real(new, state, real), ((h, attended, new.get("read")), weights)

    times = jax.tree.map(lambda x: x.swapaxes(0, 1), (x_gates, y, noise))
    state, outputs = jax.lax.scan(step, start, (*times, real))
    (h, attended, readout), weights = jax.tree.map(lambda x: x.swapaxes(0, 1), outputs)
    sow("hidden", h)
    if weights is not None:
        sow("cross/attention_weights", weights)
    x = _readout(h, y, attended, p, c, over_time) if readout is None else readout
    x = dropout(reshard(x, over_time), keys, c.dropout, "read", over_time)
    return x, None if cache is None else {**state, "memory": memory}, weights
