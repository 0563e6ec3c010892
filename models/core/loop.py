"""Layers one after another: as a compiled loop or unrolled, with rematerialisation."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jaxtyping import PyTree

from models.core.checks import REMAT
from models.core.platform import on_one_cpu_device
from models.core.types import Array

T = TypeVar("T")

UNROLL = 8  # layers: 8 layers of a GPT compile in 9 s, and 6 s as a loop


def remat_block(block: Callable[..., T], policy: str, unrolled: bool = False) -> Callable[..., T]:
    """The block with rematerialisation in the backward pass by a policy of REMAT.

    `unrolled`: it does not run in a loop, so that XLA could merge the recomputation with the forward pass.
    """
    return block if policy == "none" else jax.checkpoint(block, policy=REMAT[policy], prevent_cse=unrolled)


def scan_blocks(
    block: Callable[[Array, PyTree], tuple[Array, PyTree]],
    x: Array,
    layers: PyTree,
    length: int,
    *,
    remat: str,
    scan: bool | None,
) -> tuple[Array, PyTree]:
    """Run `block(x, layer)` for each of the stacked layers [L ...] -> x, and the blocks' other outputs, stacked."""
    at_once = unroll(scan, length)
    return jax.lax.scan(remat_block(block, remat, at_once == length), x, layers, unroll=at_once)


def unroll(scan: bool | None, length: int, layers: int | None = None) -> int:
    """`unroll` of `jax.lax.scan` for a loop of `length` iterations: 1 with `scan`, `length` without.

    None chooses: `length` on one CPU device if there are at most UNROLL `layers` (default: one an iteration), where a
    step of a GPT is 1.1 to 1.2 times as fast (docs/log.md), else 1.
    """
    if scan is None:
        scan = (layers or length) > UNROLL or not on_one_cpu_device()
    return 1 if scan else length
