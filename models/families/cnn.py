"""Convolutional networks: stages of convolution, normalisation and pooling; LeNet-5 is the size `lenet5`.

Legend: B batch, Y X image rows and columns, C channels in, O channels out, I J kernel rows and columns.
Source: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", section II.B.
Deviations: the paper's figure 3 gives the output codes as pictures, so that CODES below are ten digits redrawn on its
7 x 12 grid; weights start as Gaussians of standard deviation 1/sqrt(fan-in) instead of uniform in +-2.4/fan-in
(appendix A); the distances to the codes are divided by 16, and their softmax omits the constant e^-j of eq. 9.
"""

from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from models.blocks.vision.convolution import conv, max_pool, sum_pool
from models.core.batch_norm import batch_norm
from models.core.checks import COMPUTE, one_of, positive, probability, refuse
from models.core.intermediates import sow
from models.core.layers import (
    ACTIVATIONS,
    add_bias,
    apply_scale,
    dense,
    dropout,
    einsum,
    linear_specs,
    norm_specs,
    stats_specs,
)
from models.core.spec import Initializer, Outputs, Place, Spec, constant, normal, unsharded, zeros
from models.core.types import Array, Fields, Inputs, Specs, Variables

TRAITS = frozenset({"classifier", "running_stats", "batch_coupled"})
INPUT = "image"
ZERO_GRAD: dict[str, str] = {}

SIZES: dict[str, Fields] = {
    "lenet5": dict(
        inputs=(32, 32, 1),
        channels=(6, 16, 120),
        kernel=5,
        padding="VALID",
        sparse=True,
        norm="none",
        pools=("subsample", "subsample", "none"),
        activation="scaled_tanh",
        hidden=(84,),
        head="rbf",
    ),
}

NORMS = ("batch", "none")
POOLS = ("max", "average", "subsample", "none")
HEADS = ("linear", "rbf")
SIGMOIDS = ("scaled_tanh", "tanh", "sigmoid")  # weights of variance 1/fan-in; with others He et al.'s 2/fan-in
TEMPERATURE = 16.0  # divides the distances to the codes, so that a softmax over them is not a step

# Table I of the paper: row o lists which of the 6 maps of S2 feed map o of C3.
LINKS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

CODES = (  # twelve rows of seven columns a digit, a row as the sum of 64 32 16 8 4 2 1
    (0, 28, 34, 65, 65, 65, 65, 65, 65, 34, 28, 0),
    (0, 8, 24, 40, 8, 8, 8, 8, 8, 8, 62, 0),
    (0, 62, 65, 1, 1, 2, 12, 16, 32, 64, 127, 0),
    (0, 127, 2, 4, 8, 28, 2, 1, 1, 65, 62, 0),
    (0, 4, 12, 20, 36, 68, 127, 4, 4, 4, 4, 0),
    (0, 127, 64, 64, 124, 2, 1, 1, 1, 66, 60, 0),
    (0, 30, 32, 64, 64, 94, 97, 65, 65, 34, 28, 0),
    (0, 127, 65, 2, 2, 4, 4, 8, 8, 16, 16, 0),
    (0, 62, 65, 65, 65, 62, 65, 65, 65, 65, 62, 0),
    (0, 28, 34, 65, 65, 67, 61, 1, 1, 2, 60, 0),
)


@dataclass(frozen=True)
class Config:
    """Stages from image to class scores."""

    inputs: tuple[int, ...] = (28, 28, 1)  # Y X C; smaller images are padded with 0 on all sides
    channels: tuple[int, ...] = (32, 64)  # of each stage
    kernel: int = 3  # rows and columns
    padding: str = "SAME"
    sparse: bool = False  # the second stage links maps by the paper's table I
    norm: str = "batch"
    pools: tuple[str, ...] = ("max", "max")  # of each stage, 2 x 2, stride 2
    activation: str = "relu"
    hidden: tuple[int, ...] = (128,)
    head: str = "linear"
    classes: int = 10
    dropout: float = 0.0  # probability, after each hidden layer
    momentum: float = 0.9  # decay of the running moments per update
    eps: float = 1e-5
    compute: str = "float32"

    def __post_init__(self) -> None:
        positive(self, "inputs", "channels", "kernel", "hidden", "classes")
        probability(self, "dropout", "momentum")
        positive(self, "eps")
        one_of(self, padding=("SAME", "VALID"), norm=NORMS, pools=POOLS, head=HEADS)
        one_of(self, activation=ACTIVATIONS, compute=COMPUTE)
        if len(self.inputs) != 3:
            refuse(self, "inputs", "three numbers: rows, columns, channels")
        if len(self.pools) != len(self.channels):
            refuse(self, "pools", "one for each of channels")
        if self.sparse and self.channels[:2] != (6, 16):
            refuse(self, "sparse", "False unless channels start 6, 16")
        if self.head == "rbf" and not (self.hidden[-1:] == (84,) and self.classes == 10):
            refuse(self, "head", "'linear' unless hidden ends in 84 and classes is 10")
        if min(_final_size(self)) <= 0:
            refuse(self, "inputs", f"large enough for {len(self.channels)} stages")


def fit(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields that the data determine: `inputs`, from the shape of a row."""
    return {"inputs": shapes["image"]} if "image" in shapes else {}


def traits(c: Config) -> frozenset[str]:
    """The traits of a Config; batch norm couples the rows and keeps running moments."""
    return TRAITS if c.norm == "batch" else frozenset({"classifier"})


def _final_size(c: Config) -> tuple[int, int]:
    size = list(c.inputs[:2])
    for pool in c.pools:
        shrink = c.kernel - 1 if c.padding == "VALID" else 0
        size = [(n - shrink) // (1 if pool == "none" else 2) for n in size]
    return size[0], size[1]


def specs(c: Config) -> Specs:
    """Specs of the parameters, and of the running moments if batch norm is on."""
    J = c.kernel
    stages: dict[str, Specs] = {}
    stats: Specs = {}

    def init(fan_in: int) -> Initializer:  # given, as a Spec of the sparse stage has no fan-in axis
        return normal((1 if c.activation in SIGMOIDS else 2) ** 0.5 * fan_in**-0.5)

    for i, (C, O) in enumerate(pairwise((c.inputs[2], *c.channels))):
        if c.sparse and i == 1:  # 60 links between maps, each with a kernel of its own
            links = sum(map(len, LINKS))
            kernel = Spec((J, J, links), "rows columns links", init(J * J * links // O), fan_in="rows columns")
        else:
            axes = "rows columns channels_in channels"
            kernel = Spec((J, J, C, O), axes, init(J * J * C), fan_in="rows columns channels_in")
        stages[str(i)] = {"kernel": kernel}
        if c.norm == "batch":  # the norm's bias makes the convolution's redundant
            stages[str(i)]["norm"] = norm_specs(O)
            stats[str(i)] = stats_specs(O)
        else:
            stages[str(i)]["bias"] = Spec((O,), "norm", zeros)
        if c.pools[i] == "subsample":
            stages[str(i)]["pool"] = {"scale": Spec((O,), "norm", constant(0.25)), "bias": Spec((O,), "norm", zeros)}

    Y, X = _final_size(c)
    widths = (Y * X * c.channels[-1], *c.hidden)
    hidden: Specs = {}
    for i, (n, m) in enumerate(pairwise(widths)):
        hidden[str(i)] = linear_specs(n, m, "embed mlp", init(n), "mlp")
    params: Specs = {"stages": stages, "hidden": hidden}
    if c.head == "linear":
        params["head"] = linear_specs(widths[-1], c.classes, "embed classes", init(widths[-1]), "classes")
    return {"params": params, "stats": stats}


def dense_kernel(kernel: Float[Array, "i j links"]) -> Float[Array, "i j c o"]:
    """The dense kernel of a sparse stage, 0 where maps are not linked: [I J links] -> [I J C O]."""
    pairs = [(c, o) for o, maps in enumerate(LINKS) for c in maps]
    onto = np.zeros((len(pairs), 6, len(LINKS)), np.float32)
    onto[(np.arange(len(pairs)), *np.array(pairs).T)] = 1
    return jnp.einsum("ijk,kco->ijco", kernel, onto.astype(kernel.dtype))


def rbf(x: Float[Array, "b f"]) -> Float[Array, "b o"]:
    """Minus the squared distance to each class's code (the paper's eq. 7), over TEMPERATURE: x [B 84] -> [B 10].

    A softmax over it is the MAP criterion of eq. 9 without its constant.
    """
    bits = (np.array(CODES)[:, :, None] >> np.arange(6, -1, -1)) & 1
    codes = jnp.asarray(bits.reshape(len(CODES), 84) * 2.0 - 1.0, x.dtype)
    distance = jnp.sum(x * x, -1, keepdims=True) - 2 * einsum("bf,of->bo", x, codes) + codes.shape[1]
    return -distance / TEMPERATURE


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
    """Class scores, float32: image [B Y X C] -> [B classes]; in training also the new running moments.

    Raises UsageError for an image that is larger than the config's, or has another number of channels.
    """
    p = variables["params"]
    stats = dict(variables.get("stats", {}))
    keys = key if train else None
    x = _pad(inputs["image"], c).astype(COMPUTE[c.compute])
    act = ACTIVATIONS[c.activation]
    for i, pool in enumerate(c.pools):
        stage = p["stages"][str(i)]
        kernel = dense_kernel(stage["kernel"]) if c.sparse and i == 1 else stage["kernel"]
        x = conv(x, kernel, c.padding, place("batch rows columns width"))
        if c.norm == "batch":
            x, stats[str(i)] = batch_norm(x, stage["norm"], stats[str(i)], train=train, momentum=c.momentum, eps=c.eps)
            x = act(x)
        else:
            x = act(add_bias(x, stage["bias"]))
        if pool == "subsample":  # a trained coefficient and bias, then the squashing function
            x = act(add_bias(apply_scale(sum_pool(x, 2, 2), stage["pool"]["scale"]), stage["pool"]["bias"]))
        elif pool == "average":
            x = sum_pool(x, 2, 2) / 4
        elif pool == "max":
            x = max_pool(x, 2, 2)
        sow("feature_maps", x)
    x = jnp.reshape(x, (x.shape[0], -1))
    for i in range(len(c.hidden)):
        x = act(dense(x, p["hidden"][str(i)], place("batch width")))
        sow("hidden", x)
        x = dropout(x, keys, c.dropout, f"hidden{i}", place("batch width"))
    if c.head == "rbf":
        return Outputs(rbf(x.astype(jnp.float32)), stats=stats)
    return Outputs(dense(x, p["head"], place("batch classes"), jnp.float32), stats=stats)


def _pad(image: Array, c: Config) -> Array:
    room = [n - m for n, m in zip(c.inputs, image.shape[1:], strict=True)]
    if min(room[:2]) < 0 or room[2] != 0:
        refuse(c, "inputs", f"{image.shape[1:]} or larger, of as many channels")
    return jnp.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in room)])
