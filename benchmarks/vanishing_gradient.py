"""How far back in time gradients reach: the norm against the time lag, for recurrent networks at initialisation.

    python -m benchmarks.vanishing_gradient [--length=100] [--seeds=8] [--out=benchmarks/results/vanishing_gradient]

One layer of width 64 reads a sequence of standard normal features. The last output is projected on a random direction,
and differentiated with respect to the input at each time; lag 0 is the last time. The gradient's norm is a mean over
examples, relative to its value at lag 0; given are the geometric mean over seeds, the least and the greatest. Networks
are initialised as in torch: weights uniform within 1/sqrt(64), so the forget gate is half open. `LSTM, gate open` adds
5 to that gate's bias: it keeps 99.3 % of the state in each step, close to the cell of 1997, which had no forget gate.

Source: Hochreiter, Schmidhuber 1997, Neural Computation 9, section 3; Bengio, Simard, Frasconi 1994, IEEE Trans. Neural
Networks 5.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from benchmarks import record
from train.plots.curves import make_figure, save_figure, style_axes

NETWORKS: dict[str, dict[str, Any]] = {
    "Elman": dict(cell="elman"),
    "GRU": dict(cell="gru"),
    "LSTM": dict(cell="lstm"),
    "LSTM, forget bias 1": dict(cell="lstm", forget_bias=1.0),
    "LSTM, gate open": dict(cell="lstm", forget_bias=5.0),
}
COLOURS = ("#c2410c", "#7a5aa6", "#8fb3d9", "#4c86c6", "#174a7e")
APART = {"GRU": 6, "LSTM": -6}  # points by which two labels that meet are moved
WIDTH, INPUTS, EXAMPLES = 64, 8, 32


def norms(length: int, seeds: int, **fields: Any) -> np.ndarray:
    """The norm of the gradient of the last output with respect to the input at each lag, mean over examples [S T]."""
    model = models.build("rnn", head="none", inputs=INPUTS, width=WIDTH, **fields)

    def one(key: jax.Array) -> jax.Array:
        start, features, direction = jax.random.split(key, 3)
        x = jax.random.normal(features, (EXAMPLES, length, INPUTS))
        v = jax.random.normal(direction, (EXAMPLES, WIDTH))
        variables = model.init(start)
        last = lambda x: jnp.sum(model.apply(variables, {"features": x}).value[:, -1] * v)  # noqa: E731
        return jax.grad(last)(x)

    compiled = jax.jit(one)  # one seed a call: products batched over seeds are slow on CPU
    gradient = np.stack([compiled(key) for key in jax.random.split(jax.random.key(0), seeds)]).astype(np.float64)
    return np.linalg.norm(gradient, axis=-1).mean(1)[:, ::-1]  # squares of float32 would underflow


def summary(found: np.ndarray) -> dict[str, Any]:
    """Norms [S T] relative to lag 0: mean, least and greatest over seeds; the first lag with a mean below 1/1000."""
    relative = found / found[:, :1]
    mean = np.exp(np.log(relative).mean(0))
    below = np.flatnonzero(mean < 1e-3)
    rounded = lambda x: [float(f"{v:.4g}") for v in x]  # noqa: E731
    return {
        "lag_of_a_thousandth": int(below[0]) if below.size else None,
        "mean": rounded(mean),
        "least": rounded(relative.min(0)),
        "greatest": rounded(relative.max(0)),
    }


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw each network's norm against the lag, with its spread over seeds."""
    figure = make_figure(8, 5)
    axes = figure.subplots()
    for colour, (name, row) in zip(COLOURS, rows.items(), strict=True):
        lags = range(len(row["mean"]))
        axes.fill_between(lags, row["least"], row["greatest"], color=colour, alpha=0.2, lw=0)
        axes.plot(lags, row["mean"], color=colour, lw=1.8)
        end = (lags[-1], row["mean"][-1])
        axes.annotate(name, end, (6, APART.get(name, 0)), textcoords="offset points", color=colour, va="center")
    axes.set_yscale("log")
    style_axes(axes, "How far back the gradient reaches", "time lag (steps)", "norm of the gradient, relative to lag 0")
    axes.margins(x=0.01)
    save_figure(figure, path)


def main() -> None:
    """Measure, print a table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", default="benchmarks/results/vanishing_gradient")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")

    rows = {name: summary(norms(args.length, args.seeds, **fields)) for name, fields in NETWORKS.items()}
    setting = {"length": args.length, "seeds": args.seeds, "examples": EXAMPLES, "width": WIDTH, "inputs": INPUTS}
    path = record.write(f"{args.out}.json", ("jax",), **setting, rows=rows)
    plot(rows, path.with_suffix(".png"))
    for name, row in rows.items():
        lag = row["lag_of_a_thousandth"]
        reach = f"a thousandth at lag {lag}" if lag else "never below a thousandth"
        print(f"{name:22} {row['mean'][-1]:.1e} at lag {args.length - 1}, {reach}")


if __name__ == "__main__":
    main()
