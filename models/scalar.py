"""Automatic differentiation in the open: reverse mode on single numbers, in plain Python floats.

An expression such as `(x * w + b).tanh()` computes its value at once, and each operation leaves a node behind: a
`Scalar` that knows the nodes it was computed from and its slope by each of them. `backward` then walks from the result
back to the inputs, multiplies slopes along every path and adds up where paths meet: that is the whole chain rule.

    x, w = Scalar(2.0), Scalar(-3.0)
    y = x * w + x                       # x is used twice
    y.backward()
    x.gradient, w.gradient              # (-2.0, 2.0): w + 1, and x

On top of it stands `gradient`, by which the family `mlp` can be trained with the launcher. To step through it in a
debugger, call `by_engine` with numpy arrays: it is ordinary Python from end to end.

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

from models.backprop import chain, check_written_out, flat_rows


class Scalar:
    """A number, the nodes it was computed from (`parents`), and its partial derivative by each of them (`slopes`).

    An input, such as a weight or a pixel, has no parents. `gradient` is filled in by `backward`.
    """

    __slots__ = ("gradient", "parents", "slopes", "value")  # these four and no more: small, and quick to make

    def __init__(self, value: float, parents: tuple["Scalar", ...] = (), slopes: tuple[float, ...] = ()) -> None:
        self.value = value
        self.gradient = 0.0
        self.parents = parents
        self.slopes = slopes

    def __repr__(self) -> str:
        return f"Scalar({self.value:.6g}, gradient={self.gradient:.6g})"

    def __add__(self, other: "Scalar | float") -> "Scalar":
        other = as_scalar(other)
        return Scalar(self.value + other.value, (self, other), (1.0, 1.0))

    def __sub__(self, other: "Scalar | float") -> "Scalar":
        other = as_scalar(other)
        return Scalar(self.value - other.value, (self, other), (1.0, -1.0))

    def __mul__(self, other: "Scalar | float") -> "Scalar":
        other = as_scalar(other)
        return Scalar(self.value * other.value, (self, other), (other.value, self.value))

    def __truediv__(self, other: "Scalar | float") -> "Scalar":
        other = as_scalar(other)
        ratio = self.value / other.value
        return Scalar(ratio, (self, other), (1 / other.value, -ratio / other.value))

    def __pow__(self, exponent: float) -> "Scalar":
        """To the power of a plain number. Raises ValueError where that, or its slope, is no real number."""
        slope = exponent * math.pow(self.value, exponent - 1) if exponent else 0.0
        return Scalar(math.pow(self.value, exponent), (self,), (slope,))

    def __neg__(self) -> "Scalar":
        return Scalar(-self.value, (self,), (-1.0,))

    # Where a plain number stands on the left, Python asks the right-hand side.

    def __radd__(self, other: float) -> "Scalar":
        return as_scalar(other) + self

    def __rsub__(self, other: float) -> "Scalar":
        return as_scalar(other) - self

    def __rmul__(self, other: float) -> "Scalar":
        return as_scalar(other) * self

    def __rtruediv__(self, other: float) -> "Scalar":
        return as_scalar(other) / self

    def relu(self) -> "Scalar":
        """max(0, x), with slope 0 at 0. Asked as `<= 0`, so that nan stays nan."""
        return Scalar(0.0, (self,), (0.0,)) if self.value <= 0 else Scalar(self.value, (self,), (1.0,))

    def tanh(self) -> "Scalar":
        """The hyperbolic tangent."""
        t = math.tanh(self.value)
        return Scalar(t, (self,), (1 - t * t,))

    def sigmoid(self) -> "Scalar":
        """1 / (1 + e^-x), written with e^-|x|, which cannot overflow."""
        e = math.exp(-abs(self.value))
        s = (e if self.value < 0 else 1.0) / (1 + e)
        return Scalar(s, (self,), (s * (1 - s),))

    def exp(self) -> "Scalar":
        """e^x. Raises OverflowError above 709."""
        e = math.exp(self.value)
        return Scalar(e, (self,), (e,))

    def log(self) -> "Scalar":
        """The natural logarithm. Raises ValueError at 0 and below."""
        return Scalar(math.log(self.value), (self,), (1 / self.value,))

    def backward(self) -> None:
        """Set the gradient of every node that this one depends on: the slope of this one by it.

        A node hands its gradient on, times its slopes, only after everything that uses the node has handed it theirs.
        """
        nodes = self.inputs_first()
        for node in nodes:
            node.gradient = 0.0
        self.gradient = 1.0
        for node in reversed(nodes):
            gradient = node.gradient
            for parent, slope in zip(node.parents, node.slopes, strict=True):
                parent.gradient += slope * gradient

    def inputs_first(self) -> list["Scalar"]:
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


def as_scalar(number: Scalar | float) -> Scalar:
    """A plain number as a node without parents; a Scalar as it is."""
    return number if isinstance(number, Scalar) else Scalar(number)


def weighted_sum(weights: list[Scalar], inputs: list[Scalar], bias: Scalar) -> Scalar:
    """A neuron's sum w1 x1 + ... + wn xn + bias, as one node.

    With `*` and `+` it would be 2n nodes, and slow. Its slopes can be read off: x by w, w by x, and 1 by the bias.
    """
    w, x = [node.value for node in weights], [node.value for node in inputs]
    return Scalar(sum((a * b for a, b in zip(w, x, strict=True)), bias.value), (*weights, *inputs, bias), (*x, *w, 1.0))


def softmax(value: list[Scalar], label: int) -> Scalar:
    """Cross-entropy -log softmax(value)[label], in nats; the largest score is taken off, so that no exp overflows."""
    top = max(score.value for score in value)
    return sum(((score - top).exp() for score in value), Scalar(0.0)).log() + top - value[label]


def quadratic(value: list[Scalar], label: int) -> Scalar:
    """Half the squared distance to the one-hot label (Nielsen 2015, eq. 6)."""
    off = [score - float(n == label) for n, score in enumerate(value)]
    return 0.5 * sum((d * d for d in off), Scalar(0.0))


def hinge(value: list[Scalar], label: int) -> Scalar:
    """max(0, 1 - y s) of the one score s, where y = 2 label - 1."""
    return (1 - (2 * label - 1) * value[0]).relu()


ACTIVATIONS: dict[str, Callable[[Scalar], Scalar]] = {
    "identity": lambda x: x,
    "relu": Scalar.relu,
    "sigmoid": Scalar.sigmoid,
    "tanh": Scalar.tanh,
    "scaled_tanh": lambda x: 1.7159 * (x * (2 / 3)).tanh(),
}
LOSSES: dict[str, Callable[[list[Scalar], int], Scalar]] = {"softmax": softmax, "quadratic": quadratic, "hinge": hinge}


Layer = tuple[list[list[Scalar]], list[Scalar], Callable[[Scalar], Scalar]]  # weights by neuron, biases, activation


def network(row: list[float], layers: list[Layer]) -> list[Scalar]:
    """One row through every layer -> the network's value, a score a class."""
    x = [Scalar(number) for number in row]
    for neurons, biases, activation in layers:
        x = [activation(weighted_sum(weights, x, b)) for weights, b in zip(neurons, biases, strict=True)]
    return x


def by_engine(params: Any, x: Any, label: Any, share: Any, *, c: Any, loss: str) -> tuple[np.ndarray, Any]:
    """Value [B C] and gradient, like `params`, of sum_b share_b loss_b: x [B F], label [B], share [B], on the host.

    One graph for the whole batch: each parameter is one node, which every row uses.
    """
    nodes = jax.tree.map(lambda p: np.frompyfunc(Scalar, 1, 1)(np.asarray(p, np.float64)), params)
    layers = [(p["kernel"].T.tolist(), p["bias"].tolist(), ACTIVATIONS[name]) for p, name in chain(nodes, c)]
    x, label, share = (np.asarray(a).tolist() for a in (x, label, share))
    values = [network(row, layers) for row in x]
    rows = zip(values, label, share, strict=True)
    sum((LOSSES[loss](value, y) * s for value, y, s in rows), Scalar(0.0)).backward()
    with np.errstate(over="ignore"):  # beyond float32 is inf, as on the device: the trainer skips such an update
        value = np.array([[score.value for score in scores] for scores in values]).astype(np.float32)
        grads = jax.tree.map(lambda n: np.frompyfunc(lambda s: s.gradient, 1, 1)(n).astype(np.float32), nodes)
    return value, grads


def gradient(
    params: dict[str, Any], inputs: dict[str, Array], c: Any, loss: str, total: Float[Array, ""] | float
) -> tuple[Float[Array, "b c"], dict[str, Any]]:
    """An mlp's value [B C] and, by the engine, the gradient of sum_b weight_b loss_b / total, like `params`.

    inputs are features [B F] or image [B Y X C], label [B], weight [B]; `total` is the weight of the whole batch, of
    which the rows may be a part. Computed in Python's floats, 64 bits wide, and returned as float32.

    While jit traces there are no numbers yet, only shapes. `jax.pure_callback` puts a call of `by_engine` into the
    compiled program: each time it gets there it hands the numbers to Python, waits, and goes on with what comes back.
    On a mesh they are brought to one device for it. Raises UsageError for what is not written out here.
    """
    check_written_out("scalar", c, loss, ACTIVATIONS, LOSSES)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params)
    value = jax.ShapeDtypeStruct((inputs["label"].shape[0], c.classes), jnp.float32)
    host = partial(by_engine, c=c, loss=loss)
    share = inputs["weight"] / total
    return jax.pure_callback(host, (value, shapes), params, flat_rows(inputs), inputs["label"], share)
