"""Maps a model's leaves to the tensors of other libraries' files.

Legend: D in, O out of a matrix product.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from types import EllipsisType

import numpy as np

from models.pretrained.formats.interpolate import ResizePositions

LayerNumbers = tuple[int, ...] | None  # the layers of a stack by their numbers in files; None: 0, 1, 2 …


@dataclass(frozen=True)
class Row:
    """One leaf: its path, the tensor's name in files, and `leaf = tensor.reshape(split)[part].transpose(order)`.

    The path of a running statistic begins with `stats/`. Each `{}` in the name is the index of a stacked dim. These are
    the leaf's first dims; `layers`, if given, are the indices of the first one. The other fields describe one tensor:
    `shape` is the tensor's, and other leaves may have other parts of it. A leaf may be padded beyond the tensor. Files
    without the name may have the `older` one. `resize` adapts a tensor of positions on another grid.
    """

    path: str
    name: str
    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    older: str | None = None
    layers: tuple[int, ...] | None = None
    part: tuple[slice | int | EllipsisType, ...] = ()
    resize: ResizePositions | None = None

    def __post_init__(self) -> None:
        assert math.prod(self.split) == math.prod(self.shape)
        assert sorted(self.order) == list(range(len(self.part_shape)))

    @property
    def stacked_dims(self) -> int:
        """The number of the leaf's leading dims that stack tensors."""
        return self.name.count("{}")

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the leaf, or of one layer of a stack, without padding."""
        return tuple(self.part_shape[i] for i in self.order)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of the leaf's part of the split tensor."""
        return np.broadcast_to(0, self.split)[self.part].shape

    def names(self, leaf: tuple[int, ...], older: bool = False) -> list[str]:
        """The names of the tensors of a leaf of shape `leaf`, in the order of their stack."""
        name = self.older or self.name if older else self.name
        numbers: list[Iterable[int]] = [range(n) for n in leaf[: self.stacked_dims]]
        if numbers and self.layers is not None:
            assert len(self.layers) == leaf[0]
            numbers[0] = self.layers
        return [name.format(*index) for index in product(*numbers)]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether the leaf can be made from a tensor of this shape."""
        if self.resize is None or shape == self.shape:
            return shape == self.shape
        return len(shape) == 3 and shape[2] == self.shape[2] and self.resize.accepts(shape)

    def to_leaf(self, tensor: np.ndarray) -> np.ndarray:
        """The leaf, or one layer of it, from the tensor."""
        if self.resize is not None and tensor.shape != self.shape:
            tensor = self.resize(tensor)
        return np.asarray(tensor.reshape(self.split)[self.part]).transpose(self.order)

    def write(self, leaf: np.ndarray, tensor: np.ndarray) -> None:
        """Set the leaf's part of the tensor from the leaf or one layer of it."""
        unpadded = leaf[tuple(slice(n) for n in self.size)]
        tensor.reshape(self.split)[self.part] = unpadded.transpose(np.argsort(self.order))

    def to_tensor(self, leaf: np.ndarray) -> np.ndarray:
        """The tensor, if it has no other leaf's parts, from the leaf or one layer of it."""
        tensor = np.empty(self.shape, leaf.dtype)
        self.write(leaf, tensor)
        return tensor


def same(path: str, name: str, *shape: int, older: str | None = None, layers: LayerNumbers = None) -> Row:
    """A tensor with the leaf's shape and order; `older` and `layers` as in Row, here and below."""
    return Row(path, name, shape, tuple(range(len(shape))), shape, older, layers)


def linear(path: str, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], layers: LayerNumbers = None) -> Row:
    """The weight of a torch.nn.Linear, [O D]; the leaf is [D O], where D and O may be several dims each."""
    n, m = len(outputs), len(inputs)
    order = (*range(n, n + m), *range(n))
    return Row(path, name, (*outputs, *inputs), order, (math.prod(outputs), math.prod(inputs)), layers=layers)


def affine(
    path: str,
    name: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    biased: bool = True,
    layers: LayerNumbers = None,
) -> list[Row]:
    """The weight and, if `biased`, the bias of a torch.nn.Linear."""
    weight = linear(f"{path}/kernel", f"{name}.weight", inputs, outputs, layers=layers)
    order = tuple(range(len(outputs)))
    bias = Row(f"{path}/bias", f"{name}.bias", outputs, order, (math.prod(outputs),), layers=layers)
    return [weight, bias] if biased else [weight]


def conv(path: str, name: str, inputs: int, outputs: int, size: int, layers: LayerNumbers = None) -> Row:
    """The weight of a torch.nn.Conv2d, [O C I J]; the leaf is [I J C O]."""
    shape = (outputs, inputs, size, size)
    return Row(f"{path}/kernel", f"{name}.weight", shape, (2, 3, 1, 0), shape, layers=layers)


def batch_norm(path: str, name: str, width: int, layers: LayerNumbers = None) -> list[Row]:
    """Scale, bias and running moments of a torch.nn.BatchNorm2d, without its count of batches."""
    ours = (f"{path}/norm/scale", f"{path}/norm/bias", f"stats/{path}/mean", f"stats/{path}/var")
    theirs = ("weight", "bias", "running_mean", "running_var")
    return [same(one, f"{name}.{other}", width, layers=layers) for one, other in zip(ours, theirs, strict=True)]


def layer_norm(path: str, name: str, width: int, biased: bool = True) -> list[Row]:
    """The scale and, if `biased`, the bias of a torch.nn.LayerNorm."""
    names = {"scale": "weight", "bias": "bias"} if biased else {"scale": "weight"}
    return [same(f"{path}/{ours}", f"{name}.{theirs}", width) for ours, theirs in names.items()]


def packed_qkv(path: str, weight: str, bias: str, width: int, heads: int, biased: bool) -> list[Row]:
    """Queries, keys and values from one weight [3D D] and, if `biased`, one bias [3D]; each leaf is [D N H]."""
    D, N, H = width, heads, width // heads
    found = []
    for i, name in enumerate("qkv"):
        found.append(Row(f"{path}/{name}/kernel", weight, (3, N, H, D), (2, 0, 1), (3 * D, D), part=(i,)))
        if biased:
            found.append(Row(f"{path}/{name}/bias", bias, (3, N, H), (0, 1), (3 * D,), part=(i,)))
    return found
