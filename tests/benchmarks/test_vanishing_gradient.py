"""The benchmark of gradients against time lag: its figures by hand, and what they must show."""

from functools import cache
from pathlib import Path

import jax
import numpy as np

import models
from benchmarks import vanishing_gradient as vg

LENGTH = 20


norms = cache(vg.norms)


def by_hand(key: jax.Array) -> np.ndarray:
    """An Elman network's mean gradient norm at each lag, by its recursion in float64."""
    start, features, direction = jax.random.split(key, 3)
    x = np.asarray(jax.random.normal(features, (vg.EXAMPLES, LENGTH, vg.INPUTS)), np.float64)
    back = np.asarray(jax.random.normal(direction, (vg.EXAMPLES, vg.WIDTH)), np.float64)
    model = models.build("rnn", head="none", inputs=vg.INPUTS, width=vg.WIDTH, cell="elman")
    cell = jax.tree.map(np.asarray, model.init(start)["params"]["cells"]["0"]["forward"])
    fed, state = (cell[name]["kernel"][:, 0] for name in ("input", "state"))
    bias = cell["input"]["bias"][0] + cell["state"]["bias"][0]
    h = [np.zeros((vg.EXAMPLES, vg.WIDTH))]
    for t in range(LENGTH):
        h.append(np.tanh(x[:, t] @ fed + h[-1] @ state + bias))
    found = []
    for t in range(LENGTH, 0, -1):
        before = back * (1 - h[t] ** 2)
        found.append(np.linalg.norm(before @ fed.T, axis=-1).mean())
        back = before @ state.T
    return np.array(found)


def test_norms_are_those_of_the_recursion() -> None:
    """Lag by lag, lag 0 first, for each seed; float32 against float64."""
    got = norms(LENGTH, 2, **vg.NETWORKS["Elman"])
    want = np.stack([by_hand(key) for key in jax.random.split(jax.random.key(0), 2)])
    assert got.shape == (2, LENGTH)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_elman_forgets_and_an_open_gate_does_not() -> None:
    """At lag 19 an Elman network has less than a thousandth left, an LSTM with an open gate a tenth at least."""
    lost = norms(LENGTH, 2, **vg.NETWORKS["Elman"])
    assert (lost[:, -1] < 1e-3 * lost[:, 0]).all()
    kept = norms(LENGTH, 2, **vg.NETWORKS["LSTM, gate open"])
    assert (kept[:, -1] > 0.1 * kept[:, 0]).all()


def test_summary_is_relative_to_lag_0() -> None:
    """Geometric mean, least and greatest over seeds, and where a thousandth is passed."""
    row = vg.summary(np.array([[2.0, 2e-1, 2e-6], [4.0, 4e-3, 4e-4]]))
    np.testing.assert_allclose(row["mean"], [1, 1e-2, 1e-5], rtol=1e-9)
    np.testing.assert_allclose(row["least"], [1, 1e-3, 1e-6], rtol=1e-9)
    np.testing.assert_allclose(row["greatest"], [1, 1e-1, 1e-4], rtol=1e-9)
    assert row["lag_of_a_thousandth"] == 2
    assert vg.summary(np.ones((2, 3)))["lag_of_a_thousandth"] is None


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    row = vg.summary(np.exp(-np.outer([1.0, 2.0], np.arange(10))))
    vg.plot(dict.fromkeys(vg.NETWORKS, row), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "p.png").stat().st_size > 20_000
