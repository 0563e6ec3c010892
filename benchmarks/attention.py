"""Attention by the backends of a CPU against PyTorch's, in one run: forward, and forward with gradients.

    python -m benchmarks.attention [--repeats=7] [--out=benchmarks/results/attention.json]

Each round times every contestant once, so that noise of the machine affects all. A ratio is the median over rounds of
PyTorch's time over the contestant's: above 1 is faster. `torch` is scaled_dot_product_attention with `is_causal`, or
with a mask for a window. `temporary_mib` is what XLA's program needs beside its arguments and results. `--only=NAME`
times the cases whose name contains NAME.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from models.blocks.attention.attention import attention
from models.blocks.attention.mask import AttentionMask

H = 64
CASES: dict[str, dict[str, Any]] = {  # rows, tokens, heads of queries and of keys
    "causal, T 64": dict(shape=(12, 64, 6, 6)),
    "causal, T 128": dict(shape=(8, 128, 6, 6)),
    "causal, T 256": dict(shape=(8, 256, 6, 6)),
    "causal, T 1024": dict(shape=(2, 1024, 6, 6)),
    "causal, T 4096": dict(shape=(1, 4096, 2, 2)),
    "window 256, T 1024": dict(shape=(2, 1024, 6, 6), window=256),
    "window 256, T 4096": dict(shape=(1, 4096, 2, 2), window=256),
    "causal, T 1024, 2 key heads of 8": dict(shape=(2, 1024, 8, 2)),
    "both ways, T 1024": dict(shape=(2, 1024, 6, 6), causal=False),
}
BACKENDS = ("reference", "xla", "blockwise")
PARTS = ("forward", "with_gradients")
Arrays = dict[str, np.ndarray]
Call = Callable[[], None]


def draw(shape: tuple[int, int, int, int]) -> Arrays:
    """Queries, keys, values, and the gradient of the result."""
    B, T, N, K = shape
    rng, heads = np.random.default_rng(0), {"q": N, "k": K, "v": K, "grad": N}
    return {name: rng.normal(size=(B, T, n, H)).astype(np.float32) for name, n in heads.items()}


def ours(backend: str, arrays: Arrays, window: int | None, causal: bool) -> tuple[Call, Call, float]:
    """Forward, forward with gradients, and MiB of temporaries of the latter."""
    at = jnp.arange(arrays["q"].shape[1])[None]
    mask = AttentionMask(at, at, window=window, causal=causal, contiguous=True)
    call = partial(attention, mask=mask, scale=H**-0.5, backend=backend)

    def with_gradients(q: Any, k: Any, v: Any, grad: Any) -> Any:
        out, vjp = jax.vjp(call, q, k, v)
        return out, vjp(grad)

    given = [jnp.asarray(x) for x in arrays.values()]
    forward = jax.jit(call).lower(*given[:3]).compile()
    both = jax.jit(with_gradients).lower(*given).compile()
    temporary = both.memory_analysis().temp_size_in_bytes / 2**20
    return lambda: jax.block_until_ready(forward(*given[:3])), lambda: jax.block_until_ready(both(*given)), temporary


def torch_attention(arrays: Arrays, window: int | None, causal: bool) -> tuple[Call, Call, None]:
    """The same of PyTorch's fused attention, whose memory is not known."""
    import torch

    q, k, v, grad = (torch.tensor(x) for x in arrays.values())
    at = torch.arange(q.shape[1])
    seen = None if window is None else (at[:, None] >= at) & (at[:, None] - at < window)

    def attend(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        how = dict(attn_mask=seen, is_causal=causal and seen is None, enable_gqa=q.shape[1] != k.shape[1])
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **how).transpose(1, 2).contiguous()

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v)

    def both() -> None:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        attend(*leaves).backward(grad)

    return forward, both, None


def measure(shape: tuple[int, int, int, int], window: int | None, causal: bool, repeats: int) -> dict[str, Any]:
    """Interleaved rounds -> for each contestant median milliseconds, ratios to PyTorch and MiB of temporaries."""
    arrays = draw(shape)
    calls = {name: ours(name, arrays, window, causal) for name in BACKENDS}
    found = {**calls, "torch": torch_attention(arrays, window, causal)}
    times: dict[tuple[str, int], list[float]] = {(name, part): [] for name in found for part in (0, 1)}
    for turn in range(repeats + 2):  # the first two warm up
        for (name, part), seconds in times.items():
            start = time.perf_counter()
            found[name][part]()
            if turn > 1:
                seconds.append(time.perf_counter() - start)

    def ratio(name: str, part: int) -> float:
        pairs = zip(times["torch", part], times[name, part], strict=True)
        return round(statistics.median(t / own for t, own in pairs), 3)

    return {
        name: {
            **{f"{word}_ms": round(1e3 * statistics.median(times[name, i]), 2) for i, word in enumerate(PARTS)},
            **{f"{word}_over_torch": ratio(name, i) for i, word in enumerate(PARTS)},
            "temporary_mib": memory if memory is None else round(memory, 1),
        }
        for name, (_, _, memory) in found.items()
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", default="benchmarks/results/attention.json")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error(f"--repeats={args.repeats}: a median wants at least 5")
    import torch

    rows = {}
    for name, case in CASES.items():
        if args.only not in name:
            continue
        rows[name] = measure(**{"window": None, "causal": True, **case}, repeats=args.repeats)
        for who, cell in rows[name].items():
            memory = "" if cell["temporary_mib"] is None else f"{cell['temporary_mib']:8.1f} MiB"
            times = "".join(f"{cell[f'{part}_ms']:9.1f} ms {cell[f'{part}_over_torch']:5.2f}" for part in PARTS)
            print(f"{name:34} {who:10}{times}{memory}", flush=True)
    record.write(args.out, ("jax", "torch"), threads=torch.get_num_threads(), repeats=args.repeats, rows=rows)


if __name__ == "__main__":
    main()
