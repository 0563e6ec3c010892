"""Recurrent state carried from update to update, and rows that go on where they ended."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import launch
import models
from data.sampler import BatchSampler, Phase
from data.text import packing, tokenizers
from data.types import Texts
from errors import UsageError
from tests.support.cases import batch_for, random_variables, tiny_model
from tests.support.harness import Trainer, jit_predict
from train import checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")

BYTE = tokenizers.ByteTokenizer()


def texts(count: int) -> Texts:
    text = "".join(chr(33 + i % 90) for i in range(count))
    return Texts((text,), {"name": "made", "split": "train"})


def test_rows_go_on_where_they_ended() -> None:
    """Each row of a batch begins with the last target of that row in the batch before; streams do not overlap."""
    corpus = packing.StreamSource(texts(1000), BYTE, 10, 4)
    plan = BatchSampler((corpus,), (Phase(0, 4),), seed=3)
    batches = [plan.batch(step) for step in range(corpus.windows + 1)]
    for old, new in itertools.pairwise(batches[:-1]):
        np.testing.assert_array_equal(new["tokens"][:, 0], old["targets"][:, -1])
        assert not new["reset"].any()
    assert batches[0]["reset"].all()
    assert batches[-1]["reset"].all()
    np.testing.assert_array_equal(batches[-1]["tokens"], batches[0]["tokens"])
    whole = np.concatenate([np.concatenate([b["tokens"][r] for b in batches[:-1]]) for r in range(4)])
    np.testing.assert_array_equal(whole, BYTE.encode(texts(1000).documents[0])[: len(whole)])


def test_too_short_a_text_for_its_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="too few for 8 windows"):
        packing.StreamSource(texts(50), BYTE, 10, 8)


def carried(mesh: str = "dp:1", accumulate: int = 1) -> Trainer:
    return Trainer("rnn", mesh, accumulate=accumulate, optimizer="sgd", lr=0.0, options={"carry": 16})


def batch(begins: int, first: int, last: int) -> dict[str, np.ndarray]:
    found = batch_for("rnn")
    cut = {k: v[:, first:last] for k, v in found.items()}
    cut["weight"] = np.ones_like(cut["weight"])
    return {**cut, "reset": np.full(16, begins, np.float32)}


def loss(trainer: Trainer, begins: int, first: int, last: int) -> float:
    return float(trainer.step(batch(begins, first, last))["loss"])


@cache
def whole() -> float:
    """Both windows as one, on one device: the rate is 0, so the parameters are those of any mesh and update."""
    return loss(carried(), 1, 0, 16)


@pytest.mark.parametrize(("mesh", "accumulate"), [("dp:1", 1), ("dp:2,tp:2", 1), ("dp:4", 2)])
def test_a_carried_state_joins_windows(mesh: str, accumulate: int) -> None:
    """Two windows in a row have the loss of both as one; a window that begins anew has its own."""
    trainer = carried(mesh, accumulate)
    halves = loss(trainer, 1, 0, 8), loss(trainer, 0, 8, 16)
    np.testing.assert_allclose(sum(halves) / 2, whole(), rtol=1e-5)
    assert abs(loss(trainer, 1, 8, 16) - halves[1]) > 1e-4


@pytest.mark.slow
def test_a_carried_state_is_in_the_checkpoint(tmp_path: Path) -> None:
    """Stopped in the middle of a stream and gone on with, a run has the digests of the straight one."""
    (tmp_path / "rnn.py").write_text(
        "from configs import base\n"
        "from configs.recipes import QUICK\n"
        "RNN = {**QUICK, 'model.family': 'rnn', 'model.depth': 1, 'model.embed': 8, 'model.width': 16}\n"
        "def get_config(names): return base.config(names, {'quick': RNN}, {})\n"
    )
    args = [f"--config={tmp_path}/rnn.py:quick", "--config.train.stateful=true", "--config.train.batch=8"]
    args += ["--config.model.context=16", "--config.eval.limit=1", "--config.schedule.warmup=0"]
    args += ["--config.schedule.name=constant", "--config.checkpoint.every=3", "--config.optim.ema=0.9"]
    straight, halved = f"--workdir={tmp_path}/a", f"--workdir={tmp_path}/b"
    assert launch.main(["train", straight, *args, "--config.train.steps=6"]) == 0
    assert launch.main(["train", halved, *args, "--config.train.steps=3"]) == 0
    assert launch.main(["train", halved, *args, "--config.train.steps=6", "--config.resume=extend"]) == 0
    one, two = (checkpoint.load_manifest(str(tmp_path / w), 6)["state"] for w in ("a", "b"))
    assert any(name.startswith("carry/") for name in one)
    assert any(name.startswith("ema/") for name in one)
    assert {k: v["digest"] for k, v in one.items()} == {k: v["digest"] for k, v in two.items()}


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
def test_what_the_head_sees_is_dropped(pool: str) -> None:
    """In one layer without embeddings that is the one site: half of the pooled units, none of the features."""
    model = models.build("rnn", head="classes", inputs=4, width=64, pool=pool, dropout=0.5, classes=64)
    variables = random_variables(model)
    variables["params"]["head"] = {"kernel": np.eye(64, dtype=np.float32), "bias": np.zeros(64, np.float32)}
    x = {"features": np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)}  # scores: the pooled units

    @jax.jit
    def both(variables: Any, x: Any) -> tuple[jax.Array, jax.Array]:
        return model.apply(variables, x).value, model.apply(variables, x, train=True, key=jax.random.key(2)).value

    still, noisy = both(variables, x)
    kept = noisy != 0
    assert 0.3 < float(kept.mean()) < 0.7
    np.testing.assert_allclose(noisy, np.where(kept, 2 * still, 0), rtol=1e-5)


def test_a_sequence_may_be_padded() -> None:
    """What stands behind a mask changes nothing, in both directions, for every pool."""
    x = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    mask = np.array([[1] * 4 + [0] * 3, [1] * 4 + [0] * 3], np.float32)
    for pool in ("last", "mean", "max"):
        model = tiny_model("gru_both_ways", pool=pool)
        variables, predict = random_variables(model), jit_predict(model)
        short = predict(variables, {"features": x[:, :4], "mask": mask[:, :4]})
        np.testing.assert_allclose(predict(variables, {"features": x, "mask": mask}), short, rtol=1e-5, atol=1e-6)
        empty = predict(variables, {"features": x, "mask": np.zeros_like(mask)})
        assert np.isfinite(empty).all()
        assert np.abs(empty).max() < 100


@pytest.mark.parametrize(("cell", "keep", "admit"), [("lstm", 1, 0), ("gru", 1, None)])
def test_the_gates_may_start_for_long_lags(cell: str, keep: int, admit: int | None) -> None:
    """A unit's keep gate, at rest, forgets at a rate of 1 in 1 to `chrono_max` times; the input gate admits as much."""
    model = models.build("rnn", head="values", inputs=2, cell=cell, width=512, chrono_max=100)
    bias = model.init(jax.random.key(0))["params"]["cells"]["0"]["forward"]["input"]["bias"]
    lags = np.exp(bias[keep])
    assert lags.min() >= 1
    assert lags.max() <= 99
    np.testing.assert_allclose([lags.mean(), lags.std()], [50, 98 / 12**0.5], rtol=0.1)
    assert np.abs(bias[2]).max() <= 512**-0.5
    if admit is not None:
        np.testing.assert_array_equal(bias[admit], -bias[keep])


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            dict(cell="elman", chrono_max=9),
            dict(chrono_max=9, bias=False),
            dict(chrono_max=2),
            dict(chrono_max=9, forget_bias=1.0),
        ),
        *(dict(cell="gru", forget_bias=1.0), dict(forget_bias=1.0, bias=False)),
    ],
)
def test_what_no_gate_would_take_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="must be"):
        models.build("rnn", head="values", inputs=2, width=8, **wrong)


def test_the_forget_gate_may_start_open() -> None:
    plain, opened = (models.build("rnn", head="values", inputs=2, width=8, forget_bias=f) for f in (0.0, 1.0))
    a, b = (m.init(jax.random.key(0))["params"]["cells"]["0"]["forward"]["input"]["bias"] for m in (plain, opened))
    np.testing.assert_allclose(b - a, np.eye(4)[1][:, None] * np.ones(8), atol=1e-6)
