"""Automatic differentiation in the open: reverse mode on single numbers, in plain Python floats.

An expression such as `(x * w + b).tanh()` computes its value at once, and each operation leaves a node behind: a
`Value` that knows the nodes it was computed from and its slope by each of them. `backward` then walks from the result
back to the inputs, multiplies slopes along every path and adds up where paths meet: that is the whole chain rule.

    x, w = Value(2.0), Value(-3.0)
    y = x * w + x                       # x is used twice
    y.backward()
    x.grad, w.grad              # (-2.0, 2.0): w + 1, and x

On top of it stands `gradient`, by which the family `mlp` can be trained with the launcher. To step through it in a
debugger, call `gradient_on_host` with numpy arrays: it is ordinary Python from end to end.

Source: Linnainmaa 1976, BIT 16, 146-160; Griewank, Walther 2008, "Evaluating derivatives", section 3.2. The idea of an
engine this small, shown on two moons, is Karpathy's (micrograd, 2020).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.blocks.autodiff.backprop import check_supported, flat_rows, ordered_layers


class Value:
    """A number, the nodes it was computed from (`parents`), and its partial derivative by each of them (`slopes`).

    An input, such as a weight or a pixel, has no parents. `grad` is filled in by `backward`.
    """

    __slots__ = ("data", "grad", "parents", "slopes")  # these four and no more: small, and quick to make

    def __init__(self, value: float, parents: tuple["Value", ...] = (), slopes: tuple[float, ...] = ()) -> None:
        self.data = value
        self.grad = 0.0
        self.parents = parents
        self.slopes = slopes

    def __repr__(self) -> str:
        return f"Value({self.data:.6g}, grad={self.grad:.6g})"

    def __add__(self, other: "Value | float") -> "Value":
        other = as_value(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __sub__(self, other: "Value | float") -> "Value":
        other = as_value(other)
        return Value(self.data - other.data, (self, other), (1.0, -1.0))

    def __mul__(self, other: "Value | float") -> "Value":
        other = as_value(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def __truediv__(self, other: "Value | float") -> "Value":
        other = as_value(other)
        ratio = self.data / other.data
        return Value(ratio, (self, other), (1 / other.data, -ratio / other.data))

    def __pow__(self, exponent: float) -> "Value":
        """To the power of a plain number. Raises ValueError where that, or its slope, is no real number."""
        slope = exponent * math.pow(self.data, exponent - 1) if exponent else 0.0
        return Value(math.pow(self.data, exponent), (self,), (slope,))

    def __neg__(self) -> "Value":
        return Value(-self.data, (self,), (-1.0,))

    # Where a plain number stands on the left, Python asks the right-hand side.

    def __radd__(self, other: float) -> "Value":
        return as_value(other) + self

    def __rsub__(self, other: float) -> "Value":
        return as_value(other) - self

    def __rmul__(self, other: float) -> "Value":
        return as_value(other) * self

    def __rtruediv__(self, other: float) -> "Value":
        return as_value(other) / self

    def relu(self) -> "Value":
        """max(0, x), with slope 0 at 0. Asked as `<= 0`, so that nan stays nan."""
        return Value(0.0, (self,), (0.0,)) if self.data <= 0 else Value(self.data, (self,), (1.0,))

    def tanh(self) -> "Value":
        """The hyperbolic tangent."""
        t = math.tanh(self.data)
        return Value(t, (self,), (1 - t * t,))

    def sigmoid(self) -> "Value":
        """1 / (1 + e^-x), written with e^-|x|, which cannot overflow."""
        e = math.exp(-abs(self.data))
        s = (e if self.data < 0 else 1.0) / (1 + e)
        return Value(s, (self,), (s * (1 - s),))

    def exp(self) -> "Value":
        """e^x. Raises OverflowError above 709."""
        e = math.exp(self.data)
        return Value(e, (self,), (e,))

    def log(self) -> "Value":
        """The natural logarithm. Raises ValueError at 0 and below."""
        return Value(math.log(self.data), (self,), (1 / self.data,))

    def backward(self) -> None:
        """Set the gradient of every node that this one depends on: the slope of this one by it.

        A node hands its gradient on, times its slopes, only after everything that uses the node has handed it theirs.
        """
        nodes = self.topological_order()
        for node in nodes:
            node.grad = 0.0
        self.grad = 1.0
        for node in reversed(nodes):
            gradient = node.grad
            for parent, slope in zip(node.parents, node.slopes, strict=True):
                parent.grad += slope * gradient

    def topological_order(self) -> list["Value"]:
        """This node and all it depends on, each after its parents: the order in which they could be computed again.

        A depth-first walk with a stack of its own: Python's would end at a depth of 1,000.
        """
        order, met, stack = [], set(), [(self, False)]
        while stack:
            node, parents_done = stack.pop()
            if parents_done:
                order.append(node)
            elif node not in met:
                met.add(node)
                stack.append((node, True))  # comes up again when all that is pushed above it is done
                stack.extend((parent, False) for parent in node.parents if parent not in met)
        return order


def as_value(number: Value | float) -> Value:
    """A plain number as a node without parents; a Value as it is."""
    return number if isinstance(number, Value) else Value(number)


def weighted_sum(weights: list[Value], inputs: list[Value], bias: Value) -> Value:
    """A neuron's sum w1 x1 + ... + wn xn + bias, as one node.

    With `*` and `+` it would be 2n nodes, and slow. Its slopes can be read off: x by w, w by x, and 1 by the bias.
    """
    w, x = [node.data for node in weights], [node.data for node in inputs]
    return Value(sum((a * b for a, b in zip(w, x, strict=True)), bias.data), (*weights, *inputs, bias), (*x, *w, 1.0))


def softmax(value: list[Value], label: int) -> Value:
    """Cross-entropy -log softmax(value)[label], in nats; the largest score is taken off, so that no exp overflows."""
    top = max(score.data for score in value)
    return sum(((score - top).exp() for score in value), Value(0.0)).log() + top - value[label]


def quadratic(value: list[Value], label: int) -> Value:
    """Half the squared distance to the one-hot label (Nielsen 2015, eq. 6)."""
    off = [score - float(n == label) for n, score in enumerate(value)]
    return 0.5 * sum((d * d for d in off), Value(0.0))


def hinge(value: list[Value], label: int) -> Value:
    """max(0, 1 - y s) of the one score s, where y = 2 label - 1."""
    return (1 - (2 * label - 1) * value[0]).relu()


ACTIVATIONS: dict[str, Callable[[Value], Value]] = {
    "identity": lambda x: x,
    "relu": Value.relu,
    "sigmoid": Value.sigmoid,
    "tanh": Value.tanh,
    "scaled_tanh": lambda x: 1.7159 * (x * (2 / 3)).tanh(),
}
LOSSES: dict[str, Callable[[list[Value], int], Value]] = {"softmax": softmax, "quadratic": quadratic, "hinge": hinge}


Layer = tuple[list[list[Value]], list[Value], Callable[[Value], Value]]  # weights by neuron, biases, activation


def network(row: list[float], layers: list[Layer]) -> list[Value]:
    """One row through every layer -> the network's value, a score a class."""
    x = [Value(number) for number in row]
    for neurons, biases, activation in layers:
        x = [activation(weighted_sum(weights, x, b)) for weights, b in zip(neurons, biases, strict=True)]
    return x


def gradient_on_host(params: Any, x: Any, label: Any, share: Any, *, c: Any, loss: str) -> tuple[np.ndarray, Any]:
    """Value [B C] and gradient, like `params`, of sum_b share_b loss_b: x [B F], label [B], share [B], on the host.

    One graph for the whole batch: each parameter is one node, which every row uses.
    """
    nodes = jax.tree.map(lambda p: np.frompyfunc(Value, 1, 1)(np.asarray(p, np.float64)), params)
    layers = [(p["kernel"].T.tolist(), p["bias"].tolist(), ACTIVATIONS[name]) for p, name in ordered_layers(nodes, c)]
    x, label, share = (np.asarray(a).tolist() for a in (x, label, share))
    values = [network(row, layers) for row in x]
    rows = zip(values, label, share, strict=True)
    sum((LOSSES[loss](value, y) * s for value, y, s in rows), Value(0.0)).backward()
    with np.errstate(over="ignore"):  # beyond float32 is inf, as on the device: the trainer skips such an update
        value = np.array([[score.data for score in scores] for scores in values]).astype(np.float32)
        grads = jax.tree.map(lambda n: np.frompyfunc(lambda s: s.grad, 1, 1)(n).astype(np.float32), nodes)
    return value, grads


def gradient(
    params: dict[str, Any], inputs: dict[str, Array], c: Any, loss: str, total: Float[Array, ""] | float
) -> tuple[Float[Array, "b c"], dict[str, Any]]:
    """An mlp's value [B C] and, by the engine, the gradient of sum_b weight_b loss_b / total, like `params`.

    inputs are features [B F] or image [B Y X C], label [B], weight [B]; `total` is the weight of the whole batch, of
    which the rows may be a part. Computed in Python's floats, 64 bits wide, and returned as float32.

    While jit traces there are no numbers yet, only shapes. `jax.pure_callback` puts a call of `gradient_on_host` into
    the compiled program: each time it gets there it hands the numbers to Python, waits, and goes on with what comes
    back. On a mesh they are brought to one device for it. Raises UsageError for what is not written out here.
    """
    check_supported("scalar", c, loss, ACTIVATIONS, LOSSES)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params)
    value = jax.ShapeDtypeStruct((inputs["label"].shape[0], c.classes), jnp.float32)
    host = partial(gradient_on_host, c=c, loss=loss)
    share = inputs["weight"] / total
    return jax.pure_callback(host, (value, shapes), params, flat_rows(inputs), inputs["label"], share)
