"""Memory and time of a language model's loss and gradients: chunked cross-entropy against whole logits.

    python -m benchmarks.loss_memory [--repeats=7] [--out=benchmarks/results/loss_memory.json]

Memory is XLA's figure for the temporaries of the compiled program. Each round times both versions once, so that noise
of the machine affects both. A ratio is chunked over plain, for times the median over rounds: below 1 is less. In
float32, on one device.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from models.core.layers import compute_logits
from models.core.spec import LazyLogits
from train.tasks import chunked_cross_entropy
from train.tasks.cross_entropy import correct, cross_entropy

SHAPES = {  # B, T, D, vocabulary, padded vocabulary
    "V 128,256, D 256, 2 x 512 tokens": (2, 512, 256, 128256, 128256),
    "V 50,304, D 768, 2 x 1024 tokens": (2, 1024, 768, 50257, 50304),
}


def plain(head: LazyLogits, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `NextToken` of train/tasks/language.py computes if there are few logits."""
    logits = compute_logits(head)
    return cross_entropy(logits, targets), correct(logits, targets)


WAYS: dict[str, Callable[..., Any]] = {"plain": plain, "chunked": chunked_cross_entropy.cross_entropy}


def measure(shape: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Interleaved rounds -> MiB and median milliseconds of both versions, and their ratios."""
    rows, length, width, vocab, padded = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, length, width)), jnp.float32)
    table = jnp.asarray(0.02 * rng.normal(size=(padded, width)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocab, (rows, length)), jnp.int32)

    def compiled(way: Callable[..., Any]) -> Any:
        def loss(x: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
            nats, hit = way(LazyLogits(x, table, vocab), targets)
            return jnp.mean(nats), jnp.mean(hit)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(x, table).compile()

    programs = {name: compiled(way) for name, way in WAYS.items()}
    found = {name: jax.block_until_ready(program(x, table)) for name, program in programs.items()}
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        off = float(jnp.linalg.norm(one - other) / jnp.maximum(jnp.linalg.norm(one), 1e-30))
        assert off < 1e-5, f"the two ways differ by {off}"
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(x, table))
            times[name].append(time.perf_counter() - start)
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    pairs = zip(times["chunked"], times["plain"], strict=True)
    return {
        **{
            name: {
                "temporary_mib": round(memory[name] / 2**20, 1),
                "median_ms": round(1e3 * statistics.median(times[name]), 1),
                "ms": [round(1e3 * t, 1) for t in times[name]],
            }
            for name in programs
        },
        "memory_ratio": round(memory["chunked"] / memory["plain"], 3),
        "time_ratio": round(statistics.median(a / b for a, b in pairs), 3),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="benchmarks/results/loss_memory.json")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error(f"--repeats={args.repeats}: a median wants at least 5")
    jax.config.update("jax_default_matmul_precision", "highest")

    rows = {name: measure(shape, args.repeats) for name, shape in SHAPES.items()}
    record.write(
        args.out, ("jax",), repeats=args.repeats, logits_of_a_chunk=chunked_cross_entropy.MAX_LOGITS, rows=rows
    )
    for name, row in rows.items():
        for way in WAYS:
            print(f"{name:34} {way:8} {row[way]['temporary_mib']:9,.1f} MiB {row[way]['median_ms']:9,.1f} ms")
        print(f"{'':34} ratio    {row['memory_ratio']:9.3f}     {row['time_ratio']:9.3f}")


if __name__ == "__main__":
    main()
