"""Generating text on CPU: our `generate` against `transformers`, the same network with the same weights, in one run.

    python -m benchmarks.decoding [--only=TEXT] [--repeats=7] [--out=benchmarks/results/decoding.json]

The network has random weights; `models.save_pretrained` writes it and transformers reads the folder. Both are greedy,
in float32 with the same threads, and must give the same tokens. Each round generates once with each contestant, and the
moment of each token divides it into prefill (up to the first token) and decode (the others). A ratio is the median over
rounds of transformers' time over ours: above 1 is faster. Bytes a token are the parameters that a step reads, once for
all rows, and the keys and values of the cache, at its mean length; their share of the bandwidth is of a sum over a
large array, which both cores read, timed in the same rounds. The weights of the small shape fit into the last cache, so
its share says little. `--only` selects rows whose name contains a text.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from transformers import AutoModelForCausalLM
from transformers.generation import BaseStreamer

import models
from benchmarks import record
from train.generate import sample

SHAPES: dict[str, dict[str, Any]] = {
    "llama 4 x 256": dict(vocab=4096, context=1024, width=256, depth=4, heads=4),
    "llama3.2_1b, depth 4": dict(size="llama3.2_1b", depth=4, context=1024),
}
TOKENS = {  # new tokens, by shape, batch and prompt: fewer where a round takes long
    ("llama 4 x 256", 1, 16): 64,
    ("llama 4 x 256", 1, 500): 64,
    ("llama 4 x 256", 8, 16): 64,
    ("llama 4 x 256", 8, 500): 64,
    ("llama3.2_1b, depth 4", 1, 16): 24,
    ("llama3.2_1b, depth 4", 1, 500): 16,
    ("llama3.2_1b, depth 4", 8, 16): 12,
    ("llama3.2_1b, depth 4", 8, 128): 8,
}
BLOCK = 2**28  # bytes that the bandwidth is measured with

Generated = tuple[np.ndarray, float, float]  # tokens [B n], seconds of prefill and of decode
Contestant = Callable[[np.ndarray, int], Generated]  # prompts [B T], new tokens


def canon(model: models.Model, variables: Any) -> Contestant:
    """Our generator."""

    def run(prompts: np.ndarray, count: int) -> Generated:
        start = time.perf_counter()
        greedy = sample.Sampling(temperature=0)
        chunks = sample.generate(model, variables, list(prompts), jax.random.key(0), count=count, sampling=greedy)
        first = next(chunks)
        middle = time.perf_counter()
        tokens = np.concatenate([first, *chunks], 1)
        return tokens, middle - start, time.perf_counter() - middle

    return run


class Moments(BaseStreamer):
    """Notes when transformers hands over the prompt and each token."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        """Called with the prompt, then with each step's tokens."""
        self.seconds.append(time.perf_counter())

    def end(self) -> None:
        """Called after the last token."""


def transformers(folder: str) -> Contestant:
    """The generator of transformers, with its default attention and cache."""
    import torch

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    net.generation_config.eos_token_id = None

    def run(prompts: np.ndarray, count: int) -> Generated:
        moments, tokens = Moments(), torch.tensor(prompts).long()
        with torch.no_grad():
            made = net.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=count, streamer=moments
            )
        start, first, *_, last = moments.seconds
        return made[:, prompts.shape[1] :].numpy(), first - start, last - first

    return run


def read_seconds() -> Callable[[], float]:
    """Seconds of one pass over BLOCK bytes by both cores, on each call: of three tried, the fastest sum."""
    import torch

    block = torch.ones(BLOCK // 4)

    def once() -> float:
        start = time.perf_counter()
        block.sum()
        return time.perf_counter() - start

    return once


def bytes_per_step(model: models.Model, batch: int, length: float) -> float:
    """Bytes that a step must read: parameters once, without the rows of the embedding, and the cache up to `length`."""
    c = model.config
    table = 0 if c.tied else model.specs["params"]["embed"]["token"].size
    cached = 2 * c.depth * batch * length * c.num_kv_heads * c.head_width
    return 4 * (model.count() - table + cached)


def measure(model: models.Model, batch: int, prompt: int, count: int, repeats: int) -> dict[str, Any]:
    """Interleaved rounds -> tokens a second of each contestant, ratios, and our share of the bandwidth."""
    variables = model.init(jax.random.key(0))
    with tempfile.TemporaryDirectory() as folder:
        models.save_pretrained(model, variables, folder)
        contestants = {"transformers": transformers(folder), "canon": canon(model, variables)}
    prompts = np.random.default_rng(0).integers(0, model.config.vocab, (batch, prompt)).astype(np.int32)
    read = read_seconds()
    found = {name: [run(prompts, count) for _ in range(2)][1][0] for name, run in contestants.items()}
    assert (found["canon"] == found["transformers"]).all(), found
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    reads = [read()]
    for _ in range(repeats):
        for name, run in contestants.items():
            seconds[name].append(run(prompts, count)[1:])
        reads.append(read())
    bandwidth = BLOCK / statistics.median(reads[1:])
    needed = bytes_per_step(model, batch, prompt + count / 2)
    row: dict[str, Any] = {"bandwidth_gb_per_s": round(bandwidth / 1e9, 2), "bytes_per_step": round(needed)}
    for i, (part, tokens) in enumerate({"prefill": batch * prompt, "decode": batch * (count - 1)}.items()):
        times = {name: [pair[i] for pair in pairs] for name, pairs in seconds.items()}
        rates = {name: round(tokens / statistics.median(spent), 1) for name, spent in times.items()}
        ratio = statistics.median(t / s for t, s in zip(times["transformers"], times["canon"], strict=True))
        spent = {name: [round(1e3 * s, 2) for s in each] for name, each in times.items()}
        row[part] = {"tokens_per_s": rates, "speed_over_transformers": round(ratio, 2), "ms": spent}
    steps = {name: rate / batch for name, rate in row["decode"]["tokens_per_s"].items()}
    row["share_of_bandwidth"] = {name: round(needed * rate / bandwidth, 3) for name, rate in steps.items()}
    return row


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", default="benchmarks/results/decoding.json")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error(f"--repeats={args.repeats}: a median wants at least 5")
    import torch

    rows: dict[str, Any] = {}
    for (shape, batch, prompt), count in TOKENS.items():
        name = f"{shape}, batch {batch}, prompt {prompt}"
        if args.only in name:
            model = models.build("llama", **SHAPES[shape])
            rows[name] = {"new_tokens": count, **measure(model, batch, prompt, count, args.repeats)}
    if not rows:
        parser.error(f"--only={args.only} selects none of the rows")
    record.write(args.out, ("jax", "torch", "transformers"), threads=torch.get_num_threads(), rows=rows)
    for name, row in rows.items():
        for part in ("prefill", "decode"):
            rates, ratio = row[part]["tokens_per_s"], row[part]["speed_over_transformers"]
            print(f"{name:46} {part:8}{rates['canon']:10,.0f} tokens/s  {ratio:6.2f} of transformers' speed", end="")
            print(f"  {row['share_of_bandwidth']['canon']:.2f} of the bandwidth" if part == "decode" else "")


if __name__ == "__main__":
    main()
