"""Training steps of the same networks by Canon, Linen and PyTorch, each in a process of its own.

    PYTHONPATH=TREE python benchmarks/contestants.py WORKLOAD CONTESTANT [--explain]

builds a step of the checkout TREE, warms it up, prints a line, and measures one call for each line of stdin.
`benchmarks/step_time.py` runs several side by side. Contestants: `canon`, our update as `launch.py train` builds it;
`canon_scanned` and `canon_unrolled`, with that value of `train.scan`; `naive`, a plain Flax Linen program with
optax.adamw; `torch`, PyTorch eager with AdamW.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from cli import process
from configs.knobs import OptimConfig
from train.sharding import mesh
from train.tasks import TASKS
from train.update import optim, step

GPTS = {  # layers, width, heads, context, batch, vocabulary
    "gpt 4x128, context 64, batch 12": dict(depth=4, width=128, heads=4, context=64, batch=12, vocab=65),
    "gpt 6x384, context 256, batch 8": dict(depth=6, width=384, heads=6, context=256, batch=8, vocab=65),
}
CONVNETS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int, int]]] = {  # family, its fields, images
    "cnn 32-64, batch 64": ("cnn", dict(channels=(32, 64), hidden=(128,)), (64, 28, 28, 1)),
    "vgg 32-64-128, 28 x 28, batch 128": (
        "vgg",
        dict(channels=(32, 64, 128), depths=(2, 2, 2), norm="batch", pool=1, hidden=(128,), dropout=0.0, inputs=1),
        (128, 28, 28, 1),
    ),
    "resnet20, 28 x 28, batch 128": ("resnet", dict(size="resnet20", inputs=1), (128, 28, 28, 1)),
    "resnet50, 96 x 96, batch 8": ("resnet", dict(size="resnet50"), (8, 96, 96, 3)),
}

WORKLOADS = (*GPTS, *CONVNETS)
Step = Callable[[], None]  # one update, which waits for its result


def canon(model: models.Model, task: str, batch: dict[str, np.ndarray]) -> tuple[Step, Callable[[], str]]:
    """Our update on one device, as `launch.py train` builds it, and a function that returns its compiled program."""
    place = mesh.make_placement(mesh.make_mesh("dp:1", jax.devices()[:1]), model.specs)
    tx = optim.make(OptimConfig(), model.specs["params"])
    with jax.set_mesh(place.mesh):
        state = step.init_on_mesh(model, tx, place, 0, step.StepOptions())
    update = step.make_step(model, TASKS[task], tx, lambda n: jnp.asarray(1e-3), place, step.StepOptions())
    fields = {k: jax.device_put(v, place.sharding(step.batch_axes(k, v.ndim))) for k, v in batch.items()}

    def once() -> None:
        nonlocal state
        with jax.set_mesh(place.mesh):
            state, metrics = update(state, fields)
        jax.block_until_ready((state, metrics))

    def program() -> str:
        with jax.set_mesh(place.mesh):
            return update.lower(state, fields).compile().as_text()

    return once, program


def linen(module: nn.Module, inputs: np.ndarray, labels: np.ndarray) -> Step:
    """A plain Flax program: apply, cross-entropy, optax.adamw, one jit."""
    tx, x, y = optax.adamw(1e-3, weight_decay=0.0), jnp.asarray(inputs), jnp.asarray(labels)
    variables = module.init(jax.random.key(0), x)
    stats, params = {k: v for k, v in variables.items() if k != "params"}, variables["params"]
    opt = tx.init(params)

    def loss(params: Any, stats: Any) -> Any:
        logits, new = module.apply({"params": params, **stats}, x, mutable=list(stats))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

    def update(params: Any, stats: Any, opt: Any) -> Any:
        grads, stats = jax.grad(loss, has_aux=True)(params, stats)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), stats, opt

    jitted, state = jax.jit(update, donate_argnums=(0, 1, 2)), (params, stats, opt)

    def once() -> None:
        nonlocal state
        state = jax.block_until_ready(jitted(*state))

    return once


class LinenGPT(nn.Module):
    """GPT-2's block from Linen's own modules."""

    shape: Any

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        s = self.shape
        embed = nn.Embed(s["vocab"], s["width"])
        x = embed(tokens) + nn.Embed(s["context"], s["width"])(jnp.arange(tokens.shape[1]))[None]
        for _ in range(s["depth"]):
            mask = nn.make_causal_mask(tokens)
            x = x + nn.MultiHeadDotProductAttention(s["heads"])(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(s["width"])(nn.gelu(nn.Dense(4 * s["width"])(nn.LayerNorm()(x))))
        return embed.attend(nn.LayerNorm()(x))


class LinenCNN(nn.Module):
    """Convolution, batch norm, relu, pooling; twice; then two dense layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in (32, 64):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(width, (3, 3), use_bias=False)(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1))))


def torch_gpt(s: dict[str, int]) -> Any:
    """GPT-2's block from PyTorch's own modules, with tied head and fused attention."""
    import torch
    from torch.nn import functional as F

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w = s["width"]
            self.norm1, self.norm2 = torch.nn.LayerNorm(w), torch.nn.LayerNorm(w)
            self.qkv, self.out = torch.nn.Linear(w, 3 * w), torch.nn.Linear(w, w)
            self.up, self.down = torch.nn.Linear(w, 4 * w), torch.nn.Linear(4 * w, w)

        def forward(self, x: Any) -> Any:
            b, t, w = x.shape
            q, k, v = (y.view(b, t, s["heads"], -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(w, 2))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(a.transpose(1, 2).reshape(b, t, w))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = torch.nn.Embedding(s["vocab"], s["width"])
            self.position = torch.nn.Embedding(s["context"], s["width"])
            self.blocks = torch.nn.Sequential(*(Block() for _ in range(s["depth"])))
            self.norm = torch.nn.LayerNorm(s["width"])

        def forward(self, tokens: Any) -> Any:
            x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
            return self.norm(self.blocks(x)) @ self.token.weight.T

    return Net()


def torch_cnn(c: Any) -> Any:
    """The convolutional network in PyTorch."""
    from torch import nn as t

    (a, b), (h,) = c.channels, c.hidden
    return t.Sequential(
        *(t.Conv2d(1, a, 3, padding=1, bias=False), t.BatchNorm2d(a), t.ReLU(), t.MaxPool2d(2)),
        *(t.Conv2d(a, b, 3, padding=1, bias=False), t.BatchNorm2d(b), t.ReLU(), t.MaxPool2d(2)),
        *(t.Flatten(), t.Linear(49 * b, h), t.ReLU(), t.Linear(h, 10)),
    )


def torch_vgg(c: Any) -> Any:
    """VGG with batch norm as in torchvision, pooled to one pixel."""
    from torch import nn as t

    layers, before = [], c.inputs
    for width, depth in zip(c.channels, c.depths, strict=True):
        for _ in range(depth):
            layers += [t.Conv2d(before, width, 3, padding=1), t.BatchNorm2d(width), t.ReLU(inplace=True)]
            before = width
        layers.append(t.MaxPool2d(2))
    (hidden,) = c.hidden
    head = (t.Linear(before, hidden), t.ReLU(inplace=True), t.Linear(hidden, c.classes))
    return t.Sequential(*layers, t.AdaptiveAvgPool2d(c.pool), t.Flatten(), *head)


def torch_resnet(c: Any) -> Any:
    """He et al.'s residual network: basic blocks or bottlenecks, shortcuts zero-padded or projected."""
    import torch
    from torch import nn as t
    from torch.nn import functional as F

    def unit(i: int, o: int, size: int, stride: int = 1) -> Any:
        return t.Sequential(t.Conv2d(i, o, size, stride, size // 2, bias=False), t.BatchNorm2d(o))

    class Block(t.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            if c.block == "basic":
                self.branch = t.Sequential(unit(i, o, 3, stride), t.ReLU(inplace=True), unit(o, o, 3))
            else:
                parts = unit(i, o // 4, 1), t.ReLU(inplace=True), unit(o // 4, o // 4, 3, stride), t.ReLU(inplace=True)
                self.branch = t.Sequential(*parts, unit(o // 4, o, 1))
            projected = c.shortcut == "projection" and (stride > 1 or i != o)
            self.shortcut = unit(i, o, 1, stride) if projected else None
            self.stride, self.more = stride, o - i

        def forward(self, x: Any) -> Any:
            if self.shortcut is not None:
                around = self.shortcut(x)
            else:
                around = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            return torch.relu(self.branch(x) + around)

    stem = [unit(c.inputs, c.stem_channels, 3 if c.stem == "cifar" else 7, 1 if c.stem == "cifar" else 2), t.ReLU()]
    layers, before = stem + ([] if c.stem == "cifar" else [t.MaxPool2d(3, 2, 1)]), c.stem_channels
    for i, (width, depth) in enumerate(zip(c.channels, c.depths, strict=True)):
        for j in range(depth):
            layers.append(Block(before, width, 2 if i and not j else 1))
            before = width
    return t.Sequential(*layers, t.AdaptiveAvgPool2d(1), t.Flatten(), t.Linear(before, c.classes))


TORCH = {"cnn": torch_cnn, "vgg": torch_vgg, "resnet": torch_resnet}


def torch_step(net: Any, inputs: np.ndarray, labels: np.ndarray) -> Step:
    """PyTorch eager: forward, cross-entropy, backward, AdamW."""
    import torch

    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.0)
    x, y = torch.tensor(inputs), torch.tensor(labels).long().flatten()

    def once() -> None:
        optimizer.zero_grad()
        logits = net(x)
        torch.nn.functional.cross_entropy(logits.reshape(len(y), -1), y).backward()
        optimizer.step()

    return once


# A workload's steps


def language(s: dict[str, int], who: str) -> Step | tuple[Step, Callable[[], str]]:
    """A contestant's step of a GPT."""
    rng = np.random.default_rng(0)
    shape = {name: size for name, size in s.items() if name != "batch"}
    tokens = rng.integers(0, s["vocab"], (s["batch"], s["context"] + 1)).astype(np.int32)
    x, y = tokens[:, :-1], tokens[:, 1:]
    if who == "torch":
        return torch_step(torch_gpt(shape), x, y)
    if who == "naive":
        return linen(LinenGPT(shape), x, y)
    batch = {"tokens": x, "targets": y, "weight": np.ones(x.shape, np.float32)}
    return canon(models.build("gpt", **shape, **SCANS[who]), "next_token", batch)


def images(
    family: str, fields: dict[str, Any], shape: tuple[int, ...], who: str
) -> Step | tuple[Step, Callable[[], str]]:
    """A contestant's step of a classifier of images."""
    rng = np.random.default_rng(0)
    model = models.build(family, **fields, **SCANS.get(who, {}))
    image, label = rng.normal(size=shape).astype(np.float32), rng.integers(0, model.config.classes, shape[0])
    if who == "torch":
        net = TORCH[family](model.config)
        assert sum(p.numel() for p in net.parameters()) == model.count()
        return torch_step(net, image.transpose(0, 3, 1, 2).copy(), label)
    if who == "naive":
        return linen(LinenCNN(), image, label)
    batch = {"image": image, "label": label.astype(np.int32), "weight": np.ones(shape[0], np.float32)}
    return canon(model, "softmax", batch)


SCANS: dict[str, dict[str, Any]] = {"canon": {}, "canon_scanned": {"scan": True}, "canon_unrolled": {"scan": False}}


def contestants(workload: str) -> tuple[str, ...]:
    """The contestants of a workload, PyTorch first."""
    if workload in GPTS:
        return ("torch", *SCANS, "naive")
    family = CONVNETS[workload][0]
    return ("torch", *(SCANS if family == "resnet" else ("canon",)), *(("naive",) if family == "cnn" else ()))


def build(workload: str, who: str) -> tuple[Step, Callable[[], str] | None]:
    """A contestant's step, and a function that returns its compiled program if it is one of ours."""
    made = language(GPTS[workload], who) if workload in GPTS else images(*CONVNETS[workload], who)
    return made if isinstance(made, tuple) else (made, None)


def measure(once: Step) -> dict[str, float]:
    """Milliseconds and page faults of the second of two calls, and the process's peak memory, MiB."""
    once()
    faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    once()
    elapsed, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {"ms": 1e3 * elapsed, "faults": used.ru_minflt - faults, "peak_mib": used.ru_maxrss / 1024}


def main() -> None:
    """Build a step, then measure it once for each line of stdin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("contestant")
    parser.add_argument("--explain", action="store_true")
    args = parser.parse_args()
    if args.contestant.startswith("canon") and hasattr(process, "keep_memory"):  # an older checkout has none
        process.restart_with_huge_pages(os.environ)
        process.keep_memory(os.environ)
    if args.contestant == "torch":
        import torch  # noqa: F401  so that what it takes counts as imported
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    once, program = build(args.workload, args.contestant)
    if args.explain:
        print(program() if program else "")
        return
    once()
    print(json.dumps({"imported_mib": imported}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure(once)), flush=True)


if __name__ == "__main__":
    main()
