"""VGG: stages of 3 x 3 convolutions and max pooling, then a perceptron on the last map.

Legend: B batch, Y X image rows and columns, C channels in, O channels out, I J kernel rows and columns, F hidden.
Source: Simonyan, Zisserman 2015, arXiv:1409.1556, table 1, columns A, B, D and E.
Deviations: maps of images of other sizes are pooled to the perceptron's input size, as in torchvision, where the paper
slides the perceptron over the map; weights start as in He et al. 2015, arXiv:1502.01852, instead of from a smaller
network.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from models.blocks.vision.convolution import adaptive_average_pool, conv, max_pool
from models.core.batch_norm import batch_norm
from models.core.checks import COMPUTE, one_of, positive, probability, refuse
from models.core.intermediates import sow
from models.core.layers import ACTIVATIONS, add_bias, dropout, linear, linear_specs, norm_specs, stats_specs
from models.core.spec import Initializer, Outputs, Place, Spec, he_normal, lecun_normal, unsharded, zeros
from models.core.types import Array, Fields, Inputs, Specs, Variables

TRAITS = frozenset({"classifier", "running_stats", "batch_coupled"})
INPUT = "image"
NORMS = ("batch", "none")
ZERO_GRAD = {
    f"stages/{i}/{j}/bias": "adds one number to a channel, which the batch norm after it removes"
    for i in range(5)
    for j in range(4)
}

COLUMNS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2,) * 5, "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
SIZES: dict[str, Fields] = {}
for _name, _depths in COLUMNS.items():
    SIZES[_name] = dict(depths=_depths, norm="none")
    SIZES[f"{_name}_bn"] = dict(depths=_depths, norm="batch")


@dataclass(frozen=True)
class Config:
    """Shape of a VGG."""

    inputs: int = 3  # channels of an image
    channels: tuple[int, ...] = (64, 128, 256, 512, 512)  # of each stage
    depths: tuple[int, ...] = (1, 1, 2, 2, 2)  # convolutions of each stage, which ends with a pool of stride 2
    norm: str = "none"
    activation: str = "relu"
    pool: int = 7  # rows and columns of the map at the perceptron's input
    hidden: tuple[int, ...] = (4096, 4096)
    classes: int = 1000
    dropout: float = 0.5  # probability, after each hidden layer
    momentum: float = 0.9  # decay of the running moments per update
    eps: float = 1e-5
    compute: str = "float32"

    def __post_init__(self) -> None:
        positive(self, "inputs", "channels", "depths", "pool", "hidden", "classes", "eps")
        probability(self, "dropout", "momentum")
        if len(self.depths) != len(self.channels) or not self.depths:
            refuse(self, "depths", "one for each of channels")
        one_of(self, norm=NORMS, activation=ACTIVATIONS, compute=COMPUTE)


def fit(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields that the data determine: `inputs`, from the shape of a row."""
    return {"inputs": shapes["image"][-1]} if "image" in shapes else {}


def traits(c: Config) -> frozenset[str]:
    """The traits of a Config; batch norm couples the rows and keeps running moments."""
    return TRAITS if c.norm == "batch" else frozenset({"classifier"})


def specs(c: Config) -> Specs:
    """Specs of the parameters, and of the running moments if batch norm is on."""
    stages: dict[str, Specs] = {}
    stats: dict[str, Specs] = {}
    C = c.inputs
    axes = "rows columns channels_in channels"
    for i, (O, depth) in enumerate(zip(c.channels, c.depths, strict=True)):
        stage: Specs = {}
        for j in range(depth):
            kernel = Spec((3, 3, C, O), axes, he_normal, fan_in="rows columns channels_in")
            stage[str(j)] = {"kernel": kernel, "bias": Spec((O,), "norm", zeros)}
            if c.norm == "batch":
                stage[str(j)]["norm"] = norm_specs(O)
            C = O
        stages[str(i)] = stage
        if c.norm == "batch":
            stats[str(i)] = {str(j): stats_specs(O) for j in range(depth)}

    def layer(i: int, width: int, axis: str, init: Initializer) -> dict[str, Spec]:
        if i > 0:
            return linear_specs(c.hidden[i - 1], width, f"embed {axis}", init, axis)
        shape = (c.pool, c.pool, C, width)  # the first takes a map
        kernel = Spec(shape, f"rows columns embed {axis}", init, fan_in="rows columns embed")
        return {"kernel": kernel, "bias": Spec((width,), axis, zeros)}

    params: Specs = {
        "stages": stages,
        "hidden": {str(i): layer(i, F, "mlp", he_normal) for i, F in enumerate(c.hidden)},
    }
    params["head"] = layer(len(c.hidden), c.classes, "classes", lecun_normal)
    return {"params": params, "stats": {"stages": stats} if stats else {}}


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

    Raises UsageError for an image too small for the pools of all stages.
    """
    p = variables["params"]
    keys = key if train else None
    act = ACTIVATIONS[c.activation]
    x = inputs["image"].astype(COMPUTE[c.compute])
    stats = variables.get("stats", {}).get("stages", {})
    if min(x.shape[1:3]) < 2 ** len(c.depths):
        refuse(c, "depths", f"fewer, for images of {x.shape[1]} x {x.shape[2]}")
    maps = place("batch rows columns width")
    moved = {i: dict(stage) for i, stage in stats.items()}
    for i, depth in enumerate(c.depths):
        for j in range(depth):
            unit = p["stages"][str(i)][str(j)]
            x = add_bias(conv(x, unit["kernel"], 1, maps), unit["bias"])
            if c.norm == "batch":
                x, moved[str(i)][str(j)] = batch_norm(
                    x, unit["norm"], stats[str(i)][str(j)], train=train, momentum=c.momentum, eps=c.eps
                )
            x = act(x)
            sow("feature_maps", x)
        x = max_pool(x, 2, 2)
    x = adaptive_average_pool(x, c.pool, maps)
    for i in range(len(c.hidden)):
        x = act(linear(_equation(x), x, p["hidden"][str(i)], place("batch width")))
        sow("hidden", x)
        x = dropout(x, keys, c.dropout, f"hidden{i}", place("batch width"))
    return Outputs(
        linear(_equation(x), x, p["head"], place("batch classes"), jnp.float32),
        stats={"stages": moved} if moved else {},
    )


def _equation(x: Array) -> str:
    return "bi,io->bo" if x.ndim == 2 else "byxi,yxio->bo"
