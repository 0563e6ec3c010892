"""Layers one after another: a pattern of layers that repeats runs as one compiled loop.

Legend: L layers, of a stack or of all.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from models.core.fence import fence
from models.core.intermediates import sow
from models.core.loop import remat_block, unroll
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
    scan: bool | None,
) -> tuple[Array, Cache | None, Tree]:
    """Run all layers -> (x, new caches by kind, statistics by stack), the last two stacked [L ...] in layer order.

    `params` are stacked [L ...] by stack, `caches` by kind. Each repeating pattern is one `lax.scan`, which
    `core/loop.py: unroll` may unroll.
    """
    first = 0
    new_caches: dict[str, list[Cache | None]] = {layer.kind: [] for layer in layers}
    stats: dict[str, list[PyTree]] = {layer.stack: [] for layer in layers}
    kinds_done = Counter[str]()  # layers run so far
    stacks_done = Counter[str]()
    for pattern, times in repeating_patterns(layers):
        kinds = Counter(layer.kind for layer in pattern)
        stacks = Counter(layer.stack for layer in pattern)
        own_params = {}
        for stack, each in stacks.items():
            own_params[stack] = _slice_stack(params[stack], stacks_done[stack], times, each)
            stacks_done[stack] += times * each
        own_caches: Cache = {}
        if caches:
            for kind, each in kinds.items():
                own_caches[kind] = _slice_stack(caches[kind], kinds_done[kind], times, each)
                kinds_done[kind] += times * each
        index = first + len(pattern) * jnp.arange(times)
        first += len(pattern) * times
        at_once = unroll(scan, times, len(pattern) * times)
        period = partial(_run_period, _with_remat(block, remat, unrolled=at_once == times), pattern)
        xs = (index, own_params, own_caches)
        x, (caches_out, stats_out) = jax.lax.scan(period, x, xs, unroll=at_once)
        for kind, tree in caches_out.items():
            new_caches[kind].append(_merge_leading_dims(tree))
        for stack, tree in stats_out.items():
            stats[stack].append(_merge_leading_dims(tree))
    all_caches = _join_parts(jnp.concatenate, new_caches)
    return x, None if caches is None else all_caches, _join_parts(jnp.concatenate, stats)


def _with_remat(block: Block, policy: str, unrolled: bool) -> Block:
    """A block with rematerialisation: `remat_block`."""

    def run(layer: Layer, x: Array, p: Params, index: Array, cache: Cache | None) -> tuple[Array, Cache | None, PyTree]:
        return remat_block(partial(block, layer), policy, unrolled)(x, p, index, cache)

    return run


def _run_period(
    block: Block, pattern: tuple[Layer, ...], x: Array, xs: tuple[Array, Params, Cache]
) -> tuple[Array, tuple[Cache, Tree]]:
    """Run the layers of a pattern once -> x, new caches by kind, statistics by stack.

    `xs` are the index of the first layer, and the layers' parameters by stack and caches by kind, stacked.
    """
    first, params, caches = xs
    new_caches: dict[str, list[Cache | None]] = {layer.kind: [] for layer in pattern}
    stats: dict[str, list[PyTree]] = {layer.stack: [] for layer in pattern}
    for i, layer in enumerate(pattern):
        p = _take_layer(params[layer.stack], len(stats[layer.stack]))
        cache = _take_layer(caches[layer.kind], len(new_caches[layer.kind])) if caches else None
        x, cache, layer_stats = block(layer, x, p, first + i, cache)
        x = fence(x)
        sow("residual", x)
        new_caches[layer.kind].append(cache)
        stats[layer.stack].append(layer_stats)
    return x, (_join_parts(jnp.stack, new_caches), _join_parts(jnp.stack, stats))


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


def _join_parts(join: Callable[[Sequence[Array]], Array], parts: dict[str, list[PyTree]]) -> Tree:
    """Join the trees of each name, leaf by leaf."""
    return {name: jax.tree.map(lambda *leaves: join(leaves), *trees) for name, trees in parts.items()}
