"""A run as a value: what it returns, and several of them in one process."""

import json
import math
import threading
from pathlib import Path

import jax

from configs.knobs import RunConfig
from tests.support.configs import config
from tests.support.runs import runtime
from train import checkpoint, run
from train.record import metrics
from train.trainer import RunResult, read_result

STEPS = {"train.steps": 6, "eval.every": 3, "checkpoint.every": 3, "log.table": False, "log.every": 1}


def digits(**knobs: object) -> RunConfig:
    return config("mlp", "digits+dropout").replace({**STEPS, **{k.replace("__", "."): v for k, v in knobs.items()}})


def digests(workdir: str) -> dict[str, dict[str, object]]:
    """Shape, dtype and digest of each leaf of a run's newest state."""
    return checkpoint.load_manifest(workdir, checkpoint.steps(workdir)[-1])["state"]


def test_a_result_is_that_of_the_newest_evaluation(tmp_path: Path, no_plots: None) -> None:
    """Of a run that ends, of one that a signal ends before its first evaluation, and of one that was complete."""
    workdir, given = str(tmp_path / "w"), digits()
    early = run.train(given, workdir, runtime(signals=lambda: "SIGTERM"))
    assert early == RunResult(workdir, 1, "SIGTERM")
    result = run.train(given, workdir, runtime())
    line = [line for line in metrics.read(workdir) if line["kind"] == "eval"][-1]
    assert (result.steps, result.signal, result.evaluated) == (6, None, 6)
    assert (result.metrics, result.stderr) == (line["metrics"], line["stderr"])
    assert set(result.stderr) == set(result.metrics) >= {"loss", "accuracy"}
    assert run.train(given, workdir, runtime()) == result == read_result(workdir, 6)
    assert read_result(workdir, 5).evaluated == 3
    assert read_result(str(tmp_path / "none"), 0) == RunResult(str(tmp_path / "none"), 0)


def test_a_damaged_line_of_metrics_costs_no_result(tmp_path: Path) -> None:
    """What is no number is left out; one that is not finite is a text in the file."""
    line = {
        "kind": "eval",
        "step": 3,
        "time": 0.0,
        "metrics": {"loss": "nan", "accuracy": None, "f1": 0.5},
        "stderr": {},
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    found = read_result(str(tmp_path), 3)
    assert math.isnan(found.metrics.pop("loss"))
    assert found.metrics == {"f1": 0.5}


def test_two_halves_of_the_devices_run_at_once(tmp_path: Path, no_plots: None) -> None:
    """Each ends as it does alone, bit for bit; so do runs of other meshes and precisions, one after another."""
    halves = {"first": jax.devices()[:4], "second": jax.devices()[4:]}
    given = {"first": digits(mesh="fsdp:2,tp:2"), "second": digits(train__precision="bf16", seed=1)}
    alone, together = ({name: str(tmp_path / f"{kind}-{name}") for name in halves} for kind in ("alone", "together"))
    results: dict[str, RunResult] = {}

    def train(name: str, workdir: str) -> None:
        results[workdir] = run.train(given[name], workdir, runtime(), devices=halves[name])

    for name, workdir in alone.items():
        train(name, workdir)
    threads = [threading.Thread(target=train, args=item) for item in together.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in halves:
        assert digests(together[name]) == digests(alone[name])
        assert results[together[name]].metrics == results[alone[name]].metrics
        assert results[alone[name]].steps == 6
