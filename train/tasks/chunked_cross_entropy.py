"""Cross-entropy of a language model in chunks of its tokens: neither the logits [B T V] nor their gradient stand whole.

Forward, a chunk's logits leave a token's normaliser behind; backward, they are computed again from it. On a mesh each
device takes its own tokens and its own rows of the table, and what must be summed over devices is summed here by name.

Legend: N tokens of a device or a chunk of them, V padded vocabulary, D width; small v and d where a device has a part.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from models.core.layers import MASK_VALUE, reshard, softcap
from models.core.spec import LazyLogits

MAX_LOGITS = 2**24  # that a device holds at once, in float32: 64 MiB

MeshAxes = tuple[str, ...]  # of a mesh


class Layout(NamedTuple):
    """What is computed, and over which mesh axes each dim is cut; without a mesh, none."""

    vocab: int
    label_smoothing: float
    z_loss: float
    cap: float | None = None
    rows: MeshAxes = ()
    time: MeshAxes = ()
    entries: MeshAxes = ()  # of the table
    width: MeshAxes = ()  # of the table's rows: axes that cut the tokens too, so that it is made whole for use

    @property
    def tokens(self) -> MeshAxes:
        """The axes that cut tokens."""
        return self.rows + self.time


def fits_in_chunk(head: LazyLogits) -> bool:
    """Whether a device's share of all the logits is no more than a chunk."""
    x, table = (jax.typeof(a).sharding.shard_shape(a.shape) for a in (head.x, head.table))
    return math.prod(x[:2]) * table[0] <= MAX_LOGITS


def cross_entropy(
    head: LazyLogits, targets: Int[Array, "b t"], *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """`losses.cross_entropy` and `losses.correct` of the head's logits: targets [B T] -> nats [B T], hits [B T].

    The gradient of the table is summed in float32. A chunk has MAX_LOGITS logits at most.
    Source: a chunk's logits made anew, Chen et al. 2016, arXiv:1604.06174, section 4, for the last layer alone.
    """
    x, table, bias = head.x, head.table, head.bias
    how = Layout(head.vocab, label_smoothing, z_loss, head.softcap)
    if not jax.sharding.get_abstract_mesh().empty:
        rows, time = map(_axes, jax.typeof(targets).sharding.spec)
        entries, width = map(_axes, jax.typeof(table).sharding.spec)
        how = how._replace(rows=rows, time=time, entries=entries, width=tuple(a for a in width if a in rows + time))
        own = _specs(how)
        x, table = reshard(x, own[0]), reshard(table, own[1])
        bias = None if bias is None else reshard(bias, own[2])
    return _cross_entropy(how, x, table, bias, targets)


def _axes(entry: Any) -> MeshAxes:
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def _specs(how: Layout) -> tuple[PartitionSpec, ...]:
    """How x, the table, its bias and the targets lie."""
    rows, time, entries, width = (axes or None for axes in (how.rows, how.time, how.entries, how.width))
    tokens = PartitionSpec(rows, time)
    return PartitionSpec(rows, time, None), PartitionSpec(entries, width), PartitionSpec(entries), tokens


def _on_mesh(function: Callable[..., Any], out: tuple[PartitionSpec, ...]) -> Callable[..., Any]:
    """A device's function, run by every device of the mesh on its parts of the arguments; without a mesh, itself."""
    return function if jax.sharding.get_abstract_mesh().empty else jax.shard_map(function, out_specs=out)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(how: Layout, x: Array, table: Array, bias: Array | None, targets: Array) -> tuple[Array, Array]:
    return _forward(how, x, table, bias, targets)[0]


def _forward(how: Layout, *parts: Any) -> tuple[tuple[Array, Array], Any]:
    nats, hit, normaliser = _on_mesh(partial(_device_forward, how), (_specs(how)[3],) * 3)(*parts)
    return (nats, hit), (parts, normaliser)


def _backward(how: Layout, kept: Any, slopes: tuple[Array, Array]) -> tuple[Any, ...]:
    parts, normaliser = kept
    return *_on_mesh(partial(_device_gradients, how), _specs(how)[:3])(*parts, normaliser, slopes[0]), None


_cross_entropy.defvjp(_forward, _backward)


# On one device


def _device_forward(
    how: Layout, x: Array, table: Array, bias: Array | None, targets: Array
) -> tuple[Array, Array, Array]:
    """nats, hits and normalisers of a device's tokens: [B T] each."""
    table = _gather_table(how, table, x.dtype)
    index = _token_ids(how, table)

    def chunk(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        x, label = part
        logits = _logits(how, x, table, bias, index)
        top = _collective(jax.lax.pmax, jnp.max(logits, -1), how.entries)
        normaliser = top + jnp.log(_collective(jax.lax.psum, jnp.sum(jnp.exp(logits - top[:, None]), -1), how.entries))
        nats = normaliser - _collective(
            jax.lax.psum, jnp.sum(_smoothed_target(how, index, label) * logits, -1), how.entries
        )
        first = jnp.min(jnp.where(logits == top[:, None], index[None], jnp.iinfo(index.dtype).max), -1)
        hit = _collective(jax.lax.pmin, first, how.entries) == label
        return nats + how.z_loss * jnp.square(normaliser), hit.astype(jnp.float32), normaliser

    size = _chunk_size(how, targets, table)
    found = jax.lax.map(chunk, (_split_chunks(x, size), _split_chunks(targets, size)))
    nats, hit, normaliser = (a.reshape(-1)[: targets.size].reshape(targets.shape) for a in found)
    return nats, hit, normaliser


def _device_gradients(
    how: Layout,
    x: Array,
    table: Array,
    bias: Array | None,
    targets: Array,
    normaliser: Array,
    slope: Array,
) -> tuple[Array, Array, Array | None]:
    """The gradients of x, table and bias, given those of the nats [B T]."""
    whole = _gather_table(how, table, x.dtype)
    index = _token_ids(how, whole)

    def chunk(sums: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        x, label, normaliser, slope = part
        logits = _logits(how, x, whole, bias, index)
        p = jnp.exp(logits - normaliser[:, None])
        d = p * (1 + 2 * how.z_loss * normaliser)[:, None] - _smoothed_target(how, index, label)
        d = d * slope[:, None]
        if how.cap is not None:
            d = jnp.where(index[None] < how.vocab, d * (1 - jnp.square(logits / how.cap)), 0.0)
        low = d.astype(x.dtype)
        dx = jnp.einsum("nv,vd->nd", low, whole, preferred_element_type=jnp.float32)
        dtable = jnp.einsum("nv,nd->vd", low, x, preferred_element_type=jnp.float32)
        return (sums[0] + dtable, sums[1] + jnp.sum(d, 0)), _collective(jax.lax.psum, dx, how.entries).astype(x.dtype)

    size = _chunk_size(how, targets, whole)
    start = jnp.zeros(whole.shape, jnp.float32), jnp.zeros(whole.shape[:1], jnp.float32)
    start = _collective(partial(jax.lax.pcast, to="varying"), start, how.tokens + how.entries)
    (dtable, dbias), dx = jax.lax.scan(
        chunk, start, tuple(_split_chunks(a, size) for a in (x, targets, normaliser, slope))
    )
    dx = dx.reshape(-1, x.shape[-1])[: targets.size].reshape(x.shape)
    dtable = _collective(partial(jax.lax.psum_scatter, scatter_dimension=1, tiled=True), dtable, how.width)
    dtable = _collective(jax.lax.psum, dtable, tuple(a for a in how.tokens if a not in how.width)).astype(table.dtype)
    return dx, dtable, None if bias is None else _collective(jax.lax.psum, dbias, how.tokens).astype(bias.dtype)


def _collective(collective: Callable[..., Any], x: Any, axes: MeshAxes) -> Any:
    return collective(x, axes) if axes else x


def _gather_table(how: Layout, table: Array, dtype: Any) -> Array:
    """A device's rows of the table, whole: [v d] -> [v D]."""
    return _collective(partial(jax.lax.all_gather, axis=1, tiled=True), table.astype(dtype), how.width)


def _token_ids(how: Layout, table: Array) -> Array:
    """The tokens that a device's rows of the table stand for: [v]."""
    first = jax.lax.axis_index(how.entries) * len(table) if how.entries else 0
    return first + jnp.arange(len(table))


def _logits(how: Layout, x: Array, table: Array, bias: Array | None, index: Array) -> Array:
    """x [N D], table [v D] -> float32 [N v], the padding masked."""
    logits = jnp.einsum("nd,vd->nv", x, table, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)[None]
    logits = logits if how.cap is None else softcap(logits, how.cap)
    return jnp.where(index[None] < how.vocab, logits, MASK_VALUE)


def _smoothed_target(how: Layout, index: Array, label: Array) -> Array:
    """The smoothed target: [N] -> [N v], 0 in the padding."""
    share = jnp.where(index < how.vocab, how.label_smoothing / how.vocab, 0.0)
    return share[None] + jnp.where(index[None] == label[:, None], 1 - how.label_smoothing, 0.0)


def _chunk_size(how: Layout, targets: Array, table: Array) -> int:
    """Tokens of a chunk, so that chunks are of one size and as few as may be."""
    chunks = min(-(-targets.size * len(table) // MAX_LOGITS), targets.size)
    return -(-targets.size // chunks)


def _split_chunks(x: Array, size: int) -> Array:
    """A device's tokens in chunks, filled up with zeros: [B T ...] -> [chunks size ...]."""
    flat = x.reshape(-1, *x.shape[2:])
    flat = jnp.pad(flat, ((0, -len(flat) % size), *[(0, 0)] * (flat.ndim - 1)))
    return flat.reshape(-1, size, *flat.shape[1:])
