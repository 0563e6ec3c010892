"""Sequence to sequence: an LSTM reads a source, another, which perhaps looks back at it, writes tokens.

Legend: B batch, T time of tokens, S of the source, V padded vocabulary, E width of an embedding, D units of a layer (of
both directions together), L depth, R width of what the head reads.
Source: Sutskever, Vinyals, Le 2014, arXiv:1409.3215 (attention_score = none); Bahdanau, Cho, Bengio 2015,
arXiv:1409.0473 (additive; our cell is an LSTM, and layers may be stacked); Luong, Pham, Manning 2015, arXiv:1508.04025
(dot, general). Each decoder layer starts from the last state of the encoder's layer, its two directions concatenated:
Bahdanau et al. start from a trained map of the backward one.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from errors import UsageError
from models.blocks.encoder_memory import MASK, pad_to_capacity, source_inputs
from models.blocks.recurrent import gather_params, layer_specs, layer_step, run_layer, state_specs, where_real
from models.core.checks import COMPUTE, require, require_choice
from models.core.layers import MASK_VALUE, dropout, einsum, embed, linear, reshard
from models.core.spec import Array, LazyLogits, Outputs, Place, Spec, lecun_normal, normal, uniform, unsharded, zeros

TRAITS = frozenset({"causal", "cached", "encoder_decoder"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}
SIZES: dict[str, dict[str, Any]] = {}
SCORES = ("none", "additive", "dot", "general")
TIED = ("all", "decoder", "none")
LUONG = ("dot", "general")


@dataclass(frozen=True)
class Config:
    """Shape of an encoder and a decoder, and how the one looks at the other."""

    vocab: int = 8000  # tokens
    source_vocab: int | None = None  # tokens of the source, where it has a table of its own; None is vocab
    vocab_multiple: int = 128  # the tables are padded to a multiple of it
    context: int = 64  # tokens of either side; the network itself knows no limit
    embed: int = 256
    width: int = 512  # units of a layer; two directions have half of them each
    depth: int = 1  # layers of the encoder, and of the decoder
    bidirectional: bool = True  # the encoder reads the source both ways
    reverse_source: bool = False  # it reads it from its end to its beginning, as Sutskever et al. have it
    attention_score: str = "general"  # how a token scores those of the source
    score_width: int | None = None  # hidden units of an additive score; None is width
    input_feeding: bool = True  # what the head has read comes in with the next token, where the score is dot or general
    forget_bias: float = 0.0  # added to the first bias of the forget gates
    tied: str = "all"  # one table for source, tokens and head (all), for tokens and head (decoder), or three (none)
    dropout: float = 0.0  # probability, on embeddings, between layers and on what the head reads
    compute: str = "float32"

    def __post_init__(self) -> None:
        require(self, "positive", "vocab", "source_vocab", "vocab_multiple", "context", "embed", "width", "depth")
        require(self, "positive", "score_width")
        require(self, "probability", "dropout")
        require_choice(self, attention_score=SCORES, tied=TIED, compute=COMPUTE)
        require(self, "None for tied='all', one table for both sides", "source_vocab", holds=self.tied != "all")
        require(
            self, "None unless attention_score is 'additive'", "score_width", holds=self.attention_score == "additive"
        )
        if self.bidirectional:
            require(self, "even for two directions", "width", test=lambda n: n % 2 == 0)
            require(self, "False where it is read both ways", "reverse_source", test=lambda on: not on)

    @property
    def readout_width(self) -> int:
        """R: that of the head's table, which a tied one shares with the embeddings."""
        return self.width if self.tied == "none" else self.embed

    @property
    def context_width(self) -> int:
        """Units that come into the decoder beside an embedding: a mean of the source, or what the head has read."""
        return self.width if self.attention_score == "additive" else self.readout_width if self.feeds_readout else 0

    @property
    def feeds_readout(self) -> bool:
        """Whether what the head has read comes in again."""
        return self.input_feeding and self.attention_score in LUONG


def directions(c: Config) -> tuple[str, ...]:
    """The names of the encoder's directions."""
    return ("forward", "backward") if c.bidirectional else ("backward",) if c.reverse_source else ("forward",)


def specs(c: Config) -> dict[str, Any]:
    """The table of parameters."""
    E, D, R = c.embed, c.width, c.readout_width
    V, Vs = (-(-n // c.vocab_multiple) * c.vocab_multiple for n in (c.vocab, c.source_vocab or c.vocab))
    how: dict[str, Any] = dict(projection=None, bias=True, forget_bias=c.forget_bias, chrono_max=None, axis="embed")

    def matrix(i: int, o: int, axes: str, law: Any = lecun_normal) -> dict[str, Spec]:
        return {"kernel": Spec((i, o), axes, law, fan_in=axes.split()[0])}

    def encoder(i: int) -> dict[str, Any]:
        ways = directions(c)
        return {name: layer_specs(D if i else E, D // len(ways), "lstm", **how) for name in ways}

    params: dict[str, Any] = {
        "embed": {"token": Spec((V, E), "vocab embed", normal(0.1))},
        "encoder": {"cells": {str(i): encoder(i) for i in range(c.depth)}},
        "decoder": {
            "cells": {str(i): layer_specs(D if i else E + c.context_width, D, "lstm", **how) for i in range(c.depth)}
        },
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


def cache(c: Config, batch: int, length: int, source: int | None = None) -> dict[str, Any]:
    """The table of the decoder's state, for no matter how many tokens, and of `source` tokens that it looks at."""
    room = c.context if source is None else source
    memory = {MASK: Spec((batch, room), "batch key", zeros)}
    if c.attention_score != "none":
        memory["value"] = Spec((batch, room, c.width), "batch key width", zeros, dtype=c.compute)
    if c.attention_score == "general":
        memory["key"] = memory["value"]
    if c.attention_score == "additive":
        shape = (batch, room, c.score_width or c.width)
        memory["key"] = Spec(shape, "batch key mlp", zeros, dtype=c.compute)
    state: dict[str, Any] = {
        "cells": {str(i): state_specs(batch, c.width, "lstm", None, c.compute) for i in range(c.depth)}
    }
    if c.feeds_readout:
        state["read"] = Spec((batch, c.readout_width), "batch width", zeros, dtype=c.compute)
    return {**state, "memory": memory}


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
    """Next-token logits, float32, masked beyond the vocabulary: tokens [B T], source [B S] -> [B T V].

    `key` is one PRNG key a row, [B]; None draws nothing. Optional inputs: source_mask [B S], 0 where the source is
    padding; position [B T], of which only counts that it is below 0 where a token is padding. With a cache the tokens
    follow those that it has seen, and a source is read once: without one they look at what it holds of the last.

    Raises UsageError where there is no source, and for one that the cache has no room for.
    """
    x, new, _ = _decode(variables, inputs, c, key if train else None, cache, place)
    p = variables["params"]
    return Outputs(LazyLogits(x, p["head"] if c.tied == "none" else p["embed"]["token"], c.vocab), cache=new)


def alignment(variables: Any, inputs: dict[str, Array], c: Config) -> Float[Array, "b t s"]:
    """The share of attention that each token pays to each of the source: tokens [B T], source [B S] -> [B T S].

    Raises UsageError where a decoder does not look at the source.
    """
    if c.attention_score == "none":
        raise UsageError(
            "seq2seq: attention_score = 'none' looks at no token of the source; 'additive', 'dot', 'general' do"
        )
    shares: Array = _decode(variables, inputs, c, None, None, unsharded)[2]
    return shares


def _embed(table: Array, tokens: Array, c: Config, keys: Array | None, site: str, place: Place) -> Array:
    x = embed(table, tokens, place("batch time width")).astype(COMPUTE[c.compute])
    return dropout(x, keys, c.dropout, site, place("batch time width"))


def _encode(
    p: Any, source: Array, mask: Array | None, c: Config, keys: Array | None, place: Place
) -> tuple[Array, dict[str, Any]]:
    """What the encoder makes of a source [B S], mask [B S] -> [B S D], and the state that the decoder begins with."""
    x = _embed(p["embed"].get("source", p["embed"]["token"]), source, c, keys, "source_embed", place)
    states: dict[str, Any] = {}
    for i in range(c.depth):
        layer = p["encoder"]["cells"][str(i)]
        x = dropout(x, keys, c.dropout, f"encoder{i}", place("batch time width")) if i else x
        runs = [
            run_layer(x, layer[name], "lstm", None, mask, reverse=name == "backward", place=place)
            for name in directions(c)
        ]
        x = jnp.concatenate([y for y, _ in runs], -1)
        both = {
            n: jnp.concatenate([reshard(state[n], place("batch width")) for _, state in runs], -1) for n in ("h", "c")
        }
        states[str(i)] = {n: reshard(state, place("batch mlp")) for n, state in both.items()}
    return x, states


def _make_memory(p: Any, x: Array, c: Config, place: Place) -> dict[str, Array]:
    """What the decoder looks at: [B S D] -> keys [B S ...] (its values in a dot product), and values [B S D]."""
    if c.attention_score == "none":
        return {}
    if c.attention_score == "dot":
        return {"value": x}
    over = place("batch key mlp") if c.attention_score == "additive" else place("batch key width")
    return {"value": x, "key": einsum("bsd,de->bse", x, p["key"]["kernel"], over)}


def _attend(h: Array, memory: dict[str, Array], p: Any, c: Config, place: Place) -> tuple[Array, Array]:
    """The mean of the source as a state sees it, and each token's share of it: h [B D] -> [B D], [B S]."""
    over = place("batch key")
    if c.attention_score == "additive":
        query = einsum("bd,da->ba", h, p["query"]["kernel"], place("batch mlp"))
        score = einsum("bsa,a->bs", jnp.tanh(memory["key"] + query[:, None]), p["score"], over)
    else:
        score = einsum("bd,bsd->bs", h, memory.get("key", memory["value"]), over)
    score = jnp.where(memory[MASK] > 0, score.astype(jnp.float32), MASK_VALUE)
    share = jax.nn.softmax(score, -1)
    return einsum("bs,bsd->bd", share.astype(h.dtype), memory["value"], place("batch width")), share


def _readout(h: Array, y: Array, seen: Array | None, p: Any, c: Config, over: Any) -> Array:
    """What the head reads: the top layer's h [B ... D], the embedding y [B ... E], the source as seen -> [B ... R].

    Source: Luong et al. 2015, eq. 5; Bahdanau et al. 2015, eq. 4 and, for the maxout layer, appendix A.2.2.
    """
    if "read" not in p:
        return h
    parts: dict[str, list[Any]] = {"none": [h], "additive": [h, y, seen]}
    x = jnp.concatenate(parts.get(c.attention_score, [seen, h]), -1)
    x = einsum("b...i,io->b...o", x, p["read"]["kernel"], over)
    if c.attention_score == "additive":
        return jnp.max(x.reshape(*x.shape[:-1], c.readout_width, 2), -1)
    return x if c.attention_score == "none" else jnp.tanh(x)


def _init_carry(
    variables: Any, inputs: dict[str, Array], c: Config, keys: Array | None, cache: Any, place: Place
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The state that the decoder goes on from, and what it looks at: of the source, or without one of the cache."""
    p, given = variables["params"], source_inputs(inputs, cache, place)
    if given is None:
        return {name: held for name, held in cache.items() if name != "memory"}, cache["memory"]
    source, mask = given
    x, cells = _encode(p, source, mask, c, keys, place)
    state: dict[str, Any] = {"cells": cells}
    if c.feeds_readout:
        state["read"] = reshard(jnp.zeros((len(source), c.readout_width), x.dtype), place("batch width"))
    mask = reshard(jnp.ones(source.shape), place("batch key")) if mask is None else mask
    memory = {**_make_memory(p["decoder"], x, c, place), MASK: mask}
    return state, {name: pad_to_capacity(held, cache) for name, held in memory.items()}


def _decode(
    variables: Any, inputs: dict[str, Array], c: Config, keys: Array | None, cache: Any, place: Place
) -> tuple[Array, Any, Any]:
    """What the head reads [B T R], the new cache, and the alignment [B T S] of a decoder that looks at the source."""
    along, now, gates = place("batch time width"), place("batch width"), place("batch gates mlp")
    start, memory = _init_carry(variables, inputs, c, keys, cache, place)
    y = _embed(variables["params"]["embed"]["token"], inputs["tokens"], c, keys, "embed", place)
    noise = [  # between layers
        dropout(reshard(jnp.ones((*y.shape[:2], c.width), y.dtype), along), keys, c.dropout, f"decoder{i}", along)
        for i in range(1, c.depth)
    ]
    real = reshard(inputs["position"] >= 0, place("batch time")).T if "position" in inputs else None
    p = gather_params(variables["params"]["decoder"], y)
    cells = [p["cells"][str(i)] for i in range(c.depth)]
    kernel = cells[0]["input"]["kernel"]  # the embeddings' part is multiplied before the loop, for all times at once
    embeds = {**cells[0]["input"], "kernel": kernel[: c.embed]}
    fed = linear("bti,igh->btgh", y, embeds, place("batch time gates mlp"))

    def step(state: dict[str, Any], given: tuple[Any, ...]) -> tuple[dict[str, Any], Any]:
        fed, y, noise, real = given
        come, seen, share = state.get("read"), None, None
        if c.attention_score == "additive":
            h = reshard(state["cells"][str(c.depth - 1)]["h"], now)
            seen, share = _attend(h, memory, p, c, place)
            come = seen
        fed = fed if come is None else fed + einsum("bi,igh->bgh", come, kernel[c.embed :], gates)
        new: dict[str, Any] = {"cells": {}}
        for i, cell in enumerate(cells):
            fed = linear("bi,igh->bgh", h * noise[i - 1], cell["input"], gates) if i else fed
            new["cells"][str(i)] = layer_step(fed, cell, "lstm", state["cells"][str(i)], place)
            h = reshard(new["cells"][str(i)]["h"], now)
        if c.attention_score in LUONG:
            seen, share = _attend(h, memory, p, c, place)
        if c.feeds_readout:
            new["read"] = _readout(h, y, seen, p, c, now)
        return where_real(new, state, real), ((h, seen, new.get("read")), share)

    times = jax.tree.map(lambda x: x.swapaxes(0, 1), (fed, y, noise))
    state, told = jax.lax.scan(step, start, (*times, real))
    (h, seen, read), share = jax.tree.map(lambda x: x.swapaxes(0, 1), told)
    x = _readout(h, y, seen, p, c, along) if read is None else read
    x = dropout(reshard(x, along), keys, c.dropout, "read", along)
    return x, None if cache is None else {**state, "memory": memory}, share
