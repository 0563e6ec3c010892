"""Callbacks at evaluation: their metrics are recorded as others are, and a run is the same with them and without."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import canon
import launch
from configs import reader
from configs.knobs import RunConfig
from data.eval_set import EvalSet
from errors import UsageError
from tests.support.cases import tiny_model
from tests.support.configs import config
from tests.support.runs import runtime
from train import checkpoint, run
from train.evaluate import callbacks
from train.evaluate.evaluate import Rows, Scores
from train.record import metrics

pytestmark = pytest.mark.usefixtures("no_plots")
SHORT = {"train.steps": 4, "eval.every": 2, "checkpoint.every": 2, "log.table": False}
OWN = """
import numpy as np


def balanced(evaluation):
    rows = evaluation.scores.rows
    with evaluation.on_one_device() as variables:
        batch = next(evaluation.eval_set.batches(len(rows.label), range(len(rows.label))))
        logits = evaluation.model.predict(variables, {"image": batch["image"]})
        assert (np.asarray(logits).argmax(-1) == rows.prediction).all()
    evaluation.say(f"called at {evaluation.step} in {evaluation.workdir}")
    recalls = [np.mean(rows.prediction[rows.label == k] == k) for k in range(10)]
    return {"balanced_accuracy": np.mean(recalls)}


def late(evaluation):
    if evaluation.step == 4:
        raise ValueError("the disk of the pictures is full")
"""
SMALL = {"model.width": 16, "model.depth": 1, "model.heads": 2, "model.context": 16, "eval.limit": 1, "eval.batch": 64}


def digits(**knobs: Any) -> RunConfig:
    return config("mlp", "digits+dropout").replace({**SHORT, "optim.ema": 0.5, **knobs})


def digests(workdir: Path) -> Any:
    """The digests of a run's newest state."""
    return checkpoint.load_manifest(str(workdir), checkpoint.steps(str(workdir))[-1])["state"]


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def test_metrics_of_ones_own_are_recorded_as_others_are(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the running mean, on a mesh; the weights are those of a run without, which may go on with other callbacks."""
    named, plain = tmp_path / "a", tmp_path / "b"
    given = {"eval.callbacks": (f"{own}:balanced",), "mesh": "fsdp:4,tp:2", "model.classes": 16}
    world = runtime()
    result = run.train(digits(**given), str(named), world)
    value = result.metrics["ema_balanced_accuracy"]
    lines = [line for line in metrics.read(str(named)) if line["kind"] == "eval"]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["metrics"]["ema_balanced_accuracy"] == value
    assert checkpoint.load_manifest(str(named), 4)["metrics"]["balanced_accuracy"] == value
    assert f"ema_balanced_accuracy {value:.4f}" in world.stdout.getvalue()
    assert f"called at 4 in {named}" in world.stdout.getvalue()
    run.train(digits(**given | {"eval.callbacks": None}), str(plain), runtime())
    assert digests(named) == digests(plain)

    assert canon.evaluate(named).metrics["ema_balanced_accuracy"] == pytest.approx(value)
    capsys.readouterr()
    assert launch.main(["eval", f"--workdir={plain}", f"--config.eval.callbacks={own}:balanced"]) == 0
    assert f"ema_balanced_accuracy {value:.4f}" in capsys.readouterr().out
    longer = given | {"eval.callbacks": None, "train.steps": 5, "resume": "extend"}
    assert "ema_balanced_accuracy" not in run.train(digits(**longer), str(named), runtime()).metrics


def test_an_error_ends_the_run_after_its_progress_is_saved(own: str, tmp_path: Path) -> None:
    """It names callback, file and line; the run goes on without the callback to the same weights."""
    workdir, knobs = tmp_path / "w", {"checkpoint.every": None, "train.steps": 6}
    with pytest.raises(UsageError, match=r"'.*own.py:late': .*own.py line 18: ValueError: the disk of the pictures"):
        run.train(digits(**knobs, **{"eval.callbacks": (f"{own}:late",)}), str(workdir), runtime())
    assert checkpoint.steps(str(workdir)) == [4]
    run.train(digits(**knobs), str(workdir), runtime())
    assert [line["step"] for line in metrics.read(str(workdir)) if line["kind"] == "eval"] == [2, 4, 6]
    run.train(digits(**knobs), str(tmp_path / "straight"), runtime())
    assert digests(workdir) == digests(tmp_path / "straight")


def test_texts_are_written_at_each_evaluation(tmp_path: Path) -> None:
    """By draws of seed and step, on any mesh: eval writes the same again, in place of the old."""
    given = config("gpt", "quick").replace({**SHORT, **SMALL, "train.batch": 8, "schedule.warmup": 0})
    world, named, plain = runtime(), tmp_path / "a", tmp_path / "b"
    run.train(given.replace({"eval.callbacks": ("samples",)}), str(named), world, devices=jax.devices()[:1])
    run.train(given, str(plain), world, devices=jax.devices()[:1])
    assert digests(named) == digests(plain)
    assert not (plain / "samples.jsonl").exists()
    kept = (named / "samples.jsonl").read_text()
    lines = [json.loads(line) for line in kept.splitlines()]
    prompts = [line["prompt"] for line in lines]
    assert [line["step"] for line in lines] == [2, 2, 2, 4, 4, 4]
    assert prompts[:3] == prompts[3:]
    assert len(set(prompts)) == 3
    assert lines[0]["text"] != lines[3]["text"]
    assert f"step 4  sample: {json.dumps(prompts[3], ensure_ascii=False)}" in world.stdout.getvalue()
    canon.evaluate(named, {"eval.limit": 1, "mesh": "fsdp:4,tp:2"})
    assert (named / "samples.jsonl").read_text() == kept


@pytest.fixture
def evaluation() -> callbacks.Evaluation:
    scores = Scores({"loss": 1.0, "ema_loss": 2.0}, {}, 3, 3, prefix="ema_")
    rows = EvalSet({"features": np.zeros((3, 2))}, np.arange(3))
    return callbacks.Evaluation(tiny_model("mlp"), {"params": {}}, 7, scores, rows, RunConfig(), print)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (0.5, "returns 0.5, not a mapping of metrics to numbers, or None"),
        ({"loss": 0.5}, "returns 'loss', a metric that the evaluation has already"),
        ({"first": 0.5}, "returns 'first', a metric that the evaluation has already"),
        ({"share": "high"}, "returns share = 'high', not a real number"),
        ({"share": True}, "returns share = True, not a real number"),
        ({"share": 1j}, "not a real number"),
        ({"share": np.ones(2)}, "not a real number"),
        ({"share": None}, "returns share = None, not a real number"),
        ({"share": [[1], 2]}, "ValueError"),
        ({"two words": 1}, "a metric 'two words'; its name must be a word"),
        ({3: 1}, "a metric 3; its name"),
        ({"balance": 1}, "not an old metric's"),
        ({"recall/cat": 1}, "a word without '/'"),
    ],
)
def test_a_result_other_than_new_metrics_is_refused(result: Any, says: str, evaluation: callbacks.Evaluation) -> None:
    """By the callback's name."""
    with pytest.raises(UsageError, match=says) as caught:
        callbacks.call({"other": lambda given: {"first": 1}, "mine": lambda given: result}, evaluation)
    assert "config key 'eval.callbacks' = 'mine'" in str(caught.value)


def test_a_mistake_inside_a_callback_has_its_name(evaluation: callbacks.Evaluation) -> None:
    """Also one that Canon's own functions refuse."""
    with pytest.raises(UsageError, match=r"^config key 'eval\.callbacks' = 'mine': unknown family 'gtp'"):
        callbacks.call({"mine": lambda given: canon.build("gtp")}, evaluation)


def test_a_callback_cannot_change_the_scores(evaluation: callbacks.Evaluation) -> None:
    """Its metrics are copies, its arrays read-only."""
    scores = evaluation.scores._replace(rows=Rows(np.ones(3), np.ones(3)))
    given = callbacks.Evaluation(**{**vars(evaluation), "scores": scores})
    callbacks.call({"mine": lambda given: given.scores.metrics.clear()}, given)
    assert scores.metrics == {"loss": 1.0, "ema_loss": 2.0}
    with pytest.raises(UsageError, match=r"'mine': .*read-only"):
        callbacks.call({"mine": lambda given: given.scores.rows.loss.fill(0)}, given)


def test_any_real_number_is_taken(evaluation: callbacks.Evaluation) -> None:
    """In the order of the callbacks; nothing is called where nothing was evaluated."""
    made: list[Callable[[callbacks.Evaluation], Any]] = [
        lambda given: {"i": 2, "f": np.float32(0.5)},
        lambda given: None,
        lambda given: {"j": jnp.asarray(3.0, jnp.bfloat16), "n": math.nan},
    ]
    named = {str(i): one for i, one in enumerate(made)}
    found = callbacks.call(named, evaluation)
    assert list(found) == ["i", "f", "j", "n"]
    assert [found["i"], found["f"], found["j"]] == [2, 0.5, 3]
    assert math.isnan(found["n"])
    nothing = callbacks.Evaluation(**{**vars(evaluation), "scores": Scores({}, {}, 0, 0)})
    assert callbacks.call({"broken": lambda given: 1 / 0}, nothing) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sampels", "unknown eval.callbacks 'sampels'; did you mean 'samples'"),
        ("samples", "'samples' needs a model with the traits cached and language_model; family 'mlp' lacks them"),
        ("own.py:balanced,nowhere.py:f", "there is no file 'nowhere.py'"),
        ("own.py:balance", "did you mean 'balanced'"),
    ],
)
def test_a_name_that_is_none_is_refused_before_the_run(
    text: str, says: str, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        run.train(reader.override(digits(), [("eval.callbacks", text)]), str(tmp_path / "w"), runtime())
    assert not (tmp_path / "w").exists()
