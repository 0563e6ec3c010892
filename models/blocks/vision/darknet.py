"""Darknet's layers, of which its networks are lists: each takes the output before it, or those that it names.

Legend: B batch, Y X image rows and columns, C channels in, O channels out.
Source: Redmon 2013-2016, Darknet: open source neural networks in C, pjreddie.com/darknet.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from errors import UsageError
from models.blocks.vision.convolution import conv, max_pool
from models.core.checks import require, require_choice
from models.core.layers import add_bias, batch_norm, norm_specs
from models.core.spec import Place, Spec, he_normal, ones, zeros

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "leaky": lambda x: jax.nn.leaky_relu(x, 0.1),
    "relu": jax.nn.relu,
    "logistic": jax.nn.sigmoid,
    "mish": jax.nn.mish,
}
EPS = 1e-6  # added to the deviation, not to the variance
Size = tuple[int, int, int]  # Y X C


@dataclass(frozen=True)
class Conv:
    """A convolution with batch norm or a bias, and an activation."""

    filters: int | None  # None: as many as the head that follows asks for
    size: int = 3
    stride: int = 1
    norm: bool = True
    activation: str = "leaky"
    padding: int | None = None  # pixels on each side; None is size // 2

    def __post_init__(self) -> None:
        require(self, "positive", "filters", "size", "stride")
        require(self, "not negative", "padding")
        require_choice(self, activation=ACTIVATIONS)

    @property
    def pad_pixels(self) -> int:
        """Pixels of padding on each side."""
        return self.size // 2 if self.padding is None else self.padding


@dataclass(frozen=True)
class MaxPool:
    """The largest of each window; padded so that stride 1 keeps the size, and others round it up."""

    size: int = 2
    stride: int = 2

    def __post_init__(self) -> None:
        require(self, "positive", "size", "stride")


@dataclass(frozen=True)
class Route:
    """Outputs of other layers side by side, or of each one of `groups` equal parts. Below 0 counts from here."""

    sources: tuple[int, ...]
    groups: int = 1
    group: int = 0

    def __post_init__(self) -> None:
        require(self, "positive", "groups")
        require(self, "not negative", "group")
        require(self, f"below groups = {self.groups}", "group", test=lambda group: group < self.groups)
        require(self, "whole numbers", "sources", test=lambda _: True)
        if not self.sources:
            raise UsageError("darknet: sources = () must name a layer")


@dataclass(frozen=True)
class Shortcut:
    """The sum of the output before and another one."""

    source: int
    activation: str = "linear"

    def __post_init__(self) -> None:
        require(self, "a whole number", "source", test=lambda _: True)
        require_choice(self, activation=ACTIVATIONS)


@dataclass(frozen=True)
class Upsample:
    """Each pixel, `stride` times in rows and columns."""

    stride: int = 2

    def __post_init__(self) -> None:
        require(self, "positive", "stride")


@dataclass(frozen=True)
class Reorg:
    """Blocks of stride x stride pixels become channels, in Darknet's own order."""

    stride: int = 2

    def __post_init__(self) -> None:
        require(self, "positive", "stride")


@dataclass(frozen=True)
class Head:
    """Where boxes are read off: the output before is the result, for some of the network's anchors."""

    mask: tuple[int, ...]

    def __post_init__(self) -> None:
        require(self, "not negative", "mask")


Layer = Conv | MaxPool | Route | Shortcut | Upsample | Reorg | Head


def sources(layer: Layer, at: int) -> tuple[int, ...]:
    """The layers whose outputs a layer takes; -1 is the image. Raises UsageError for one that does not come before."""
    match layer:
        case Route(named):
            found = named
        case Shortcut(source):
            found = (-1, source)
        case _:
            return (at - 1,)
    found = tuple(at + i if i < 0 else i for i in found)
    for i in found:
        if not 0 <= i < at:
            raise UsageError(f"layer {at}, {layer}, must name layers from 0 to {at - 1}")
    return found


def sizes(layers: tuple[Layer, ...], image: Size, anchor_channels: int) -> list[Size]:
    """Rows, columns and channels of every layer's output; `asked` is what a head wants of an anchor.

    Raises UsageError that names the first layer which cannot take what it gets.
    """
    found: list[Size] = []
    for at, layer in enumerate(layers):
        taken = [found[i] if i >= 0 else image for i in sources(layer, at)]
        (y, x, c), planes = taken[0], {size[:2] for size in taken}
        if len(planes) > 1 or (isinstance(layer, Shortcut) and len(set(taken)) > 1):
            raise UsageError(f"layer {at}, {layer}, gets outputs of different sizes: {_join(taken)}")
        match layer:
            case Conv():
                y, x = ((n + 2 * layer.pad_pixels - layer.size) // layer.stride + 1 for n in (y, x))
                after = layers[at + 1 : at + 2]
                heads = [len(head.mask) for head in after if isinstance(head, Head)]
                if layer.filters is None and not heads:
                    raise UsageError(f"layer {at} must say its filters: no head follows it")
                c = heads[0] * anchor_channels if layer.filters is None else layer.filters
            case MaxPool(_, stride):
                y, x = ((n - 1) // stride + 1 for n in (y, x))
            case Route(_, groups):
                channels = [size[2] for size in taken]
                if any(c % groups for c in channels):
                    raise UsageError(f"layer {at} cannot part {_join(channels)} channels into {groups} each")
                c = sum(channels) // groups
            case Upsample(stride):
                y, x = y * stride, x * stride
            case Reorg(stride):
                if y % stride or x % stride or c % stride**2:
                    raise UsageError(f"layer {at} cannot make channels of {stride} x {stride} pixels of {(y, x, c)}")
                y, x, c = y // stride, x // stride, c * stride**2
            case Head(mask):
                if c != len(mask) * anchor_channels:
                    raise UsageError(
                        f"layer {at}, a head, gets {c} channels instead of {len(mask)} x {anchor_channels}"
                    )
        if min(y, x, c) < 1:
            raise UsageError(f"layer {at}, {layer}, leaves nothing of {taken[0]}")
        found.append((y, x, c))
    return found


def _join(parts: Iterable[Any]) -> str:
    return ", ".join(map(str, parts))


def total_stride(layers: tuple[Layer, ...]) -> int:
    """By how much the coarsest output is coarser than the image, where strides divide the sides."""
    found: list[float] = []
    for at, layer in enumerate(layers):
        before = max(found[i] if i >= 0 else 1 for i in sources(layer, at))
        stride = 1 / layer.stride if isinstance(layer, Upsample) else getattr(layer, "stride", 1)
        found.append(before * stride)
    return math.ceil(max(found, default=1))


def specs(layers: tuple[Layer, ...], image: Size, anchor_channels: int) -> dict[str, Any]:
    """The table of every convolution's parameters and running moments, by the layer's number."""
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    shapes = sizes(layers, image, anchor_channels)
    for at, layer in enumerate(layers):
        if not isinstance(layer, Conv):
            continue
        C, O = (shapes[at - 1] if at else image)[2], shapes[at][2]
        axes = "rows columns channels_in channels"
        kernel = Spec((layer.size, layer.size, C, O), axes, he_normal, fan_in="rows columns channels_in")
        if layer.norm:
            params[str(at)] = {"kernel": kernel, "norm": norm_specs(O)}
            stats[str(at)] = {"mean": Spec((O,), "norm", zeros), "var": Spec((O,), "norm", ones)}
        else:
            params[str(at)] = {"kernel": kernel, "bias": Spec((O,), "norm", zeros)}
    return {"params": params, "stats": stats}


def run(
    layers: tuple[Layer, ...],
    variables: dict[str, Any],
    x: Float[Array, "b y x c"],
    *,
    train: bool,
    momentum: float,
    place: Place,
) -> tuple[list[Array], dict[str, Any]]:
    """The outputs of all layers, and the running moments after them: image [B Y X C] -> each [B Y' X' O].

    Of the two ways in which Darknet normalises in training, its processor's and cuDNN's, the batch's variance is the
    biased one, as cuDNN's; the deviation plus 1e-6 divides, as its processor's. What runs is the unbiased variance.
    """
    params, stats = variables["params"], dict(variables["stats"])
    image, found = x, list[Array]()
    for at, layer in enumerate(layers):
        taken = [found[i] if i >= 0 else image for i in sources(layer, at)]
        x = taken[0]
        match layer:
            case Conv():
                p = params[str(at)]
                x = conv(x, p["kernel"], layer.pad_pixels, place("batch rows columns width"), layer.stride)
                if layer.norm:
                    x, stats[str(at)] = batch_norm(
                        x, p["norm"], stats[str(at)], train=train, momentum=momentum, eps=EPS, eps_outside_sqrt=True
                    )
                else:
                    x = add_bias(x, p["bias"])
                x = ACTIVATIONS[layer.activation](x)
            case MaxPool(size, stride):
                sides = ((size - 1) // 2, size // 2)
                x = max_pool(x, size, stride, (sides, sides))
            case Route(_, groups, group):
                x = jnp.concatenate([jnp.split(x, groups, -1)[group] for x in taken], -1)
            case Shortcut(_, activation):
                x = ACTIVATIONS[activation](x + taken[1])
            case Upsample(stride):
                x = upsample(x, stride)
            case Reorg(stride):
                x = reorg(x, stride)
        found.append(x)
    return found, stats


def upsample(x: Float[Array, "b y x c"], stride: int) -> Float[Array, "b y2 x2 c"]:
    """Each pixel stride x stride times: [B Y X C] -> [B Y*s X*s C]."""
    return jnp.repeat(jnp.repeat(x, stride, 1), stride, 2)


def reorg(x: Float[Array, "b y x c"], stride: int) -> Float[Array, "b y2 x2 c2"]:
    """Darknet's [reorg]: [B Y X C] -> [B Y/s X/s C*s*s], not a space-to-depth of the image.

    The numbers, in the order C Y X, are read as an image of C/s^2 channels and Y*s rows of X*s columns; of that image
    the blocks of s x s pixels become channels; and the result is read, in its order C Y X, as one of the new size.
    """
    B, Y, X, C = x.shape
    s = stride
    flat = jnp.moveaxis(x, 3, 1).reshape(B, -1)  # on a mesh, dims are joined or parted, not both at once
    blocks = flat.reshape(B, C // s**2, Y, s, X, s).transpose(0, 3, 5, 1, 2, 4)
    return jnp.moveaxis(blocks.reshape(B, -1).reshape(B, C * s**2, Y // s, X // s), 1, 3)
