"""The multilayer perceptron; with no hidden layer, the perceptron.

Legend: B batch, F the width of a layer. Images are flattened, row by row.
Source: Rosenblatt 1958, "The perceptron", Psychological Review 65; Rumelhart, Hinton, Williams 1986, Nature 323;
Nielsen 2015, "Neural networks and deep learning", chapter 1 for the size `nielsen`, whose weights start with a standard
deviation of 1/sqrt(fan-in), as his chapter 3 advises, instead of 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp

from models.blocks.autodiff import backprop, scalar
from models.core.checks import COMPUTE, not_negative, one_of, positive, probability
from models.core.intermediates import sow
from models.core.layers import ACTIVATIONS, dense, dropout, linear_specs
from models.core.spec import Outputs, Place, Spec, he_normal, lecun_normal, normal, unsharded, zeros
from models.core.types import Array, Fields, Inputs, Params, Specs, Variables

TRAITS = frozenset({"classifier"})
INPUT = "features"
ZERO_GRAD: dict[str, str] = {}
INITIALIZERS = {"lecun_normal": lecun_normal, "he_normal": he_normal, "zeros": zeros}
GRADIENTS: dict[str, Callable[..., tuple[Array, Params]]] = {  # sources of the gradient other than jax.grad
    "equations": backprop.gradient,
    "scalar": scalar.gradient,
}

SIZES: dict[str, Fields] = {
    "perceptron": dict(hidden=(), init="zeros"),
    "nielsen": dict(inputs=784, hidden=(30,), classes=10, activation="sigmoid", output="sigmoid", bias_std=1.0),
}


@dataclass(frozen=True)
class Config:
    """Widths from input to output, activations and initial values."""

    inputs: int = 2
    hidden: tuple[int, ...] = (16,)
    classes: int = 2
    activation: str = "tanh"
    output: str = "identity"  # activation of the last layer
    init: str = "lecun_normal"  # initializer of the weights: a key of INITIALIZERS
    bias_std: float | None = None  # standard deviation of the initial biases; None: they start at 0
    dropout: float = 0.0  # probability, after each hidden layer
    compute: str = "float32"

    def __post_init__(self) -> None:
        positive(self, "inputs", "hidden", "classes")
        probability(self, "dropout")
        not_negative(self, "bias_std")
        one_of(self, activation=ACTIVATIONS, output=ACTIVATIONS, init=INITIALIZERS, compute=COMPUTE)


def fit(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields that the data determine: `inputs`, from the shape of a row."""
    return {"inputs": math.prod(shapes["features"] if "features" in shapes else shapes["image"])}


def specs(c: Config) -> Specs:
    """Specs of the parameters."""

    def layer(i: int, o: int, axes: str, out_axis: str) -> dict[str, Spec]:
        table = linear_specs(i, o, axes, INITIALIZERS[c.init], out_axis)
        return table if c.bias_std is None else {**table, "bias": Spec((o,), out_axis, normal(c.bias_std))}

    widths = (c.inputs, *c.hidden)
    hidden: Specs = {}
    for i, (n, m) in enumerate(pairwise(widths)):
        hidden[str(i)] = layer(n, m, "inputs mlp" if i == 0 else "embed mlp", "mlp")
    head = layer(widths[-1], c.classes, "embed classes" if c.hidden else "inputs classes", "classes")
    return {"params": {"hidden": hidden, "head": head} if hidden else {"head": head}}


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
    """Class scores (after `output`), float32: features [B F] or image [B Y X C] -> [B classes]."""
    p = variables["params"]
    keys = key if train else None
    x = inputs["features"] if "features" in inputs else inputs["image"]
    x = jnp.reshape(x, (x.shape[0], -1)).astype(COMPUTE[c.compute])
    for i in range(len(c.hidden)):
        x = ACTIVATIONS[c.activation](dense(x, p["hidden"][str(i)], place("batch width")))
        sow("hidden", x)
        x = dropout(x, keys, c.dropout, f"hidden{i}", place("batch width"))
    x = dense(x, p["head"], place("batch classes"), jnp.float32)
    return Outputs(ACTIVATIONS[c.output](x))
