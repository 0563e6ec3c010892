"""Recurrent networks: layers of Elman, GRU or LSTM cells over tokens or features, and a head.

Legend: B batch, T time, F input features, V padded vocabulary, E width of an embedding, H hidden units, P outputs of a
layer (H without a projection; of both directions together if bidirectional), C outputs of the head.
Source: Elman 1990; Hochreiter, Schmidhuber 1997; Cho et al. 2014; Schuster, Paliwal 1997, IEEE Trans. Signal Proc. 45
(two directions); Sak et al. 2014, arXiv:1402.1128 (projection).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Float

from models.blocks.recurrent import CELLS, layer_specs, run_directions, state_specs
from models.core.checks import COMPUTE, one_of, positive, probability, refuse
from models.core.layers import MASK_VALUE, dense, dropout, embed, linear_specs, reshard
from models.core.spec import LazyLogits, Outputs, Place, Spec, lecun_normal, normal, round_up, uniform, unsharded, zeros
from models.core.types import Array, Cache, Fields, Inputs, Specs, Variables

TRAITS = frozenset({"causal", "cached", "carried", "classifier", "language_model", "regressor", "encoder"})
INPUT = "tokens"
READS = (("features", "tokens"), ("mask",))
ZERO_GRAD: dict[str, str] = {}
SIZES: dict[str, Fields] = {}
HEADS = {"tokens": "language_model", "classes": "classifier", "values": "regressor", "none": "encoder"}
POOLS = ("last", "mean", "max")


@dataclass(frozen=True)
class Config:
    """Shape, head and initial values of a recurrent network."""

    cell: str = "lstm"
    head: str = "tokens"  # next token at each time | classes | values (real) of the sequence | none: the last layer
    vocab: int | None = None  # tokens; None: the input is features
    vocab_multiple: int = 128  # the tables are padded to a multiple of it
    context: int = 64  # tokens per window; the network itself has no limit
    inputs: int = 1  # features at each time, without a vocab
    embed: int = 128  # width of an embedding
    embed_std: float = 1.0  # of the embeddings' initial values
    width: int = 128  # hidden units
    depth: int = 1  # layers
    bidirectional: bool = False
    projection: int | None = None  # an LSTM's units that are fed back
    bias: bool = True
    forget_bias: float = 0.0  # added to the input bias of an LSTM's forget gate
    chrono_max: int | None = None  # longest time that units initially remember (chrono initialization)
    pool: str = "last"  # over time, before a head of classes or values
    classes: int = 2
    outputs: int = 1  # values
    dropout: float = 0.0  # probability: on embeddings, between layers and on the head's input
    compute: str = "float32"

    def __post_init__(self) -> None:
        positive(self, "vocab", "vocab_multiple", "context", "inputs", "embed", "width", "depth", "projection")
        positive(self, "classes", "outputs", "embed_std")
        probability(self, "dropout")
        one_of(self, cell=CELLS, head=HEADS, pool=POOLS, compute=COMPUTE)
        if self.cell != "lstm" and self.projection is not None:
            refuse(self, "projection", "None unless cell is 'lstm'")
        gated = self.bias and CELLS[self.cell].carry_gate is not None
        if self.forget_bias != 0 and not (gated and self.cell == "lstm" and self.chrono_max is None):
            refuse(self, "forget_bias", "0 unless cell is 'lstm', with a bias and no chrono_max")
        if self.chrono_max is not None and not (gated and self.chrono_max >= 3):
            refuse(self, "chrono_max", "3 or more, of gated cells with a bias")
        if self.projection is not None and self.projection >= self.width:
            refuse(self, "projection", "less than width")
        if self.bidirectional and self.head == "tokens":
            refuse(self, "bidirectional", "False where head is 'tokens'")
        if self.head == "tokens" and not self.vocab:
            refuse(self, "head", "'classes' or 'values' without a vocab")


def fit(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields that the data determine: `inputs`, from the shape of a row."""
    return {"inputs": shapes["features"][-1]} if "features" in shapes else {}


def traits(c: Config) -> frozenset[str]:
    """The traits of a Config: `cached` and `carried` unless it is bidirectional."""
    stateful = {"cached", "carried"} if not c.bidirectional else set()
    return frozenset({HEADS[c.head], *stateful} | ({"causal"} if c.head == "tokens" else set()))


def directions(c: Config) -> tuple[str, ...]:
    """The names of a layer's directions."""
    return ("forward", "backward") if c.bidirectional else ("forward",)


def main_dims(c: Config) -> str:
    """The dims of the main input."""
    return "B T" if c.vocab else "B T inputs"


def specs(c: Config) -> Specs:
    """Specs of the parameters."""
    V = round_up(c.vocab or 0, c.vocab_multiple)
    P = len(directions(c)) * (c.projection or c.width)
    first = ("embed", c.embed) if c.vocab else ("inputs", c.inputs)

    def layer(i: int) -> Specs:
        axis, size = first if i == 0 else ("embed", P)
        one_way = layer_specs(
            size,
            c.width,
            c.cell,
            projection=c.projection,
            bias=c.bias,
            forget_bias=c.forget_bias,
            chrono_max=c.chrono_max,
            axis=axis,
        )
        return dict.fromkeys(directions(c), one_way)

    params: Specs = {"cells": {str(i): layer(i) for i in range(c.depth)}}
    if c.vocab:
        params["embed"] = {"token": Spec((V, c.embed), "vocab embed", normal(c.embed_std))}
    if c.head == "tokens":
        kernel = Spec((V, P), "vocab embed", uniform(P**-0.5), fan_in="embed")
        params["head"] = {"kernel": kernel, "bias": Spec((V,), "vocab", zeros)}
    elif c.head != "none":
        outputs = c.classes if c.head == "classes" else c.outputs
        params["head"] = linear_specs(P, outputs, "embed classes", lecun_normal, "classes")
    return {"params": params}


def cache(c: Config, batch: int, length: int) -> Specs:
    """Specs of the state, whose size does not depend on `length`: layer -> h [B P], and c [B H] of an LSTM."""
    layer = state_specs(batch, c.width, c.cell, c.projection, c.compute)
    return {str(i): layer for i in range(c.depth)}


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
    """Outputs of the head, float32: tokens [B T] or features [B T F] -> [B T V], [B T P] without a head, or [B C].

    Optional input: mask [B T], 0 where a sequence is padded. With a cache the input continues the cached sequence.
    """
    p = variables["params"]
    keys = key if train else None
    mask = inputs.get("mask")
    along = place("batch time width")
    mask = None if mask is None else reshard(mask, place("batch time"))
    x = inputs["features"] if "features" in inputs else inputs["tokens"]
    x = embed(p["embed"]["token"], x, along) if c.vocab else x
    x = x.astype(COMPUTE[c.compute])
    x = dropout(x, keys, c.dropout, "embed", along) if c.vocab else x

    states: Cache = {}
    for i in range(c.depth):
        state = None if cache is None else cache[str(i)]
        x, lasts = run_directions(x, p["cells"][str(i)], directions(c), c.cell, state, mask, place)
        states[str(i)] = lasts[0]
        x = dropout(x, keys, c.dropout, f"cell{i}", along) if i + 1 < c.depth else x

    if c.head == "tokens":
        assert c.vocab is not None
        x = dropout(x, keys, c.dropout, "head", along)
        value: Array | LazyLogits = LazyLogits(x, p["head"]["kernel"], c.vocab, p["head"]["bias"])
    elif c.head == "none":
        value = x.astype(jnp.float32)
    else:
        final = jnp.concatenate([reshard(last["h"], place("batch width")) for last in lasts], -1)
        pooled = final if c.pool == "last" else pool(x, mask, c.pool)
        pooled = dropout(pooled, keys, c.dropout, "head", place("batch width"))
        value = dense(pooled, p["head"], place("batch classes"), jnp.float32)
    return Outputs(value, cache=None if c.bidirectional else states)


def pool(x: Float[Array, "b t p"], mask: Float[Array, "b t"] | None, kind: str) -> Float[Array, "b p"]:
    """The mean or maximum of each unit over the times that are not padding: x [B T P], mask [B T] -> [B P]."""
    real = jnp.ones(x.shape[:2], x.dtype) if mask is None else mask.astype(x.dtype)
    real = real[:, :, None]
    if kind == "mean":
        return jnp.sum(x * real, 1) / jnp.maximum(jnp.sum(real, 1), 1)
    top = jnp.max(jnp.where(real > 0, x, jnp.asarray(MASK_VALUE, x.dtype)), 1)
    return jnp.where(jnp.any(real > 0, 1), top, 0)  # a row of padding has no maximum
