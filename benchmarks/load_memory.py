"""Host memory for loading a pretrained network, compared with transformers, each in its own process.

    python -m benchmarks.load_memory [--mib=2048] [--repeats=5] [--out=benchmarks/results/load_memory.json]

A Llama of about `--mib` MiB (in float32) is written in float32 and in bfloat16, then loaded. Memory is the peak of
anonymous resident memory above its value after the imports; pages of the files, which the system may drop, do not
count. The claim: at most the model plus its largest tensor. A ratio is the peak over the size of the loaded parameters,
which are float32.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record

LOADERS = {
    "canon": """
import models
def load(folder):
    return models.load_pretrained(folder)
""",
    "transformers": """
import torch, transformers
transformers.logging.disable_progress_bar()
def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
""",
}
PROBE = """
import sys, threading, time, json
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
{loader}
import numpy, jax
jax.numpy.zeros(1).block_until_ready()
peak, done = anonymous(), False
base = peak
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
start = time.perf_counter()
kept = load(sys.argv[1])
seconds = time.perf_counter() - start
done = True
thread.join()
print(json.dumps({{"peak": max(peak, anonymous()) - base, "seconds": seconds}}))
"""


WRITER = """
import json, sys
from benchmarks.load_memory import write
print(json.dumps(write(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
"""


def write(folder: str, mib: int, dtype: str) -> dict[str, int]:
    """Write a Llama of about `mib` MiB in float32 -> bytes in float32 of the model and of its largest tensor."""
    import jax
    import jax.numpy as jnp

    import models
    from models.core.spec import flatten

    width = 1024
    layer = 4 * width * width + 3 * width * 4 * width
    depth = max(1, (mib * 2**18 - 2 * 32000 * width) // layer)
    model = models.build("llama", vocab=32000, width=width, depth=depth, heads=16, hidden=4 * width)
    variables = {"params": jax.tree.map(lambda s: jnp.full(s.shape, 0.01, dtype), model.specs["params"])}
    models.save_pretrained(model, variables, folder)
    shapes = flatten(model.specs["params"])
    largest = max(s.size // (s.shape[0] if s.names[0] == "layers" else 1) for s in shapes.values())
    return {"model": 4 * model.count(), "largest": 4 * largest}


def measure(folder: str, loader: str) -> dict[str, float]:
    """Peak and seconds of one load, in its own process."""
    return json.loads(_run(PROBE.format(loader=LOADERS[loader]), folder))


def _run(program: str, *argv: str) -> str:
    """The last line of a program's output."""
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/load_memory.json")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error(f"--repeats={args.repeats}: a median wants at least 5")
    rows: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as home:
            folder = str(Path(home) / "hub")
            made = json.loads(_run(WRITER, folder, str(args.mib), dtype))
            found: dict[str, list[dict[str, float]]] = {name: [] for name in LOADERS}
            for _ in range(args.repeats):
                for name in LOADERS:
                    found[name].append(measure(folder, name))
        rows[dtype] = {
            "model_mib": round(made["model"] / 2**20, 1),
            "largest_tensor_mib": round(made["largest"] / 2**20, 1),
            **{
                name: {
                    "peak_mib": round(statistics.median(r["peak"] for r in runs) / 2**20, 1),
                    "ratio": round(statistics.median(r["peak"] for r in runs) / made["model"], 3),
                    "seconds": round(statistics.median(r["seconds"] for r in runs), 2),
                }
                for name, runs in found.items()
            },
        }
    record.write(args.out, ("jax", "torch", "transformers"), repeats=args.repeats, rows=rows)
    for dtype, row in rows.items():
        for name in LOADERS:
            cell = row[name]
            summary = f"{cell['peak_mib']:9,.1f} MiB, {cell['ratio']:.3f} of the model, {cell['seconds']} s"
            print(f"{dtype:9} {name:13} {summary}")


if __name__ == "__main__":
    main()
