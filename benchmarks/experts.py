"""A mixture-of-experts block, forward and backward: our two dispatches against loops over the experts, in one run.

    python -m benchmarks.experts [--repeats=7] [--out=benchmarks/results/experts.json]

Each round times every contestant once, so that noise of the machine affects all. A ratio is the median over rounds of
the loop's time over the contestant's: above 1 is faster than the loop. Contestants: `dropless` and `dense`,
`models.blocks.moe.dispatch.mixture`; `loop`, one expert after another on all tokens, masked, which is what static
shapes allow in plain JAX; `torch_loop`, PyTorch eager, which gathers each expert's tokens first. Memory is XLA's plan:
bytes of temporaries of the compiled program.
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
from models.blocks.moe import routers
from models.blocks.moe.dispatch import glu, mixture

SIZES = {  # tokens, width, an expert's hidden width, experts, experts per token
    "8 experts, 2 of them": dict(tokens=2048, width=256, hidden=512, experts=8, active=2),
    "64 experts, 6 of them": dict(tokens=2048, width=256, hidden=128, experts=64, active=6),
    "128 experts, 8 of them": dict(tokens=8192, width=2048, hidden=768, experts=128, active=8),  # as Qwen 3's 30b-a3b
}
GPU_ONLY = ("128 experts, 8 of them",)

Block = Callable[[Any, Any, Any], Any]  # x, the router's kernel, experts -> y


def parameters(s: dict[str, int]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """x [1 T D], the router's kernel [D E], experts' matrices."""
    rng = np.random.default_rng(0)
    D, E, F = s["width"], s["experts"], s["hidden"]
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    experts = {k: (0.02 * rng.normal(size=shape)).astype(np.float32) for k, shape in shapes.items()}
    return *(rng.normal(size=n).astype(np.float32) for n in ((1, s["tokens"], D), (D, E))), experts


def ours(s: dict[str, int], dispatch: str) -> Block:
    """The MoE block of the families."""

    def block(x: Any, router: Any, experts: Any) -> Any:
        routes = routers.softmax_then_top(routers.router_logits(x, {"kernel": router}), s["active"], norm_topk=True)
        p = {name: {"kernel": w} for name, w in experts.items()}
        return mixture(x, routes, p, glu("silu"), dispatch=dispatch)[0]

    return block


def loop(s: dict[str, int]) -> Block:
    """One expert after another, on all tokens."""

    def block(x: Any, router: Any, experts: Any) -> Any:
        weights, chosen = jax.lax.top_k(jax.nn.softmax(x @ router), s["active"])
        weights = weights / weights.sum(-1, keepdims=True)
        y = jnp.zeros_like(x)
        for e in range(s["experts"]):
            share = jnp.where(chosen == e, weights, 0).sum(-1, keepdims=True)
            h = jax.nn.silu(x @ experts["gate"][e]) * (x @ experts["up"][e])
            y = y + share * (h @ experts["down"][e])
        return y

    return block


def in_jax(block: Block, s: dict[str, int]) -> tuple[Callable[[], Any], int]:
    """A compiled call of value and gradients of the block, and its bytes of temporaries."""
    given = jax.device_put(parameters(s))
    compiled = jax.jit(jax.value_and_grad(lambda *v: jnp.sum(jnp.sin(block(*v))), (0, 1, 2))).lower(*given).compile()
    return lambda: jax.block_until_ready(compiled(*given)), compiled.memory_analysis().temp_size_in_bytes


def in_torch(s: dict[str, int]) -> Callable[[], Any]:
    """A call of value and gradients in PyTorch: each expert's tokens are gathered, and its outputs added back."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    x, router, experts = parameters(s)
    leaves = [torch.tensor(v, device=device, requires_grad=True) for v in (x[0], router, *experts.values())]

    def once() -> Any:
        x, router, gate, up, down = leaves
        weights, chosen = torch.softmax(x @ router, -1).topk(s["active"])
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for e in range(s["experts"]):
            rows, which = torch.where(chosen == e)
            h = torch.nn.functional.silu(x[rows] @ gate[e]) * (x[rows] @ up[e])
            y = y.index_add(0, rows, (h @ down[e]) * weights[rows, which, None])
        value = torch.sin(y).sum()
        grads = torch.autograd.grad(value, leaves)
        if device == "cuda":
            torch.cuda.synchronize()
        return value.detach(), grads

    return once


def measure(s: dict[str, int], repeats: int) -> dict[str, dict[str, Any]]:
    """Interleaved rounds -> median time, median speed relative to the loop, and bytes of each contestant."""
    blocks = {"loop": loop(s), "dropless": ours(s, "dropless"), "dense": ours(s, "dense")}
    made = {name: in_jax(block, s) for name, block in blocks.items()}
    calls = {name: call for name, (call, _) in made.items()} | {"torch_loop": in_torch(s)}
    values = {name: float(call()[0]) for name, call in calls.items()}
    assert max(values.values()) - min(values.values()) < 1e-3 * max(1, *map(abs, values.values())), values
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, once in calls.items():
            start = time.perf_counter()
            once()
            times[name].append(time.perf_counter() - start)
    return {
        name: {
            "median_ms": round(1e3 * statistics.median(spent), 2),
            "speed_over_loop": round(statistics.median(t / s for t, s in zip(times["loop"], spent, strict=True)), 3),
            "temporary_bytes": made[name][1] if name in made else None,
            "ms": [round(1e3 * s, 2) for s in spent],
        }
        for name, spent in times.items()
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="benchmarks/results/experts.json")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error(f"--repeats={args.repeats}: a median wants at least 5")
    import torch

    sizes = {name: s for name, s in SIZES.items() if name not in GPU_ONLY or jax.default_backend() == "gpu"}
    rows = {name: {**s, "contestants": measure(s, args.repeats)} for name, s in sizes.items()}
    record.write(args.out, ("jax", "torch"), threads=torch.get_num_threads(), repeats=args.repeats, rows=rows)
    for name, row in rows.items():
        for who, cell in row["contestants"].items():
            size = f"{cell['temporary_bytes'] / 2**20:8,.0f} MiB" if cell["temporary_bytes"] else ""
            speed = f"{cell['speed_over_loop']:.2f} of the loop's speed"
            print(f"{name:24} {who:12} {cell['median_ms']:9.1f} ms   {speed} {size}")


if __name__ == "__main__":
    main()
