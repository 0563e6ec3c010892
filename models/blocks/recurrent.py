"""Recurrent cells, and a layer that runs one of them along time.

Legend: B batch, T time, I inputs, H hidden units, P units that are fed back (H without a projection), G gates.
A cell maps the gate pre-activations of the input (W x) and of the fed-back state (R h), and its state, to the next
state. The order of gates and the two bias vectors are those of torch.nn.RNN, GRU and LSTM.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from models.core.intermediates import sow
from models.core.layers import einsum, gather_weight, linear, reshard
from models.core.spec import Initializer, Place, Spec, uniform, unsharded, zeros
from models.core.types import Params, Specs, Tree

State = dict[str, Array]  # h [B P], and c [B H] of an LSTM
Gates = Float[Array, "b g h"]


def elman(x_gates: Gates, h_gates: Gates, state: State) -> State:
    """h' = tanh(W x + R h): Elman 1990, "Finding structure in time", Cognitive Science 14."""
    return {"h": jnp.tanh(x_gates + h_gates)[:, 0]}


def elman_relu(x_gates: Gates, h_gates: Gates, state: State) -> State:
    """h' = relu(W x + R h): Le, Jaitly, Hinton 2015, arXiv:1504.00941, section 2."""
    return {"h": jax.nn.relu(x_gates + h_gates)[:, 0]}


def gru(x_gates: Gates, h_gates: Gates, state: State) -> State:
    """Gates r, z, n (Cho et al. 2014, arXiv:1406.1078); r multiplies R h after the product, as in torch."""
    r, z = (jax.nn.sigmoid(x_gates[:, i] + h_gates[:, i]) for i in (0, 1))
    n = jnp.tanh(x_gates[:, 2] + r * h_gates[:, 2])
    return {"h": (1 - z) * n + z * state["h"]}


def lstm(x_gates: Gates, h_gates: Gates, state: State) -> State:
    """Gates i, f, g, o (Hochreiter, Schmidhuber 1997, Neural Computation 9; f from Gers et al. 2000, ibid. 12)."""
    i, f, g, o = (x_gates[:, n] + h_gates[:, n] for n in range(4))
    c = jax.nn.sigmoid(f) * state["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"h": jax.nn.sigmoid(o) * jnp.tanh(c), "c": c}


class Cell(NamedTuple):
    """A cell: its step function, and the properties that determine its specs."""

    step: Callable[[Gates, Gates, State], State]
    gates: int
    carry_gate: int | None = None  # which gate keeps the state
    input_gate: int | None = None  # which lets the input in, where it is another
    has_cell_state: bool = False  # has a state c beside h


CELLS = {
    "elman": Cell(elman, 1),
    "elman_relu": Cell(elman_relu, 1),
    "gru": Cell(gru, 3, carry_gate=1),
    "lstm": Cell(lstm, 4, carry_gate=1, input_gate=0, has_cell_state=True),
}


def layer_specs(
    inputs: int,
    width: int,
    cell: str,
    *,
    projection: int | None,
    bias: bool,
    forget_bias: float,
    chrono_max: int | None,
    axis: str,
) -> Specs:
    """Specs of one layer in one direction; `axis` names its inputs.

    Weights and biases start uniform within 1/sqrt(H), as in torch. `forget_bias` is added to the input bias of an
    LSTM's forget gate. `chrono_max` is the longest time that units initially remember (chrono initialization): the bias
    of the forget or update gate is the log of a uniform number between 1 and chrono_max - 1; the bias of an LSTM's
    input gate is its negative (Tallec, Ollivier 2018, arXiv:1804.11188, eq. 16).
    """
    G, H, P = CELLS[cell].gates, width, projection or width
    carry_gate, input_gate = CELLS[cell].carry_gate, CELLS[cell].input_gate
    init = uniform(width**-0.5)

    def gate_bias(key: Array, shape: tuple[int, ...], spec: Spec) -> Array:
        bias = init(key, shape, spec)
        if carry_gate is None:
            return bias
        if chrono_max is None:
            return bias.at[carry_gate].add(forget_bias)
        chrono = jnp.log(jax.random.uniform(jax.random.fold_in(key, 1), shape[1:], jnp.float32, 1.0, chrono_max - 1.0))
        bias = bias.at[carry_gate].set(chrono)
        return bias if input_gate is None else bias.at[input_gate].set(-chrono)

    def gate_specs(size: int, name: str, bias_init: Initializer) -> dict[str, Spec]:
        table = {"kernel": Spec((size, G, H), f"{name} gates mlp", init, fan_in=name)}
        return {**table, "bias": Spec((G, H), "gates mlp", bias_init)} if bias else table

    table: Specs = {"input": gate_specs(inputs, axis, gate_bias), "state": gate_specs(P, "embed", init)}
    if projection is not None:
        table["out"] = {"kernel": Spec((H, P), "mlp embed", init, fan_in="mlp")}
    return table


def state_specs(batch: int, width: int, cell: str, projection: int | None, dtype: str) -> dict[str, Spec]:
    """Specs of a layer's state; its initial value is 0."""
    table = {"h": Spec((batch, projection or width), "batch width" if projection else "batch mlp", zeros, dtype=dtype)}
    if CELLS[cell].has_cell_state:
        table["c"] = Spec((batch, width), "batch mlp", zeros, dtype=dtype)
    return table


def run_layer(
    x: Float[Array, "b t i"],
    p: Params,
    cell: str,
    state: State | None = None,
    mask: Float[Array, "b t"] | None = None,
    *,
    reverse: bool = False,
    place: Place = unsharded,
) -> tuple[Float[Array, "b t p"], State]:
    """One layer along time: x [B T I], mask [B T] -> (h of each time [B T P], last state). `state` None starts at 0.

    Where the mask is 0 the state is kept and the output is 0. A sequence may thus be padded at its end, in the reverse
    direction too.
    """
    x_gates = linear("bti,igh->btgh", x, p["input"], place("batch time gates mlp"))
    p = gather_params(p, x)

    def step(state: State, inputs: tuple[Array, Array | None]) -> tuple[State, State]:
        x_gates, real = inputs
        new = where_real(layer_step(x_gates, p, cell, state, place), state, real)
        return new, new

    def zero_state() -> State:
        c = jnp.zeros_like(x_gates[:, 0, 0])
        h = jnp.zeros_like(einsum("bh,hp->bp", c, p["out"]["kernel"], place("batch width"))) if "out" in p else c
        return {"h": h, "c": c} if CELLS[cell].has_cell_state else {"h": h}

    xs = (x_gates.swapaxes(0, 1), None if mask is None else mask.swapaxes(0, 1))
    last, states = jax.lax.scan(step, zero_state() if state is None else state, xs, reverse=reverse)
    h = reshard(states["h"].swapaxes(0, 1), place("batch time width"))
    for name, x in states.items():
        sow({"h": "hidden", "c": "cell"}[name] + ("_backward" if reverse else ""), x.swapaxes(0, 1))
    return (h if mask is None else h * mask[:, :, None].astype(h.dtype)), last


def run_directions(
    x: Float[Array, "b t i"],
    p: dict[str, Params],
    names: tuple[str, ...],
    cell: str,
    state: State | None,
    mask: Float[Array, "b t"] | None,
    place: Place = unsharded,
) -> tuple[Float[Array, "b t p"], list[State]]:
    """`run_layer` in each direction, forward or backward -> their outputs, joined, and the last state of each."""
    ways = [run_layer(x, p[name], cell, state, mask, reverse=name == "backward", place=place) for name in names]
    return jnp.concatenate([h for h, _ in ways], -1), [last for _, last in ways]


def layer_step(x_gates: Gates, p: Params, cell: str, state: State, place: Place = unsharded) -> State:
    """One time step of a layer: gate pre-activations of the input [B G H] and a state -> the next state."""
    h_gates = linear("bh,hgk->bgk", reshard(state["h"], place("batch width")), p["state"], place("batch gates mlp"))
    new = CELLS[cell].step(x_gates, h_gates, state)
    if "out" in p:
        new["h"] = einsum("bh,hp->bp", new["h"], p["out"]["kernel"], place("batch width"))
    return new


def where_real(new: Tree, state: Tree, real: Shaped[Array, "b"] | None) -> Tree:
    """The new state in rows where `real` [B] is above 0, else the old one; None means all rows. Trees of [B ...]."""
    return new if real is None else jax.tree.map(lambda n, old: jnp.where(real[:, None] > 0, n, old), new, state)


def gather_params(p: Params, x: Float[Array, "b ..."]) -> Params:
    """Parameters for a loop over time: in x's dtype, and gathered once instead of at each step."""
    return jax.tree.map(lambda w: gather_weight(w.astype(x.dtype), x), p)
