"""Darknet's layers. A network is a list of them: each takes the previous output, or the outputs that it names.

Legend: B batch, Y X image rows and columns, C channels in, O channels out.
Source: Redmon 2013-2016, Darknet: open source neural networks in C, pjreddie.com/darknet.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from errors import UsageError
from models.blocks.vision.convolution import conv, max_pool
from models.core.batch_norm import batch_norm
from models.core.checks import check_type, not_negative, one_of, positive, refuse
from models.core.intermediates import sow
from models.core.layers import add_bias, norm_specs, stats_specs
from models.core.spec import Place, Spec, he_normal, zeros
from models.core.types import Specs, Stats, Variables

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "leaky": lambda x: jax.nn.leaky_relu(x, 0.1),
    "relu": jax.nn.relu,
    "logistic": jax.nn.sigmoid,
    "mish": jax.nn.mish,
}
EPS = 1e-6  # added to the standard deviation, not to the variance
Size = tuple[int, int, int]  # Y X C


@dataclass(frozen=True)
class Conv:
    """A convolution with batch norm or a bias, and an activation."""

    filters: int | None  # None: as many as the head after it needs
    size: int = 3
    stride: int = 1
    norm: bool = True
    activation: str = "leaky"
    padding: int | None = None  # pixels on each side; None is size // 2

    def __post_init__(self) -> None:
        positive(self, "filters", "size", "stride")
        not_negative(self, "padding")
        one_of(self, activation=ACTIVATIONS)

    @property
    def pad_pixels(self) -> int:
        """Pixels of padding on each side."""
        return self.size // 2 if self.padding is None else self.padding


@dataclass(frozen=True)
class MaxPool:
    """Max pooling, padded so that stride 1 keeps the size, and other strides round it up."""

    size: int = 2
    stride: int = 2

    def __post_init__(self) -> None:
        positive(self, "size", "stride")


@dataclass(frozen=True)
class Route:
    """Other layers' outputs, concatenated by channel; with `groups`, only that part of each. Below 0 is relative."""

    sources: tuple[int, ...]
    groups: int = 1
    group: int = 0

    def __post_init__(self) -> None:
        positive(self, "groups")
        not_negative(self, "group")
        if self.group >= self.groups:
            refuse(self, "group", f"below groups = {self.groups}")
        check_type(type(self), "sources", self.sources)
        if not self.sources:
            raise UsageError("darknet: sources = () must name a layer")


@dataclass(frozen=True)
class Shortcut:
    """The sum of the previous output and another layer's."""

    source: int
    activation: str = "linear"

    def __post_init__(self) -> None:
        check_type(type(self), "source", self.source)
        one_of(self, activation=ACTIVATIONS)


@dataclass(frozen=True)
class Upsample:
    """Each pixel repeated `stride` times along rows and columns."""

    stride: int = 2

    def __post_init__(self) -> None:
        positive(self, "stride")


@dataclass(frozen=True)
class Reorg:
    """Blocks of stride x stride pixels become channels, in Darknet's order."""

    stride: int = 2

    def __post_init__(self) -> None:
        positive(self, "stride")


@dataclass(frozen=True)
class Head:
    """A detection head: the previous output is a result of the network, for the anchors numbered in `mask`."""

    mask: tuple[int, ...]

    def __post_init__(self) -> None:
        not_negative(self, "mask")


Layer = Conv | MaxPool | Route | Shortcut | Upsample | Reorg | Head


def sources(layer: Layer, at: int) -> tuple[int, ...]:
    """The layers whose outputs layer `at` takes; -1 is the image. Raises UsageError for a later source."""
    match layer:
        case Route(named):
            inputs = named
        case Shortcut(source):
            inputs = (-1, source)
        case _:
            return (at - 1,)
    inputs = tuple(at + i if i < 0 else i for i in inputs)
    for i in inputs:
        if not 0 <= i < at:
            raise UsageError(f"layer {at}, {layer}, must name layers from 0 to {at - 1}")
    return inputs


def sizes(layers: tuple[Layer, ...], image: Size, anchor_channels: int) -> list[Size]:
    """Rows, columns and channels of every layer's output; a head needs `anchor_channels` channels for each anchor.

    Raises UsageError that names the first layer that cannot take its inputs.
    """
    outputs: list[Size] = []
    for at, layer in enumerate(layers):
        inputs = [outputs[i] if i >= 0 else image for i in sources(layer, at)]
        y, x, c = inputs[0]
        planes = {size[:2] for size in inputs}
        if len(planes) > 1 or (isinstance(layer, Shortcut) and len(set(inputs)) > 1):
            raise UsageError(f"layer {at}, {layer}, gets outputs of different sizes: {_join(inputs)}")
        match layer:
            case Conv():
                y, x = ((n + 2 * layer.pad_pixels - layer.size) // layer.stride + 1 for n in (y, x))
                after = layers[at + 1 : at + 2]
                heads = [len(head.mask) for head in after if isinstance(head, Head)]
                if layer.filters is None and not heads:
                    raise UsageError(f"layer {at} needs a number of filters: no head follows it")
                c = heads[0] * anchor_channels if layer.filters is None else layer.filters
            case MaxPool(_, stride):
                y, x = ((n - 1) // stride + 1 for n in (y, x))
            case Route(_, groups):
                channels = [size[2] for size in inputs]
                if any(c % groups for c in channels):
                    raise UsageError(f"layer {at} cannot split {_join(channels)} channels into {groups} groups each")
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
            raise UsageError(f"layer {at}, {layer}, has an empty output for an input of {inputs[0]}")
        outputs.append((y, x, c))
    return outputs


def _join(parts: Iterable[object]) -> str:
    return ", ".join(map(str, parts))


def total_stride(layers: tuple[Layer, ...]) -> int:
    """The stride of the coarsest output relative to the image."""
    strides: list[float] = []
    for at, layer in enumerate(layers):
        before = max(strides[i] if i >= 0 else 1 for i in sources(layer, at))
        stride = 1 / layer.stride if isinstance(layer, Upsample) else getattr(layer, "stride", 1)
        strides.append(before * stride)
    return math.ceil(max(strides, default=1))


def specs(layers: tuple[Layer, ...], image: Size, anchor_channels: int) -> Specs:
    """Specs of the convolutions' parameters and running moments, by layer number."""
    params: Specs = {}
    stats: Specs = {}
    shapes = sizes(layers, image, anchor_channels)
    for at, layer in enumerate(layers):
        if not isinstance(layer, Conv):
            continue
        C, O = (shapes[at - 1] if at else image)[2], shapes[at][2]
        axes = "rows columns channels_in channels"
        kernel = Spec((layer.size, layer.size, C, O), axes, he_normal, fan_in="rows columns channels_in")
        if layer.norm:
            params[str(at)] = {"kernel": kernel, "norm": norm_specs(O)}
            stats[str(at)] = stats_specs(O)
        else:
            params[str(at)] = {"kernel": kernel, "bias": Spec((O,), "norm", zeros)}
    return {"params": params, "stats": stats}


def run(
    layers: tuple[Layer, ...],
    variables: Variables,
    x: Float[Array, "b y x c"],
    *,
    train: bool,
    momentum: float,
    place: Place,
) -> tuple[list[Array], Stats]:
    """The outputs of all layers, and the new running moments: image [B Y X C] -> each [B Y' X' O].

    Darknet normalises in training in two ways, on the CPU and by cuDNN. Here the batch variance is biased, as cuDNN's,
    and the divisor is the standard deviation plus 1e-6, as on the CPU. The running variance is unbiased.
    """
    params = variables["params"]
    stats = dict(variables["stats"])
    image = x
    outputs = list[Array]()
    for at, layer in enumerate(layers):
        inputs = [outputs[i] if i >= 0 else image for i in sources(layer, at)]
        x = inputs[0]
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
                x = jnp.concatenate([jnp.split(x, groups, -1)[group] for x in inputs], -1)
            case Shortcut(_, activation):
                x = ACTIVATIONS[activation](x + inputs[1])
            case Upsample(stride):
                x = upsample(x, stride)
            case Reorg(stride):
                x = reorg(x, stride)
        sow("feature_maps", x)
        outputs.append(x)
    return outputs, stats


def upsample(x: Float[Array, "b y x c"], stride: int) -> Float[Array, "b y2 x2 c"]:
    """Each pixel repeated stride x stride times: [B Y X C] -> [B Y*s X*s C]."""
    return jnp.repeat(jnp.repeat(x, stride, 1), stride, 2)


def reorg(x: Float[Array, "b y x c"], stride: int) -> Float[Array, "b y2 x2 c2"]:
    """Darknet's [reorg]: [B Y X C] -> [B Y/s X/s C*s*s]; it is not a space-to-depth of the image.

    The numbers in the order C Y X are reinterpreted as an image of C/s^2 channels, Y*s rows and X*s columns. The blocks
    of s x s pixels of that image become channels, and the result in the order C Y X is reinterpreted in the new size.
    """
    B, Y, X, C = x.shape
    s = stride
    flat = jnp.moveaxis(x, 3, 1).reshape(B, -1)  # on a mesh a reshape may merge or split dims, not both
    blocks = flat.reshape(B, C // s**2, Y, s, X, s).transpose(0, 3, 5, 1, 2, 4)
    return jnp.moveaxis(blocks.reshape(B, -1).reshape(B, C * s**2, Y // s, X // s), 1, 3)
