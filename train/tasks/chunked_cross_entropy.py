"""Cross-entropy of a language model in chunks of tokens: the full logits [B T V] and their gradient never exist.

The forward pass keeps only each token's normaliser; the backward pass recomputes the logits. On a mesh each device
processes its own tokens and its own rows of the table; sums over devices are explicit collectives.

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

MAX_LOGITS = 2**24  # logits in memory of a device at once, in float32: 64 MiB

MeshAxes = tuple[str, ...]  # of a mesh


class Layout(NamedTuple):
    """The options of the loss, and the mesh axes over which each dim is sharded (none without a mesh)."""

    vocab: int
    label_smoothing: float
    z_loss: float
    cap: float | None = None
    rows: MeshAxes = ()
    time: MeshAxes = ()
    entries: MeshAxes = ()  # of the table
    width: MeshAxes = ()  # of the table's rows: axes that also shard the tokens, so the rows are gathered for use

    @property
    def tokens(self) -> MeshAxes:
        """The axes that shard tokens."""
        return self.rows + self.time


def fits_in_chunk(head: LazyLogits) -> bool:
    """Whether a device's part of the full logits fits in one chunk."""
    x, table = (jax.typeof(a).sharding.shard_shape(a.shape) for a in (head.x, head.table))
    return math.prod(x[:2]) * table[0] <= MAX_LOGITS


def cross_entropy(
    head: LazyLogits, targets: Int[Array, "b t"], *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """Cross-entropy and correct predictions of the head's logits: targets [B T] -> nats [B T], correct [B T].

    They are `cross_entropy` and `correct` of `train/tasks/cross_entropy.py`.

    The gradient of the table is accumulated in float32. A chunk has at most MAX_LOGITS logits.
    Source: rematerialisation, Chen et al. 2016, arXiv:1604.06174, section 4, of the last layer only.
    """
    x, table, bias = head.x, head.table, head.bias
    layout = Layout(head.vocab, label_smoothing, z_loss, head.softcap)
    if not jax.sharding.get_abstract_mesh().empty:
        rows, time = map(_axes, jax.typeof(targets).sharding.spec)
        entries, width = map(_axes, jax.typeof(table).sharding.spec)
        layout = layout._replace(
            rows=rows, time=time, entries=entries, width=tuple(a for a in width if a in rows + time)
        )
        own = _specs(layout)
        x, table = reshard(x, own[0]), reshard(table, own[1])
        bias = None if bias is None else reshard(bias, own[2])
    return _cross_entropy(layout, x, table, bias, targets)


def _axes(entry: Any) -> MeshAxes:
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def _specs(layout: Layout) -> tuple[PartitionSpec, ...]:
    """PartitionSpecs of x, the table, its bias and the targets."""
    rows, time, entries, width = (axes or None for axes in (layout.rows, layout.time, layout.entries, layout.width))
    tokens = PartitionSpec(rows, time)
    return PartitionSpec(rows, time, None), PartitionSpec(entries, width), PartitionSpec(entries), tokens


def _on_mesh(function: Callable[..., Any], out: tuple[PartitionSpec, ...]) -> Callable[..., Any]:
    """Map a per-device function over the mesh with shard_map; without a mesh, the function itself."""
    return function if jax.sharding.get_abstract_mesh().empty else jax.shard_map(function, out_specs=out)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(layout: Layout, x: Array, table: Array, bias: Array | None, targets: Array) -> tuple[Array, Array]:
    return _forward(layout, x, table, bias, targets)[0]


def _forward(layout: Layout, *parts: Any) -> tuple[tuple[Array, Array], Any]:
    nats, hit, normaliser = _on_mesh(partial(_device_forward, layout), (_specs(layout)[3],) * 3)(*parts)
    return (nats, hit), (parts, normaliser)


def _backward(layout: Layout, residuals: Any, gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    parts, normaliser = residuals
    return *_on_mesh(partial(_device_gradients, layout), _specs(layout)[:3])(*parts, normaliser, gradients[0]), None


_cross_entropy.defvjp(_forward, _backward)


# On one device


def _device_forward(
    layout: Layout, x: Array, table: Array, bias: Array | None, targets: Array
) -> tuple[Array, Array, Array]:
    """nats, correct and log-normalisers of a device's tokens: [B T] each."""
    table = _gather_table(layout, table, x.dtype)
    index = _token_ids(layout, table)

    def chunk(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        x, label = part
        logits = _logits(layout, x, table, bias, index)
        top = _collective(jax.lax.pmax, jnp.max(logits, -1), layout.entries)
        normaliser = top + jnp.log(
            _collective(jax.lax.psum, jnp.sum(jnp.exp(logits - top[:, None]), -1), layout.entries)
        )
        nats = normaliser - _collective(
            jax.lax.psum, jnp.sum(_smoothed_target(layout, index, label) * logits, -1), layout.entries
        )
        first = jnp.min(jnp.where(logits == top[:, None], index[None], jnp.iinfo(index.dtype).max), -1)
        hit = _collective(jax.lax.pmin, first, layout.entries) == label
        return nats + layout.z_loss * jnp.square(normaliser), hit.astype(jnp.float32), normaliser

    size = _chunk_size(layout, targets, table)
    found = jax.lax.map(chunk, (_split_chunks(x, size), _split_chunks(targets, size)))
    nats, hit, normaliser = (a.reshape(-1)[: targets.size].reshape(targets.shape) for a in found)
    return nats, hit, normaliser


def _device_gradients(
    layout: Layout,
    x: Array,
    table: Array,
    bias: Array | None,
    targets: Array,
    normaliser: Array,
    gradient: Array,
) -> tuple[Array, Array, Array | None]:
    """The gradients of x, table and bias, given the gradient of the nats [B T]."""
    gathered = _gather_table(layout, table, x.dtype)
    index = _token_ids(layout, gathered)

    def chunk(sums: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        x, label, normaliser, gradient = part
        logits = _logits(layout, x, gathered, bias, index)
        p = jnp.exp(logits - normaliser[:, None])
        d = p * (1 + 2 * layout.z_loss * normaliser)[:, None] - _smoothed_target(layout, index, label)
        d = d * gradient[:, None]
        if layout.cap is not None:
            d = jnp.where(index[None] < layout.vocab, d * (1 - jnp.square(logits / layout.cap)), 0.0)
        low = d.astype(x.dtype)
        dx = jnp.einsum("nv,vd->nd", low, gathered, preferred_element_type=jnp.float32)
        dtable = jnp.einsum("nv,nd->vd", low, x, preferred_element_type=jnp.float32)
        return (sums[0] + dtable, sums[1] + jnp.sum(d, 0)), _collective(jax.lax.psum, dx, layout.entries).astype(
            x.dtype
        )

    size = _chunk_size(layout, targets, gathered)
    start = jnp.zeros(gathered.shape, jnp.float32), jnp.zeros(gathered.shape[:1], jnp.float32)
    start = _collective(partial(jax.lax.pcast, to="varying"), start, layout.tokens + layout.entries)
    (dtable, dbias), dx = jax.lax.scan(
        chunk, start, tuple(_split_chunks(a, size) for a in (x, targets, normaliser, gradient))
    )
    dx = dx.reshape(-1, x.shape[-1])[: targets.size].reshape(x.shape)
    dtable = _collective(partial(jax.lax.psum_scatter, scatter_dimension=1, tiled=True), dtable, layout.width)
    dtable = _collective(jax.lax.psum, dtable, tuple(a for a in layout.tokens if a not in layout.width)).astype(
        table.dtype
    )
    return dx, dtable, None if bias is None else _collective(jax.lax.psum, dbias, layout.tokens).astype(bias.dtype)


def _collective(collective: Callable[..., Any], x: Any, axes: MeshAxes) -> Any:
    return collective(x, axes) if axes else x


def _gather_table(layout: Layout, table: Array, dtype: Any) -> Array:
    """Gather a device's rows of the table: [v d] -> [v D]."""
    return _collective(partial(jax.lax.all_gather, axis=1, tiled=True), table.astype(dtype), layout.width)


def _token_ids(layout: Layout, table: Array) -> Array:
    """The token ids of a device's rows of the table: [v]."""
    first = jax.lax.axis_index(layout.entries) * len(table) if layout.entries else 0
    return first + jnp.arange(len(table))


def _logits(layout: Layout, x: Array, table: Array, bias: Array | None, index: Array) -> Array:
    """x [N D], table [v D] -> float32 logits [N v], with the vocabulary's padding masked."""
    logits = jnp.einsum("nd,vd->nv", x, table, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)[None]
    logits = logits if layout.cap is None else softcap(logits, layout.cap)
    return jnp.where(index[None] < layout.vocab, logits, MASK_VALUE)


def _smoothed_target(layout: Layout, index: Array, label: Array) -> Array:
    """The smoothed target: [N] -> [N v], 0 in the padding."""
    share = jnp.where(index < layout.vocab, layout.label_smoothing / layout.vocab, 0.0)
    return share[None] + jnp.where(index[None] == label[:, None], 1 - layout.label_smoothing, 0.0)


def _chunk_size(layout: Layout, targets: Array, table: Array) -> int:
    """Tokens per chunk, for the smallest number of equal chunks."""
    chunks = min(-(-targets.size * len(table) // MAX_LOGITS), targets.size)
    return -(-targets.size // chunks)


def _split_chunks(x: Array, size: int) -> Array:
    """A device's tokens in chunks, zero-padded: [B T ...] -> [chunks size ...]."""
    flat = x.reshape(-1, *x.shape[2:])
    flat = jnp.pad(flat, ((0, -len(flat) % size), *[(0, 0)] * (flat.ndim - 1)))
    return flat.reshape(-1, size, *flat.shape[1:])
