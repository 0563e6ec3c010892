"""Residual networks: each block of convolutions adds its output to its input.

Legend: B batch, Y X image rows and columns, C channels in, O channels out, F channels inside of a bottleneck, J kernel
rows and columns.
Source: He, Zhang, Ren, Sun 2015, arXiv:1512.03385, table 1 and section 4.2; Goyal et al. 2017, arXiv:1706.02677,
section 5.1 (a block's last norm starts at 0); Zagoruyko, Komodakis 2016, arXiv:1605.07146, section 2 (wider blocks).
Deviation: a bottleneck's stride is in its 3 x 3 convolution, as in later published networks; `stride_first` follows the
paper.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp

from models.blocks.vision.convolution import conv, max_pool
from models.core.batch_norm import batch_norm
from models.core.checks import COMPUTE, REMAT, one_of, positive, probability, refuse
from models.core.intermediates import sow
from models.core.layers import ACTIVATIONS, add_bias, dense, linear_specs, norm_specs, stats_specs
from models.core.loop import remat_block, scan_blocks
from models.core.spec import Outputs, Place, Spec, he_normal, lecun_normal, ones, unflatten, unsharded, zeros
from models.core.types import Array, Fields, Inputs, Params, Specs, Stats, Tree, Variables

TRAITS = frozenset({"classifier", "running_stats", "batch_coupled"})
INPUT = "image"
ZERO_GRAD: dict[str, str] = {}
BLOCKS = {"basic": (3, 3), "bottleneck": (1, 3, 1)}  # rows and columns of each convolution's kernel
REDUCTION = 4  # of a bottleneck: its output channels over those of its 3 x 3 convolution
STEMS = {"imagenet": 7, "cifar": 3}  # rows and columns of the kernel
SHORTCUTS = ("projection", "identity")  # the paper's options B and A, for a shortcut that changes shape
NORMS = ("batch", "none")
HEADS = ("classes", "none")

WIDE = (256, 512, 1024, 2048)
CIFAR = dict(stem="cifar", stem_channels=16, channels=(16, 32, 64), shortcut="identity", classes=10)
SIZES: dict[str, Fields] = {
    "resnet18": dict(block="basic", depths=(2, 2, 2, 2), channels=(64, 128, 256, 512)),
    "resnet34": dict(block="basic", depths=(3, 4, 6, 3), channels=(64, 128, 256, 512)),
    "resnet50": dict(block="bottleneck", depths=(3, 4, 6, 3), channels=WIDE),
    "resnet101": dict(block="bottleneck", depths=(3, 4, 23, 3), channels=WIDE),
    "resnet152": dict(block="bottleneck", depths=(3, 8, 36, 3), channels=WIDE),
    "wide_resnet50_2": dict(block="bottleneck", depths=(3, 4, 6, 3), channels=WIDE, widening=2),
    "wide_resnet101_2": dict(block="bottleneck", depths=(3, 4, 23, 3), channels=WIDE, widening=2),
    **{f"resnet{6 * n + 2}": dict(block="basic", depths=(n, n, n), **CIFAR) for n in (3, 5, 7, 9, 18)},
}


@dataclass(frozen=True)
class Config:
    """Shape and options of a residual network."""

    inputs: int = 3  # channels of an image
    stem: str = "imagenet"  # 7 x 7 of stride 2, then a pool of stride 2; cifar: 3 x 3, for 32 x 32 images
    stem_channels: int = 64
    block: str = "basic"
    depths: tuple[int, ...] = (2, 2, 2, 2)  # blocks of each stage
    channels: tuple[int, ...] = (64, 128, 256, 512)  # out of each stage
    widening: int = 1  # factor on the channels of the 3 x 3 convolutions
    stride_first: bool = False  # a stage's stride is in a block's first convolution, even if that is 1 x 1
    halve_first: bool = False  # the first stage has stride 2 too
    shortcut: str = "projection"
    norm: str = "batch"
    zero_init: bool = False  # the last norm (or kernel) of each block starts at 0
    activation: str = "relu"  # after the stem and after each sum
    inner_activation: str = "relu"  # between the convolutions of a block
    head: str = "classes"  # the output: scores of classes, or with none the mean over the last map
    classes: int = 1000
    momentum: float = 0.9  # decay of the running moments per update
    eps: float = 1e-5
    compute: str = "float32"
    remat: str = "none"  # rematerialisation: a key of REMAT
    scan: bool | None = None  # compile the blocks of a stage as one loop; False unrolls; None: `core/loop.py: unroll`

    def __post_init__(self) -> None:
        positive(self, "inputs", "stem_channels", "depths", "channels", "widening", "classes", "eps")
        probability(self, "momentum")
        one_of(self, stem=STEMS, block=BLOCKS, shortcut=SHORTCUTS, norm=NORMS, head=HEADS)
        one_of(self, activation=ACTIVATIONS, inner_activation=ACTIVATIONS, compute=COMPUTE, remat=REMAT)
        if len(self.depths) != len(self.channels) or not self.depths:
            refuse(self, "depths", "one for each of channels")
        if self.block == "bottleneck" and min(self.channels) < REDUCTION:
            refuse(self, "channels", f"{REDUCTION} or more in bottlenecks")
        if self.shortcut == "identity" and widths(self) != sorted(widths(self)):
            refuse(self, "channels", "never fewer than before for shortcut='identity'")

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return sum(self.depths)


def fit(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields that the data determine: `inputs`, from the shape of a row."""
    return {"inputs": shapes["image"][-1]} if "image" in shapes else {}


def traits(c: Config) -> frozenset[str]:
    """The traits of a Config; batch norm couples the rows and keeps running moments."""
    kind = "classifier" if c.head == "classes" else "encoder"
    return frozenset({kind, "running_stats", "batch_coupled"} if c.norm == "batch" else {kind})


class ConvNorm(NamedTuple):
    """A convolution with its normalisation: the path of its leaves, and their sizes."""

    path: str
    inputs: int
    outputs: int
    size: int  # rows and columns of the kernel
    blocks: int = 0  # blocks stacked in the leaves; 0: not stacked
    last: bool = False  # whether it is the last of its block


def widths(c: Config) -> list[int]:
    """Channels out of the stem and of each stage."""
    return [c.stem_channels, *(O * (c.widening if c.block == "basic" else 1) for O in c.channels)]


def stride(c: Config, stage: int) -> int:
    """The stride of a stage's first block."""
    return 2 if stage > 0 or c.halve_first else 1


def conv_norms(c: Config) -> Iterator[ConvNorm]:
    """All convolutions: the stem, and for each stage those of its first block, then those of the others, stacked."""
    yield ConvNorm("stem", c.inputs, c.stem_channels, STEMS[c.stem])
    for i, (C, O) in enumerate(pairwise(widths(c))):
        F = O if c.block == "basic" else O // REDUCTION * c.widening
        for name, count, inputs in (("first", 0, C), ("blocks", c.depths[i] - 1, O)):
            if name == "blocks" and not count:
                continue
            kernels = BLOCKS[c.block]
            ends = [inputs, *[F] * (len(kernels) - 1), O]
            for j, size in enumerate(kernels):
                path = f"stages/{i}/{name}/conv{j + 1}"
                last = j == len(kernels) - 1
                yield ConvNorm(path, ends[j], ends[j + 1], size, count, last)
        if c.shortcut == "projection" and (stride(c, i) > 1 or C != O):
            yield ConvNorm(f"stages/{i}/first/shortcut", C, O, 1)


def specs(c: Config) -> Specs:
    """Specs of the parameters, and of the running moments if batch norm is on."""
    params: dict[str, Specs] = {}  # by path of a convolution
    stats: dict[str, Specs] = {}
    for unit in conv_norms(c):
        C, O, J = unit.inputs, unit.outputs, unit.size
        stack = (unit.blocks,) if unit.blocks else ()
        of_layers = "layers " if stack else ""
        start = zeros if c.zero_init and unit.last else None
        axes = f"{of_layers}rows columns channels_in channels"
        fan_in = "rows columns channels_in"
        if c.norm == "batch":
            norm = norm_specs(O, stack)
            norm["scale"] = replace(norm["scale"], init=start or ones)
            params[unit.path] = {"kernel": Spec((*stack, J, J, C, O), axes, he_normal, fan_in), "norm": norm}
            stats[unit.path] = stats_specs(O, stack)
        else:
            kernel = Spec((*stack, J, J, C, O), axes, start or he_normal, fan_in)
            params[unit.path] = {"kernel": kernel, "bias": Spec((*stack, O), f"{of_layers}norm", zeros)}
    tree = unflatten(params)
    if c.head == "classes":
        tree["head"] = linear_specs(widths(c)[-1], c.classes, "embed classes", lecun_normal, "classes")
    return {"params": tree, "stats": unflatten(stats)}


def apply(
    variables: Variables,
    inputs: Inputs,
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: None = None,
    place: Place = unsharded,
) -> Outputs:
    """Class scores, or means over the last map, float32: image [B Y X C] -> [B classes] or [B O].

    In training also the new running moments.
    """
    p = variables["params"]
    stats = variables.get("stats", {})
    act = ACTIVATIONS[c.activation]
    inner = ACTIVATIONS[c.inner_activation]
    maps = place("batch rows columns width")
    kernels = BLOCKS[c.block]
    strided = 0 if c.stride_first else kernels.index(3)

    def unit(x: Array, p: Params, stats: Stats, step: int = 1) -> tuple[Array, Stats]:
        x = conv(x, p["kernel"], p["kernel"].shape[0] // 2, maps, step)
        if c.norm == "none":
            return add_bias(x, p["bias"]), stats
        return batch_norm(x, p["norm"], stats, train=train, momentum=c.momentum, eps=c.eps)

    def block(x: Array, layer: tuple[Params, Stats], step: int = 1) -> tuple[Array, Stats]:
        p, stats = layer
        moved = {}
        y = x
        for i in range(len(kernels)):
            name = f"conv{i + 1}"
            y, moved[name] = unit(inner(y) if i else y, p[name], _subtree(stats, name), step if i == strided else 1)
        if "shortcut" in p:
            x, moved["shortcut"] = unit(x, p["shortcut"], _subtree(stats, "shortcut"), step)
        elif x.shape != y.shape:  # every step-th pixel, padded with channels of 0
            x = jnp.pad(x[:, ::step, ::step], [*[(0, 0)] * 3, (0, y.shape[-1] - x.shape[-1])])
        x = act(x + y)
        sow("feature_maps", x)
        return x, moved

    x = inputs["image"].astype(COMPUTE[c.compute])
    x, stem = unit(x, p["stem"], _subtree(stats, "stem"), 2 if c.stem == "imagenet" else 1)
    x = act(x) if c.stem == "cifar" else max_pool(act(x), 3, 2, 1)
    stages: Stats = {}
    for i, depth in enumerate(c.depths):
        own = p["stages"][str(i)]
        mine = _subtree(stats, "stages", str(i))
        first = remat_block(partial(block, step=stride(c, i)), c.remat)
        x, moved = first(x, (own["first"], _subtree(mine, "first")))
        stages[str(i)] = {"first": moved}
        if depth > 1:
            layers = (own["blocks"], _subtree(mine, "blocks"))
            x, moved = scan_blocks(block, x, layers, depth - 1, remat=c.remat, scan=c.scan)
            stages[str(i)]["blocks"] = moved
    x = jnp.mean(x, (1, 2))
    value = dense(x, p["head"], place("batch classes"), jnp.float32) if c.head == "classes" else x.astype(jnp.float32)
    return Outputs(value, stats={"stem": stem, "stages": stages} if c.norm == "batch" else {})


def _subtree(tree: Tree, *names: str) -> Tree:
    """The subtree at a path, or {}: without norms there are no moments."""
    for name in names:
        tree = tree.get(name, {})
    return tree
