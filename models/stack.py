"""Blocks one after another: a stretch of layers that repeats runs as one compiled loop.

Legend: L layers, of a stack or of all.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.spec import Array
from models.validate import remat_block


class Layer(NamedTuple):
    """What a layer does, and where its parameters lie."""

    kind: str  # layers of one kind hold the same in a cache
    stack: str = "blocks"  # layers of one stack have the same parameters


# (layer, x, its parameters, its index among all [], what it holds) -> x, what it holds, what it tells
Block = Callable[[Layer, Array, Any, Array, Any], tuple[Array, Any, Any]]


def runs_of(layers: Sequence[Layer]) -> Iterator[tuple[tuple[Layer, ...], int]]:
    """Layers as patterns, each with how often it comes in a row: dense, moe, moe -> ((dense,), 1), ((moe,), 2)."""
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
    params: dict[str, Any],
    held: dict[str, Any] | None,
    *,
    remat: str,
    scan: bool,
) -> tuple[Array, dict[str, Any] | None, dict[str, Any]]:
    """Run all layers -> (x, what they hold by kind, what they tell by stack), each stacked [L ...] in their order.

    `params` are stacked by stack, and `held` by kind. A pattern that repeats is one loop, which `scan` False unrolls.
    """
    first = 0
    kept: dict[str, list[Any]] = {layer.kind: [] for layer in layers}
    told: dict[str, list[Any]] = {layer.stack: [] for layer in layers}
    done = {name: dict.fromkeys(found, 0) for name, found in (("kind", kept), ("stack", told))}  # layers, so far
    for pattern, times in runs_of(layers):
        kinds, stacks = (_places(names) for names in zip(*pattern, strict=True))

        def period(x: Array, along: Any, pattern: Any = pattern, kinds: Any = kinds, stacks: Any = stacks) -> Any:
            index, own, mine = along
            new: dict[str, list[Any]] = {kind: [] for kind in kinds}
            says: dict[str, list[Any]] = {stack: [] for stack in stacks}
            for i, layer in enumerate(pattern):
                p = _at(own[layer.stack], stacks[layer.stack].index(i))
                has = _at(mine[layer.kind], kinds[layer.kind].index(i)) if mine else None
                x, has, tells = remat_block(partial(block, layer), remat)(x, p, index + i, has)
                new[layer.kind].append(has)
                says[layer.stack].append(tells)
            return x, tuple({name: _joined(jnp.stack, parts) for name, parts in d.items()} for d in (new, says))

        own = {name: _cut(params[name], done["stack"][name], times, len(at)) for name, at in stacks.items()}
        mine = (
            {name: _cut(held[name], done["kind"][name], times, len(at)) for name, at in kinds.items()} if held else {}
        )
        index = first + len(pattern) * jnp.arange(times)
        x, found = jax.lax.scan(period, x, (index, own, mine), unroll=1 if scan else times)
        for all_, trees, places, at in zip((kept, told), found, (kinds, stacks), ("kind", "stack"), strict=True):
            for name, tree in trees.items():
                all_[name].append(jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), tree))
                done[at][name] += times * len(places[name])
        first += times * len(pattern)
    kept, told = ({name: _joined(jnp.concatenate, parts) for name, parts in d.items()} for d in (kept, told))
    return x, None if held is None else kept, told


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """At which places of a pattern each name stands."""
    return {name: [i for i, other in enumerate(names) if other == name] for name in names}


def _cut(tree: Any, start: int, times: int, each: int) -> Any:
    """Layers of a stack from one on: [L ...] -> [times each ...]."""
    count = times * each

    def one(w: Array) -> Array:
        return (w if count == len(w) else w[start : start + count]).reshape(times, each, *w.shape[1:])

    return jax.tree.map(one, tree)


def _at(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda w: w[i], tree)


def _joined(how: Callable[[Sequence[Array]], Array], parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *w: how(w), *parts)
