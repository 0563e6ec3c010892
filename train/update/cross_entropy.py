"""Cross-entropy of a language model without its logits: they are made, used and forgotten a chunk of tokens at a time.

Legend: B rows, T time, D width, V padded vocabulary; on each device n tokens and v rows of the table.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from models.layers import MASKED, gathered, logits_of
from models.spec import Unembedding

CHUNK = 2**25  # logits that a device holds at once, at most: 128 MiB


def cross_entropy(
    logits: Float[Array, "*b c"], label: Int[Array, "*b"], *, smoothing: float = 0.0, z_loss: float = 0.0
) -> Float[Array, "*b"]:
    """-log softmax(logits)[label], in nats: logits [... C], label [...] -> [...].

    `smoothing` gives that share of the target to all classes alike (Szegedy et al. 2016, arXiv:1512.00567, section 7);
    `z_loss` times the squared log of the normaliser is added (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
    Masked logits are no classes. The label's logit is picked by comparison, not by a gather: C may be sharded.
    """
    chosen = jnp.arange(logits.shape[-1]).reshape((1,) * label.ndim + (-1,)) == label[..., None]
    picked = jnp.sum(jnp.where(chosen, logits, 0.0), -1)
    normaliser = jax.nn.logsumexp(logits, -1)
    nats = normaliser - picked
    if smoothing:
        real = logits > MASKED / 2
        mean = jnp.sum(jnp.where(real, logits, 0.0), -1) / jnp.sum(real, -1)
        nats = (1 - smoothing) * nats + smoothing * (normaliser - mean)
    return nats + z_loss * jnp.square(normaliser) if z_loss else nats


def guesses(logits: Float[Array, "*b c"]) -> Int[Array, "*b"]:
    """The class of the largest logit, the first of equals, C in a row with a NaN: [... C] -> [...].

    By comparison, as the picked logit of cross_entropy: C may be sharded.
    """
    index = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
    top = jnp.max(logits, -1, keepdims=True)
    return jnp.min(jnp.where(logits == top, index, logits.shape[-1]), -1)


def hits(logits: Float[Array, "*b c"], label: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """1 where the label's logit is the largest (the first of equals), else 0: [... C], [...] -> [...]."""
    return (guesses(logits) == label).astype(jnp.float32)


def of_tokens(
    value: Unembedding, targets: Int[Array, "b t"], *, smoothing: float = 0.0, z_loss: float = 0.0, chunk: int = CHUNK
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """Cross-entropy in nats and whether the guess is right, of each token: targets [B T] -> two [B T].

    Where a device would hold more than `chunk` logits, it holds so many at a time, and makes them again in the backward
    pass; else they are made as they are.
    """
    x, table, bias = value.x, value.table, value.bias
    at, mesh = jax.typeof(x).sharding.spec, jax.typeof(x).sharding.mesh
    rows = jax.typeof(table).sharding.spec[0] if not mesh.empty else None
    over = None if mesh.empty else PartitionSpec(at[0], at[1], rows)
    shards = 1 if mesh.empty else _size(mesh, at[0]) * _size(mesh, at[1]) * _size(mesh, rows)
    if math.prod(targets.shape) * table.shape[0] // shards <= chunk:
        logits = logits_of(value, over)
        return cross_entropy(logits, targets, smoothing=smoothing, z_loss=z_loss), hits(logits, targets)
    if bias is None:
        bias = jnp.zeros(table.shape[0], jnp.float32, out_sharding=None if mesh.empty else PartitionSpec(rows))
    how = _How(value.vocab, smoothing, z_loss, chunk, mesh, tuple(at[:2]) if over else (None, None), rows)
    return _chunked(x, gathered(table.astype(x.dtype), x), bias, targets, how)


class _How(NamedTuple):
    """What is fixed when a program is made: `at` are the mesh axes of rows and time, `rows` those of the vocabulary."""

    vocab: int
    smoothing: float
    z_loss: float
    chunk: int
    mesh: Any
    at: tuple[Any, Any]
    rows: Any


def _axes(*entries: Any) -> tuple[str, ...]:
    """Mesh axes of entries of a PartitionSpec."""
    return tuple(name for e in entries if e is not None for name in (e if isinstance(e, tuple) else (e,)))


def _size(mesh: Any, entry: Any) -> int:
    return math.prod(mesh.shape[name] for name in _axes(entry))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(x: Array, table: Array, bias: Array, targets: Array, how: _How) -> tuple[Array, Array]:
    return _forward(x, table, bias, targets, how)[0]


def _forward(x: Array, table: Array, bias: Array, targets: Array, how: _How) -> tuple[Any, Any]:
    tokens = PartitionSpec(*how.at)
    nats, hit, normaliser = _on_shards(how, _terms, (tokens,) * 3, x, table, bias, targets)
    return (nats, hit), (x, table, bias, targets, normaliser)


def _backward(how: _How, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    out = PartitionSpec(*how.at, None), PartitionSpec(how.rows, None), PartitionSpec(how.rows)
    return *_on_shards(how, _gradients, out, *kept, cotangents[0]), None


_chunked.defvjp(_forward, _backward)


def _on_shards(how: _How, work: Callable[..., Any], out: Any, x: Array, table: Array, bias: Array, *rest: Array) -> Any:
    """The work on each device's part of the tokens, [n D] and [n], and of the table, [v D] and [v]."""

    def local(x: Array, table: Array, bias: Array, *rest: Array) -> Any:
        shape, count = x.shape[:2], x.shape[0] * x.shape[1]
        size = min(count, max(1, how.chunk // table.shape[0]))
        pad = -count % size

        def cut(a: Array) -> Array:
            flat = a.reshape(count, *a.shape[2:])
            return jnp.pad(flat, ((0, pad), *[(0, 0)] * (flat.ndim - 1))).reshape(-1, size, *flat.shape[1:])

        def whole(a: Array) -> Array:
            return a.reshape(-1, *a.shape[2:])[:count].reshape(*shape, *a.shape[2:])

        first = jax.lax.axis_index(_axes(how.rows)) * table.shape[0] if _axes(how.rows) else 0
        column = first + jnp.arange(table.shape[0])[None]
        return work(how, cut(x), table, bias, column, *map(cut, rest), whole=whole)

    if how.mesh.empty:
        return local(x, table, bias, *rest)
    tokens, rows = PartitionSpec(*how.at), PartitionSpec(how.rows)
    specs = PartitionSpec(*how.at, None), PartitionSpec(how.rows, None), rows, *(tokens,) * len(rest)
    return jax.shard_map(local, mesh=how.mesh, in_specs=specs, out_specs=out, check_vma=False)(x, table, bias, *rest)


def _logits(how: _How, x: Array, table: Array, bias: Array, column: Array) -> Array:
    logits = jnp.einsum("nd,vd->nv", x, table, preferred_element_type=jnp.float32) + bias[None]
    return jnp.where(column < how.vocab, logits, MASKED)


def _terms(
    how: _How, x: Array, table: Array, bias: Array, column: Array, targets: Array, *, whole: Callable[[Array], Array]
) -> tuple[Array, ...]:
    """Of tokens: nats, whether the guess is right, and the log of the softmax's normaliser."""
    over = _axes(how.rows)

    def total(a: Array) -> Array:
        return jax.lax.psum(jnp.sum(a, -1), over)

    def one(part: tuple[Array, Array]) -> tuple[Array, ...]:
        x, label = part
        logits = _logits(how, x, table, bias, column)
        top = jax.lax.pmax(jnp.max(logits, -1), over)
        normaliser = top + jnp.log(total(jnp.exp(logits - top[:, None])))
        nats = normaliser - total(jnp.where(column == label[:, None], logits, 0.0))
        if how.smoothing:
            mean = total(jnp.where(column < how.vocab, logits, 0.0)) / how.vocab
            nats = (1 - how.smoothing) * nats + how.smoothing * (normaliser - mean)
        nats = nats + how.z_loss * jnp.square(normaliser)
        guess = jax.lax.pmin(jnp.min(jnp.where(logits == top[:, None], column, jnp.iinfo(jnp.int32).max), -1), over)
        return nats, (guess == label).astype(jnp.float32), normaliser

    return tuple(map(whole, jax.lax.map(one, (x, targets))))


def _gradients(
    how: _How,
    x: Array,
    table: Array,
    bias: Array,
    column: Array,
    targets: Array,
    normaliser: Array,
    cotangent: Array,
    *,
    whole: Callable[[Array], Array],
) -> tuple[Array, Array, Array]:
    """Of x, table and bias: a logit's is softmax - target, plus what smoothing and the z-loss add."""

    def one(sums: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[Any, Array]:
        x, label, normaliser, cotangent = part
        softmax = jnp.exp(_logits(how, x, table, bias, column) - normaliser[:, None])
        slope = softmax * (1 + 2 * how.z_loss * normaliser[:, None])
        slope = slope - (1 - how.smoothing) * (column == label[:, None])
        slope = jnp.where(column < how.vocab, slope - how.smoothing / how.vocab, 0.0) * cotangent[:, None]
        low = slope.astype(x.dtype)
        back = jnp.einsum("nv,vd->nd", low, table, preferred_element_type=jnp.float32)
        more = jnp.einsum("nv,nd->vd", low, x, preferred_element_type=jnp.float32)
        return (sums[0] + more, sums[1] + jnp.sum(slope, 0)), back

    zero = jnp.zeros(table.shape, jnp.float32), jnp.zeros(table.shape[0], jnp.float32)
    sums, back = jax.lax.scan(one, zero, (x, targets, normaliser, cotangent))
    d_table, d_bias = jax.lax.psum(sums, _axes(*how.at))
    d_x = jax.lax.psum(whole(back), _axes(how.rows))
    return d_x.astype(x.dtype), d_table.astype(table.dtype), d_bias
