"""Layers one after another: a pattern of layers that repeats runs as one compiled loop.

Legend: L layers, of a stack or of all.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from models.core.checks import remat_block
from models.core.types import Array, Cache, Params, Tree


class Layer(NamedTuple):
    """The attention kind of a layer, and the stack that holds its parameters."""

    kind: str  # layers of one kind share an attention mask and a stacked cache
    stack: str = "blocks"  # layers of one stack have parameters of the same shapes, stacked [L ...]


# (layer, x, its parameters, its index among all layers [], its cache) -> x, its new cache, its statistics
Block = Callable[[Layer, Array, Params, Array, Cache | None], tuple[Array, Cache | None, PyTree]]


def repeating_patterns(layers: Sequence[Layer]) -> Iterator[tuple[tuple[Layer, ...], int]]:
    """Split layers into patterns and their repetitions: dense, moe, moe -> ((dense,), 1), ((moe,), 2)."""
    start = 0
    while start < len(layers):
        rest, best = tuple(layers[start:]), (1, 1)
        for period in range(1, len(rest) // 2 + 1):
            times = 1
            while rest[times * period : (times + 1) * period] == rest[:period]:
                times += 1
            if times > 1 and times * period > best[0] * best[1]:
                best = period, times
        period, times = best
        yield rest[:period], times
        start += period * times


def scan_layers(
    block: Block,
    layers: Sequence[Layer],
    x: Array,
    params: Params,
    caches: Cache | None,
    *,
    remat: str,
    scan: bool,
) -> tuple[Array, Cache | None, Tree]:
    """Run all layers -> (x, new caches by kind, statistics by stack), the last two stacked [L ...] in layer order.

    `params` are stacked [L ...] by stack, `caches` by kind. Each repeating pattern is one `lax.scan`, which `scan`
    False unrolls.
    """
    first = 0
    new_caches: dict[str, list[Cache | None]] = {layer.kind: [] for layer in layers}
    stats: dict[str, list[PyTree]] = {layer.stack: [] for layer in layers}
    kinds_done, stacks_done = dict.fromkeys(new_caches, 0), dict.fromkeys(stats, 0)  # layers run so far
    for pattern, times in repeating_patterns(layers):
        kinds = _indices_by_name([layer.kind for layer in pattern])
        stacks = _indices_by_name([layer.stack for layer in pattern])

        def period(
            x: Array, xs: PyTree, pattern: PyTree = pattern, kinds: PyTree = kinds, stacks: PyTree = stacks
        ) -> PyTree:
            index, own_params, own_caches = xs
            caches_out: dict[str, list[Cache | None]] = {kind: [] for kind in kinds}
            stats_out: dict[str, list[PyTree]] = {stack: [] for stack in stacks}
            for i, layer in enumerate(pattern):
                p = _take_layer(own_params[layer.stack], stacks[layer.stack].index(i))
                cache = _take_layer(own_caches[layer.kind], kinds[layer.kind].index(i)) if own_caches else None
                x, cache, layer_stats = remat_block(partial(block, layer), remat)(x, p, index + i, cache)
                caches_out[layer.kind].append(cache)
                stats_out[layer.stack].append(layer_stats)
            return x, tuple(
                {name: _map_parts(jnp.stack, parts) for name, parts in d.items()} for d in (caches_out, stats_out)
            )

        own_params = {
            name: _slice_stack(params[name], stacks_done[name], times, len(at)) for name, at in stacks.items()
        }
        own_caches: Cache = {}
        if caches:
            own_caches = {
                name: _slice_stack(caches[name], kinds_done[name], times, len(at)) for name, at in kinds.items()
            }
        index = first + len(pattern) * jnp.arange(times)
        x, (caches_out, stats_out) = jax.lax.scan(
            period, x, (index, own_params, own_caches), unroll=1 if scan else times
        )
        for kind, tree in caches_out.items():
            new_caches[kind].append(_merge_leading_dims(tree))
            kinds_done[kind] += times * len(kinds[kind])
        for stack, tree in stats_out.items():
            stats[stack].append(_merge_leading_dims(tree))
            stacks_done[stack] += times * len(stacks[stack])
        first += times * len(pattern)
    all_caches = {kind: _map_parts(jnp.concatenate, parts) for kind, parts in new_caches.items()}
    all_stats = {stack: _map_parts(jnp.concatenate, parts) for stack, parts in stats.items()}
    return x, None if caches is None else all_caches, all_stats


def _indices_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    """The indices at which each name occurs."""
    return {name: [i for i, other in enumerate(names) if other == name] for name in names}


def _slice_stack(tree: PyTree, start: int, times: int, each: int) -> PyTree:
    """The layers of a stack from `start` on, for `times` periods of `each`: [L ...] -> [times each ...]."""
    count = times * each

    def one(w: Array) -> Array:
        return (w if count == len(w) else w[start : start + count]).reshape(times, each, *w.shape[1:])

    return jax.tree.map(one, tree)


def _take_layer(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda w: w[i], tree)


def _merge_leading_dims(tree: PyTree) -> PyTree:
    """[times each ...] -> [times * each ...]."""
    return jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), tree)


def _map_parts(join: Callable[[Sequence[Array]], Array], parts: Sequence[PyTree]) -> PyTree:
    """Join trees leaf by leaf."""
    return jax.tree.map(lambda *w: join(w), *parts)
