"""A convolution, its two gradients and the gradient of pooling: ours, XLA's own, and PyTorch eager's.

    python -m benchmarks.convolution [--repeats=7] [--out=benchmarks/results/convolution.json]

On CPU the gradients of `models.blocks.vision.convolution` are hand-written (docs/decisions/0019), and `canon` is
compiled with the options of a run (0039). `xla` is jax's own gradient of `lax.conv_general_dilated` and
`lax.reduce_window`, `torch` is PyTorch's. `looped` is a layer with equal input and output channels, three times by
`lax.scan`, both gradients together, as in a network of scanned blocks; only on small images, as XLA takes seconds.

Each round times every contestant, so that noise of the machine affects all. The second of two calls is timed, so that
its own threads are awake and the threads of the contestant before are asleep. A ratio is the median over rounds of a
contestant's time over ours: above 1 ours is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import record
from models.blocks.vision.convolution import DIMS, conv, max_pool
from train.update.compile import cpu_options

SHAPES = {  # images, rows and columns, channels in and out, kernel
    "128 x 28 x 28, 1 to 64, 3 x 3": (128, 28, 1, 64, 3),
    "128 x 28 x 28, 16 to 16, 3 x 3": (128, 28, 16, 16, 3),
    "128 x 14 x 14, 32 to 32, 3 x 3": (128, 14, 32, 32, 3),
    "128 x 14 x 14, 64 to 128, 3 x 3": (128, 14, 64, 128, 3),
    "128 x 7 x 7, 128 to 256, 3 x 3": (128, 7, 128, 256, 3),
    "8 x 56 x 56, 64 to 64, 3 x 3": (8, 56, 64, 64, 3),
    "8 x 112 x 112, 64 to 64, 3 x 3": (8, 112, 64, 64, 3),
    "8 x 14 x 14, 256 to 256, 3 x 3": (8, 14, 256, 256, 3),
    "8 x 56 x 56, 64 to 256, 1 x 1": (8, 56, 64, 256, 1),
}
POOLS = {  # images, rows and columns, channels, window, step, padding
    "128 x 28 x 28, 32, 2 x 2": (128, 28, 32, 2, 2, 0),
    "128 x 14 x 14, 64, 2 x 2": (128, 14, 64, 2, 2, 0),
    "8 x 48 x 48, 64, 3 x 3 by 2": (8, 48, 64, 3, 2, 1),
}
LAYERS, LOOPED = 3, 2**20  # of the loop; elements of the images, at most
Once = Callable[[], None]  # one computation, which waits for its result


def ours(x: Any, kernel: Any) -> Any:
    """Our convolution."""
    return conv(x, kernel, kernel.shape[0] // 2)


def plain(x: Any, kernel: Any) -> Any:
    """jax's convolution, differentiated by jax."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=DIMS)


def jit_call(function: Any, *args: Any, options: dict[str, str] | None = None) -> Once:
    """A call of the compiled function with the given arguments; `options` are XLA's."""
    run = jax.jit(function, compiler_options=options)
    run(*args)
    return lambda: jax.block_until_ready(run(*args))  # type: ignore[no-any-return]


def jax_calls(
    layer: Callable[[Any, Any], Any], x: Any, kernel: Any, g: Any, options: dict[str, str] | None = None
) -> dict[str, Once]:
    """The timed computations of a convolution in jax, by name."""

    def looped(x: Any, kernels: Any) -> Any:
        return jax.lax.scan(lambda x, kernel: (layer(x, kernel), None), x, kernels)[0]

    jit_layer = partial(jit_call, options=options)
    calls = {
        "forward": jit_layer(layer, x, kernel),
        "image": jit_layer(lambda x, kernel, g: jax.vjp(lambda x: layer(x, kernel), x)[1](g), x, kernel, g),
        "kernel": jit_layer(lambda x, kernel, g: jax.vjp(lambda kernel: layer(x, kernel), kernel)[1](g), x, kernel, g),
    }
    if x.shape == g.shape and x.size <= LOOPED:
        kernels = np.stack([kernel] * LAYERS)
        calls["looped"] = jit_layer(lambda x, kernels, g: jax.vjp(looped, x, kernels)[1](g), x, kernels, g)
    return calls


def torch_calls(x: Any, kernel: Any, g: Any) -> dict[str, Once]:
    """The timed computations of a convolution in PyTorch, by name."""
    x, g = (torch.tensor(a.transpose(0, 3, 1, 2)).contiguous() for a in (x, g))
    kernel = torch.tensor(kernel.transpose(3, 2, 0, 1)).contiguous()
    pad, loops = kernel.shape[-1] // 2, x.shape == g.shape and x.numel() <= LOOPED

    def looped() -> None:
        leaf, kernels = x.clone().requires_grad_(), [kernel.clone().requires_grad_() for _ in range(LAYERS)]
        y = leaf
        for one in kernels:
            y = torch.nn.functional.conv2d(y, one, padding=pad)
        y.backward(g)

    calls: dict[str, Once] = {
        "forward": lambda: torch.nn.functional.conv2d(x, kernel, padding=pad),
        "image": lambda: torch.nn.grad.conv2d_input(x.shape, kernel, g, padding=pad),
        "kernel": lambda: torch.nn.grad.conv2d_weight(x, kernel.shape, g, padding=pad),
    }
    return calls | ({"looped": looped} if loops else {})


def pools(images: int, side: int, channels: int, size: int, step: int, pad: int) -> dict[str, dict[str, Once]]:
    """The gradient of pooling, including its forward pass, by contestant."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, side, side, channels)).astype(np.float32)
    window, steps, around = (1, size, size, 1), (1, step, step, 1), ((0, 0), (pad, pad), (pad, pad), (0, 0))
    layers = {
        "canon": lambda x: max_pool(x, size, step, pad),
        "xla": lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, steps, around),
    }
    leaf = torch.tensor(x.transpose(0, 3, 1, 2)).contiguous().requires_grad_()

    def theirs() -> None:
        leaf.grad = None
        torch.nn.functional.max_pool2d(leaf, size, step, pad).sum().backward()

    ours = {who: {"pooling": jit_call(jax.value_and_grad(lambda x, f=f: f(x).sum()), x)} for who, f in layers.items()}
    return {**ours, "torch": {"pooling": theirs}}


def convolutions(images: int, side: int, in_channels: int, out_channels: int, size: int) -> dict[str, dict[str, Once]]:
    """The timed computations of a convolution, by contestant."""
    rng = np.random.default_rng(0)
    x, kernel, g = (
        rng.normal(size=s).astype(np.float32)
        for s in (
            (images, side, side, in_channels),
            (size, size, in_channels, out_channels),
            (images, side, side, out_channels),
        )
    )
    return {
        "canon": jax_calls(ours, x, kernel, g, cpu_options()),
        "xla": jax_calls(plain, x, kernel, g),
        "torch": torch_calls(x, kernel, g),
    }


def measure(contestants: dict[str, dict[str, Once]], repeats: int) -> dict[str, dict[str, Any]]:
    """Interleaved rounds -> median milliseconds of each contestant and its ratio to ours, by computation."""
    results = {}
    for part in contestants["canon"]:
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for n in range(repeats + 1):
            for name, parts in contestants.items():
                parts[part]()
                start = time.perf_counter()
                parts[part]()
                if n:  # the first round warms up
                    times[name].append(1e3 * (time.perf_counter() - start))
        results[part] = {
            name: {
                "median_ms": round(statistics.median(durations), 2),
                "over_canon": round(
                    statistics.median(s / c for s, c in zip(durations, times["canon"], strict=True)), 3
                ),
                "ms": [round(s, 2) for s in durations],
            }
            for name, durations in times.items()
        }
    return results


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="benchmarks/results/convolution.json")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error(f"--repeats={args.repeats}: a median wants at least 5")
    rows = {}
    cases = {name: partial(convolutions, *shape) for name, shape in SHAPES.items()}
    for name, case in (cases | {name: partial(pools, *shape) for name, shape in POOLS.items()}).items():
        rows[name] = measure(case(), args.repeats)
        for part, cells in rows[name].items():
            cells_text = (f"{who} {cell['median_ms']:.1f} ms ({cell['over_canon']:.2f})" for who, cell in cells.items())
            print(f"{name:32} {part:8} {', '.join(cells_text)}", flush=True)
    record.write(args.out, ("jax", "torch"), threads=torch.get_num_threads(), repeats=args.repeats, rows=rows)


if __name__ == "__main__":
    main()
