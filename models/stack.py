"""Blocks one after another: layers of one kind run as one compiled loop.

Legend: L layers.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp

from models.spec import Array
from models.validate import rematerialised

Block = Callable[[Array, tuple[Any, Array, Any]], tuple[Array, Any]]


def scan_layers(
    block: Callable[[str], Block],
    kinds: Sequence[str],
    x: Array,
    params: Any,
    held: dict[str, Any] | None,
    *,
    remat: str,
    scan: bool,
) -> tuple[Array, dict[str, Any] | None]:
    """Run all layers: `block(kind)` maps (x, (its parameters, its index, what it holds)) -> (x, what it holds).

    `params` are stacked [L ...]; `held` has for each kind what its layers hold, stacked, in their order. Layers of one
    kind that stand together are one loop, which `scan` False unrolls.
    """
    start, taken = 0, dict.fromkeys(kinds, 0)
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for kind, stretch in groupby(kinds):
        count = len(list(stretch))
        part = jax.tree.map(lambda w, i=start, n=count: w if n == len(kinds) else w[i : i + n], params)
        own = None if held is None else jax.tree.map(lambda w, i=taken[kind], n=count: w[i : i + n], held[kind])
        along = part, start + jnp.arange(count), own
        x, new = jax.lax.scan(rematerialised(block(kind), remat), x, along, unroll=1 if scan else count)
        found[kind].append(new)
        start, taken[kind] = start + count, taken[kind] + count
    if held is None:
        return x, None
    return x, {kind: jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts) for kind, parts in found.items()}
