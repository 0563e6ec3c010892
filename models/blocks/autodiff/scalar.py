"""Scalar automatic differentiation: reverse mode on single numbers, in plain Python floats.

An expression such as `(x * w + b).tanh()` is computed at once, and each operation makes a node: a `Value` that stores
the nodes it was computed from and its partial derivative by each of them. `backward` then walks from the result back to
the inputs, multiplies derivatives along every path and adds them up where paths meet: that is the whole chain rule.

    x, w = Value(2.0), Value(-3.0)
    y = x * w + x  # x is used twice
    y.backward()
    x.grad, w.grad  # (-2.0, 2.0): w + 1, and x

`gradient` is built on it: the launcher can train the family `mlp` with it. To step through it in a debugger, call
`gradient_on_host` with numpy arrays: it is ordinary Python throughout.

Source: Linnainmaa 1976, BIT 16, 146-160; Griewank, Walther 2008, "Evaluating derivatives", section 3.2. The idea of an
engine this small, shown on two moons, is Karpathy's (micrograd, 2020).
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.blocks.autodiff.backprop import MLPConfig, check_supported, flat_rows, ordered_layers
from models.core.types import Inputs, Params

HostArray = np.ndarray | Array  # of a callback: jax passes its own


class Value:
    """A number, the nodes it was computed from (`parents`), and its partial derivative by each of them (`partials`).

    An input, such as a weight or a pixel, has no parents. `backward` sets `grad`.
    """

    __slots__ = ("data", "grad", "parents", "partials")  # without a dict, nodes are small and quick to make

    def __init__(self, data: float, parents: tuple["Value", ...] = (), partials: tuple[float, ...] = ()) -> None:
        self.data = data
        self.grad = 0.0
        self.parents = parents
        self.partials = partials

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
        """To the power of a plain number. Raises ValueError if the power, or its derivative, is no real number."""
        derivative = exponent * math.pow(self.data, exponent - 1) if exponent else 0.0
        return Value(math.pow(self.data, exponent), (self,), (derivative,))

    def __neg__(self) -> "Value":
        return Value(-self.data, (self,), (-1.0,))

    # If the left operand is a plain number, Python calls these on the right one.

    def __radd__(self, other: float) -> "Value":
        return as_value(other) + self

    def __rsub__(self, other: float) -> "Value":
        return as_value(other) - self

    def __rmul__(self, other: float) -> "Value":
        return as_value(other) * self

    def __rtruediv__(self, other: float) -> "Value":
        return as_value(other) / self

    def relu(self) -> "Value":
        """max(0, x), with derivative 0 at 0. The test is `<= 0`, so that nan stays nan."""
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
        """Set `grad` of every node that this one depends on: the derivative of this node by it.

        A node passes its gradient on to its parents only when all nodes that use it have added theirs to it.
        """
        nodes = self.topological_order()
        for node in nodes:
            node.grad = 0.0
        self.grad = 1.0
        for node in reversed(nodes):
            gradient = node.grad
            for parent, derivative in zip(node.parents, node.partials, strict=True):
                parent.grad += derivative * gradient

    def topological_order(self) -> list["Value"]:
        """This node and all it depends on, each after its parents.

        A depth-first walk with an explicit stack: Python's recursion ends at a depth of 1,000.
        """
        order, visited, stack = [], set(), [(self, False)]
        while stack:
            node, parents_done = stack.pop()
            if parents_done:
                order.append(node)
            elif node not in visited:
                visited.add(node)
                stack.append((node, True))  # popped again when its parents are done
                stack.extend((parent, False) for parent in node.parents if parent not in visited)
        return order


def as_value(number: Value | float) -> Value:
    """A plain number as a node without parents; a Value unchanged."""
    return number if isinstance(number, Value) else Value(number)


def weighted_sum(weights: list[Value], inputs: list[Value], bias: Value) -> Value:
    """A neuron's sum w1 x1 + ... + wn xn + bias, as one node.

    With `*` and `+` it would be 2n nodes, and slow. Its derivatives are x by w, w by x, and 1 by the bias.
    """
    w, x = [node.data for node in weights], [node.data for node in inputs]
    return Value(sum((a * b for a, b in zip(w, x, strict=True)), bias.data), (*weights, *inputs, bias), (*x, *w, 1.0))


def softmax(value: list[Value], label: int) -> Value:
    """Cross-entropy -log softmax(value)[label], in nats; the largest score is subtracted, so that no exp overflows."""
    top = max(score.data for score in value)
    return sum(((score - top).exp() for score in value), Value(0.0)).log() + top - value[label]


def quadratic(value: list[Value], label: int) -> Value:
    """Half the squared distance to the one-hot label (Nielsen 2015, eq. 6)."""
    difference = [score - float(n == label) for n, score in enumerate(value)]
    return 0.5 * sum((d * d for d in difference), Value(0.0))


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
    """One row through all layers -> the network's outputs, one score per class."""
    x = [Value(number) for number in row]
    for neurons, biases, activation in layers:
        x = [activation(weighted_sum(weights, x, b)) for weights, b in zip(neurons, biases, strict=True)]
    return x


def gradient_on_host(
    params: Params, x: HostArray, label: HostArray, row_weight: HostArray, *, c: MLPConfig, loss: str
) -> tuple[np.ndarray, Params]:
    """Outputs [B C] and the gradient of sum_b row_weight_b loss_b, like `params`, on the host: x [B F], the others [B].

    One graph for the whole batch: each parameter is one node, which every row uses.
    """
    nodes = jax.tree.map(lambda p: np.frompyfunc(Value, 1, 1)(np.asarray(p, np.float64)), params)
    layers = [(p["kernel"].T.tolist(), p["bias"].tolist(), ACTIVATIONS[name]) for p, name in ordered_layers(nodes, c)]
    values = [network(row, layers) for row in np.asarray(x).tolist()]
    total = Value(0.0)
    for value, y, share in zip(values, np.asarray(label).tolist(), np.asarray(row_weight).tolist(), strict=True):
        total = total + LOSSES[loss](value, y) * share
    total.backward()
    with np.errstate(over="ignore"):  # numbers beyond float32 are inf, as on the device: the trainer skips the update
        outputs = np.array([[score.data for score in scores] for scores in values]).astype(np.float32)
        grads = jax.tree.map(lambda n: np.frompyfunc(lambda s: s.grad, 1, 1)(n).astype(np.float32), nodes)
    return outputs, grads


def gradient(
    params: Params, inputs: Inputs, c: MLPConfig, loss: str, total: Float[Array, ""] | float
) -> tuple[Float[Array, "b c"], Params]:
    """An mlp's outputs [B C] and, by scalar autodiff, the gradient of sum_b weight_b loss_b / total, like `params`.

    inputs are features [B F] or image [B Y X C], label [B], weight [B]; `total` is the weight of the whole batch, of
    which the rows may be a part. Computed in Python's floats, 64 bits wide, and returned as float32.

    While jit traces, there are shapes but no numbers. `jax.pure_callback` puts a call of `gradient_on_host` into the
    compiled program, which passes the numbers to Python, waits, and continues with the result. On a mesh they are moved
    to one device for it. Raises UsageError for a Config or loss that is not written out here.
    """
    check_supported("scalar", c, loss, ACTIVATIONS, LOSSES)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params)
    value = jax.ShapeDtypeStruct((inputs["label"].shape[0], c.classes), jnp.float32)
    host = partial(gradient_on_host, c=c, loss=loss)
    row_weight = inputs["weight"] / total
    return jax.pure_callback(host, (value, shapes), params, flat_rows(inputs), inputs["label"], row_weight)
