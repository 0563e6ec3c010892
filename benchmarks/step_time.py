"""The training step of our GPT, CNN, VGG and ResNets beside the same networks in PyTorch eager, in one run.

    python -m benchmarks.step_time [--repeats=7] [--only=NAME] [--before=CHECKOUT] [--explain] [--out=FILE]

Each contestant (benchmarks/contestants.py) has a process of its own. A round asks one after another for a step, the
second of two calls, while the others wait. A ratio is the median over rounds of PyTorch's time over the contestant's:
above 1 is faster. `--only` takes the workloads whose name contains NAME. `--before` adds `canon_before`, our step of
another checkout of Canon. `--explain` prints our programs' largest fusions and their opcodes instead.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import contestants, hlo, record

SCRIPT = Path(contestants.__file__)


class Contestant:
    """A step in a process of its own."""

    def __init__(self, workload: str, who: str, tree: Path = SCRIPT.parent.parent) -> None:
        command = [sys.executable, "-P", str(SCRIPT), workload, who]  # -P: imports come from the tree alone
        self._process = subprocess.Popen(
            command,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.imported = self._read()["imported_mib"]

    def _read(self) -> dict[str, float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} ended with {self._process.wait()}")
        return json.loads(line)

    def measure(self) -> dict[str, float]:
        """One step: `ms`, `faults`, `peak_mib`."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def run(workload: str, repeats: int, before: Path | None) -> dict[str, dict[str, Any]]:
    """Interleaved rounds of a workload's contestants -> their medians and ratios to PyTorch."""
    steps = {who: Contestant(workload, who) for who in contestants.contestants(workload)}
    if before:
        steps["canon_before"] = Contestant(workload, "canon", before)
    rounds = [{who: one.measure() for who, one in steps.items()} for _ in range(repeats)]
    for one in steps.values():
        one.close()
    return {
        who: summarize([r[who] for r in rounds], [r["torch"] for r in rounds], steps[who].imported) for who in steps
    }


def summarize(own: list[dict[str, float]], torch: list[dict[str, float]], imported: float) -> dict[str, Any]:
    """A contestant's medians over rounds; peak memory, and that before its network was built, in MiB."""
    ratios = [t["ms"] / o["ms"] for t, o in zip(torch, own, strict=True)]
    return {
        "median_ms": round(statistics.median(o["ms"] for o in own), 2),
        "speed_over_torch": round(statistics.median(ratios), 3),
        "page_faults": round(statistics.median(o["faults"] for o in own)),
        "peak_mib": round(max(o["peak_mib"] for o in own)),
        "imported_mib": round(imported),
        "ms": [round(o["ms"], 2) for o in own],
    }


def explain(workload: str) -> None:
    """Print what our program of a workload is made of."""
    command = [sys.executable, "-P", str(SCRIPT), workload, "canon", "--explain"]
    tree = str(SCRIPT.parent.parent)
    env = {**os.environ, "PYTHONPATH": tree}
    text = subprocess.run(command, cwd=tree, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"{workload}\n  " + ", ".join(f"{count} {opcode}" for opcode, count in hlo.opcodes(text).most_common(12)))
    for fusion in hlo.fusions(text)[:8]:
        print(f"  {fusion.operands:3} operands, {fusion.instructions:3} instructions  {fusion.name}  {fusion.shape}")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--out", help="default: benchmarks/results/step_time.json, without --only")
    args = parser.parse_args()
    if args.repeats < 7:
        parser.error(f"--repeats={args.repeats}: a median wants at least 7")
    names = [name for name in contestants.WORKLOADS if args.only in name]
    if not names:
        parser.error(f"--only={args.only}: no workload has that in its name: {'; '.join(contestants.WORKLOADS)}")
    if args.explain:
        for name in names:
            explain(name)
        return
    rows = {}
    for name in names:
        rows[name] = run(name, args.repeats, args.before)
        for who, cell in rows[name].items():
            speed = f"{cell['median_ms']:9.1f} ms   {cell['speed_over_torch']:.2f} of PyTorch's speed"
            print(
                f"{name:34} {who:16} {speed}   {cell['page_faults']:7,} faults   {cell['peak_mib']:6,} MiB", flush=True
            )
    if out := args.out or (None if args.only else "benchmarks/results/step_time.json"):
        record.write(out, ("jax", "torch"), cores=os.cpu_count(), repeats=args.repeats, rows=rows)


if __name__ == "__main__":
    main()
