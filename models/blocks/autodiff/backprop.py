"""Backpropagation by hand: its four equations, written out for the family `mlp`, without automatic differentiation.

A layer takes activations a [B I], computes z = a @ kernel + bias [B O] and outputs activation(z). Its *error* delta
[B O] is the derivative of the loss by z. From the last layer to the first:

    BP1  delta of the last layer   derivative of the loss by the network's outputs, times that of the activation at z
    BP2  delta of an earlier one   delta of the next layer @ its kernel transposed, times activation's derivative at z
    BP3  gradient of a bias        delta, summed over the rows
    BP4  gradient of a kernel      a transposed @ delta: the input at i times the error at o, summed over the rows

Legend: B batch, I and O features into and out of a layer, C classes.
Source: Rumelhart, Hinton, Williams 1986, Nature 323; numbered as in Nielsen 2015, "Neural networks and deep learning",
chapter 2. Deviations: a kernel is [I O], Nielsen's weights transposed; rows are weighted by their share of the batch's
total weight.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from errors import UsageError
from models.core.layers import ACTIVATIONS, dense, einsum
from models.core.types import Inputs, OutSharding, Params


@runtime_checkable
class MLPConfig(Protocol):
    """What a source of the gradient reads of an mlp's Config."""

    hidden: tuple[int, ...]
    classes: int
    activation: str
    output: str
    dropout: float
    compute: str


DERIVATIVES: dict[str, Callable[[Array], Array]] = {  # of each activation, at z
    "identity": jnp.ones_like,
    "relu": lambda z: (z > 0).astype(z.dtype),
    "sigmoid": lambda z: jax.nn.sigmoid(z) * (1 - jax.nn.sigmoid(z)),
    "tanh": lambda z: 1 - jnp.square(jnp.tanh(z)),
    "scaled_tanh": lambda z: 1.7159 * (2 / 3) * (1 - jnp.square(jnp.tanh(z * (2 / 3)))),
}


def one_hot(label: Int[Array, "b"], classes: int) -> Float[Array, "b c"]:
    """1 at each row's label, else 0: label [B] -> [B C]."""
    return (jnp.arange(classes)[None] == label[:, None]).astype(jnp.float32)


def softmax_derivative(value: Float[Array, "b c"], label: Int[Array, "b"]) -> Float[Array, "b c"]:
    """Derivative of -log softmax(value)[label] by value: the probabilities, minus 1 at the label."""
    return jax.nn.softmax(value, -1) - one_hot(label, value.shape[-1])


def quadratic_derivative(value: Float[Array, "b c"], label: Int[Array, "b"]) -> Float[Array, "b c"]:
    """Derivative of half the squared distance to the one-hot label by value: the difference."""
    return value - one_hot(label, value.shape[-1])


def hinge_derivative(value: Float[Array, "b 1"], label: Int[Array, "b"]) -> Float[Array, "b 1"]:
    """Derivative of max(0, 1 - y value) by value, with y = 2 label - 1: -y inside the margin, else 0."""
    y = (2 * label[:, None] - 1).astype(value.dtype)
    return jnp.where(y * value < 1, -y, 0.0)


LOSS_DERIVATIVES: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": softmax_derivative,
    "quadratic": quadratic_derivative,
    "hinge": hinge_derivative,
}


def output_error(
    loss_derivative: Float[Array, "b o"], z: Float[Array, "b o"], activation: str, row_weight: Float[Array, "b"]
) -> Float[Array, "b o"]:
    """BP1: derivative of each row's loss by the outputs [B O], z of the last layer [B O] -> its error [B O].

    `row_weight` [B], each row's share of the batch's weight, enters only here: BP2 to BP4 are linear in the error.
    """
    return loss_derivative * DERIVATIVES[activation](z) * row_weight[:, None]


def previous_error(
    error: Float[Array, "b o"], kernel: Float[Array, "i o"], z: Float[Array, "b i"], activation: str
) -> Float[Array, "b i"]:
    """BP2: a layer's error [B O] and kernel [I O], z [B I] of the layer before -> the error [B I] of that layer."""
    return einsum("bo,io->bi", error, kernel, sharding_like(z)) * DERIVATIVES[activation](z)


def bias_gradient(error: Float[Array, "b o"]) -> Float[Array, "o"]:
    """BP3: a layer's error [B O] -> the gradient of its bias [O]."""
    return jnp.sum(error, 0)


def kernel_gradient(
    a: Float[Array, "b i"], error: Float[Array, "b o"], kernel: Float[Array, "i o"]
) -> Float[Array, "i o"]:
    """BP4: a layer's input a [B I] and error [B O] -> the gradient of its kernel [I O], sharded like the kernel."""
    return jnp.einsum("bi,bo->io", a, error, out_sharding=sharding_like(kernel))


def gradient(
    params: Params, inputs: Inputs, c: MLPConfig, loss: str, total: Float[Array, ""] | float
) -> tuple[Float[Array, "b c"], Params]:
    """An mlp's outputs [B C] and, by the four equations, the gradient of sum_b weight_b loss_b / total, like `params`.

    inputs are features [B F] or image [B Y X C], label [B], weight [B]; `total` is the weight of the whole batch, of
    which the rows may be a part. Raises UsageError for a Config or loss that is not written out here.
    """
    check_supported("equations", c, loss, DERIVATIVES, LOSS_DERIVATIVES)
    layers = ordered_layers(params, c)
    x = a = flat_rows(inputs)
    ins, sums = [], []  # of each layer: its input, and z
    for p, activation in layers:
        ins.append(a)
        sums.append(dense(a, p, sharding_like(x)))
        a = ACTIVATIONS[activation](sums[-1])
    row_weight = inputs["weight"] / total
    error = output_error(LOSS_DERIVATIVES[loss](a, inputs["label"]), sums[-1], c.output, row_weight)
    grads: list[dict[str, Array]] = []
    for n in reversed(range(len(layers))):
        kernel = layers[n][0]["kernel"]
        grads.insert(0, {"kernel": kernel_gradient(ins[n], error, kernel), "bias": bias_gradient(error)})
        if n > 0:
            error = previous_error(error, kernel, sums[n - 1], c.activation)
    *hidden, head = grads
    tree: Params = {"hidden": {str(n): g for n, g in enumerate(hidden)}} if hidden else {}
    return a, {**tree, "head": head}


def ordered_layers(params: Params, c: MLPConfig) -> list[tuple[Params, str]]:
    """An mlp's layers from first to last, each with the name of its activation."""
    hidden = [(params["hidden"][str(n)], c.activation) for n in range(len(c.hidden))]
    return [*hidden, (params["head"], c.output)]


def flat_rows(inputs: Inputs) -> Float[Array, "b f"]:
    """The network's input, float32: features [B F] or image [B Y X C] -> [B F]."""
    x = inputs["features"] if "features" in inputs else inputs["image"]
    return jnp.reshape(x, (x.shape[0], -1)).astype(jnp.float32)


def sharding_like(x: Array) -> OutSharding:
    """The sharding of x, for a product's `out`; None without a mesh."""
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty else sharding.spec


def check_supported(source: str, c: MLPConfig, loss: str, activations: Iterable[str], losses: Iterable[str]) -> None:
    """Raise UsageError for an mlp's Config or a loss that a source of the gradient has not written out."""
    legal = ", ".join(sorted(activations))
    for name in ("activation", "output"):
        if getattr(c, name) not in activations:
            raise UsageError(f"gradient by {source}: no {name} {getattr(c, name)!r} is written out; legal: {legal}")
    if loss not in losses:
        raise UsageError(f"gradient by {source}: no loss {loss!r} is written out; legal: {', '.join(sorted(losses))}")
    if loss == "hinge" and c.classes != 1:
        raise UsageError(f"gradient by {source}: classes = {c.classes} must be 1 for the loss 'hinge'")
    if c.dropout > 0:
        raise UsageError(f"gradient by {source}: dropout = {c.dropout} must be 0")
    if c.compute != "float32":
        raise UsageError(f"gradient by {source}: compute = {c.compute!r} must be 'float32'")
