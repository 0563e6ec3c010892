"""VGG and ResNet of torch.nn that bear torchvision's and timm's names, and how ours are compared with them."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import pretrained
from models.core.spec import flatten

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")

from tests.support.hub import assert_close  # noqa: E402  (needs both)

nn = torch.nn
CLASSES, B = 5, 6


class Vgg(nn.Module):
    """As torchvision names it; with timm's names the hidden layers are convolutions."""

    def __init__(self, model: models.Model, timm: bool = False) -> None:
        super().__init__()
        c, layers, inputs = model.config, [], model.config.inputs
        for outputs, depth in zip(c.channels, c.depths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1)]
                layers += [nn.BatchNorm2d(outputs)] if c.norm == "batch" else []
                layers += [nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features, self.timm = nn.Sequential(*layers), timm
        self.avgpool = nn.AdaptiveAvgPool2d(c.pool)
        if timm:
            one, two = c.hidden
            self.pre_logits, self.head = nn.Module(), nn.Module()
            self.pre_logits.fc1, self.pre_logits.fc2 = nn.Conv2d(inputs, one, c.pool), nn.Conv2d(one, two, 1)
            self.head.fc = nn.Linear(two, c.classes)
            return
        widths, layers = [inputs * c.pool**2, *c.hidden, c.classes], []
        for i in range(len(widths) - 1):
            layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU(), nn.Dropout(0.0)]
        self.classifier = nn.Sequential(*layers[:-2])

    def forward(self, x: Any) -> Any:
        x = self.avgpool(self.features(x))
        if not self.timm:
            return self.classifier(torch.flatten(x, 1))
        x = torch.relu(self.pre_logits.fc2(torch.relu(self.pre_logits.fc1(x))))
        return self.head.fc(x.flatten(1))


class Block(nn.Module):
    """A basic or bottleneck block with torchvision's names."""

    def __init__(self, c: Any, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        kernels = (3, 3) if c.block == "basic" else (1, 3, 1)
        inner = outputs if c.block == "basic" else outputs // 4 * c.widening
        ends, at = [inputs, *[inner] * (len(kernels) - 1), outputs], 0 if c.stride_first else kernels.index(3)
        for i, k in enumerate(kernels):
            kernel = nn.Conv2d(ends[i], ends[i + 1], k, stride if i == at else 1, k // 2, bias=False)
            setattr(self, f"conv{i + 1}", kernel)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(ends[i + 1]))
        self.count, self.pad, self.stride = len(kernels), outputs - inputs, stride
        if first and c.shortcut == "projection" and (stride > 1 or inputs != outputs):
            kernel = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(kernel, nn.BatchNorm2d(outputs))

    def forward(self, x: Any) -> Any:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        else:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.pad))
        return torch.relu(x + y)


class ResNet(nn.Module):
    """As torchvision names it."""

    def __init__(self, model: models.Model) -> None:
        super().__init__()
        c, inputs, self.imagenet = model.config, model.config.stem_channels, model.config.stem == "imagenet"
        self.conv1 = nn.Conv2d(c.inputs, inputs, *((7, 2, 3) if self.imagenet else (3, 1, 1)), bias=False)
        self.bn1, self.count = nn.BatchNorm2d(inputs), len(c.depths)
        for i, depth in enumerate(c.depths):
            outputs, blocks = c.channels[i] * (c.widening if c.block == "basic" else 1), []
            for j in range(depth):
                stride = 2 if j == 0 and (i > 0 or c.halve_first) else 1
                blocks.append(Block(c, inputs, outputs, stride, j == 0))
                inputs = outputs
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, c.classes)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1) if self.imagenet else x
        for i in range(self.count):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))


def randomise(module: Any, seed: int) -> Any:
    """The module, every parameter and moment random."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if x.ndim > 1:
                x.copy_(torch.randn_like(x) * (2 / x[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                x.copy_(0.5 + torch.rand_like(x))
            elif x.ndim:
                one = 1.0 if name.endswith("weight") else 0.0
                x.copy_(one + 0.3 * torch.randn_like(x))
    return module


def write(module: Any, folder: Path, settings: dict[str, Any] | None) -> Path:
    """Its folder of the hub."""
    from safetensors.torch import save_file

    folder.mkdir()
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(folder)
    else:
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors")
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def read(module: Any, folder: Path, model: models.Model) -> dict[str, np.ndarray]:
    """Its tensors by our paths."""
    found = pretrained.find(model, write(module, folder, None)).variables()
    return {k: np.asarray(v) for k, v in pretrained.leaves(found).items()}


def logits_of(out: Any) -> Any:
    return getattr(out, "logits", out)


def compare(module: Any, model: models.Model, size: int, folder: Path, train: bool) -> None:
    """Logits, loss, every gradient, and in training the moments after it."""
    module.train(train)
    variables = pretrained.find(model, write(module, folder / "network", None)).variables()
    draw = np.random.default_rng(size)
    image = draw.normal(size=(B, size, size + 3, model.config.inputs)).astype(np.float32)
    label = draw.integers(0, model.config.classes, B)
    given = torch.tensor(image.transpose(0, 3, 1, 2))
    logits = logits_of(module(given))
    loss = nn.functional.cross_entropy(logits, torch.tensor(label))
    loss.backward()

    def ours(params: Any) -> Any:
        out = model.apply({**variables, "params": params}, jnp.asarray(image), train=train)
        log_probs = jax.nn.log_softmax(out.value)
        return -jnp.mean(jnp.take_along_axis(log_probs, jnp.asarray(label)[:, None], 1)), out

    (value, out), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables["params"])
    assert_close(out.value, logits.detach())
    assert_close(value, loss.detach())
    after = read(module, folder / "after", model)
    for path, moment in flatten(out.stats).items():
        assert_close(moment, after[f"stats/{path}"])
    slopes = deepcopy(module)
    with torch.no_grad():
        for name, parameter in slopes.named_parameters():
            parameter.copy_(module.get_parameter(name).grad)
    want, found = read(slopes, folder / "gradients", model), flatten(grads)
    whole = np.sqrt(sum(float(np.sum(np.square(want[k], dtype=np.float64))) for k in found))
    for path, grad in found.items():
        if train and model.config.norm == "batch" and path in model.module.ZERO_GRAD:
            assert max(np.linalg.norm(grad), np.linalg.norm(want[path])) < 1e-6 * whole
        else:
            assert_close(grad, want[path], 0.01 * whole / len(found) ** 0.5)


def strict_both_ways(module: Any, model: models.Model, folder: Path, dialect: str | None, **settings: Any) -> None:
    """Ours, saved, are loaded strictly by torch and by us, bit for bit; the config too, where it has a place there."""
    from safetensors.torch import load_file

    variables = pretrained.find(model, write(module, folder / "theirs", None)).variables()
    pretrained.save(model, variables, folder / "ours.safetensors", dialect=dialect)
    theirs = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    saved = load_file(folder / "ours.safetensors")
    assert saved.keys() == theirs.keys()
    assert all(torch.equal(saved[k], v) for k, v in theirs.items())
    module.load_state_dict(saved, strict=True)
    again = pretrained.find(model, folder / "ours.safetensors").variables()
    for path, leaf in pretrained.leaves(variables).items():
        np.testing.assert_array_equal(leaf, pretrained.leaves(again)[path])
