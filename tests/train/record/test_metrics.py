"""What a run writes down."""

import io
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import launch
from errors import UsageError
from train.record import metrics
from train.runtime import Runtime
from train.tasks import TASKS


def runtime(now: list[float]) -> Runtime:
    return Runtime(lambda: now[0], {}, io.StringIO())


def test_a_resume_voids_later_lines(tmp_path: Path) -> None:
    """Lines of a greater step than the resume's are dropped, others and the event stay, in order."""
    now = [100.0]
    recorder = metrics.Recorder(str(tmp_path), runtime(now))
    for step in (10, 20, 30):
        recorder.write("train", step, {"loss": step / 10})
    recorder.close()
    now[0] = 500.0
    recorder = metrics.Recorder(str(tmp_path), runtime(now))
    recorder.write("event", 20, {}, note="resumed from checkpoint 20")
    recorder.write("train", 30, {"loss": 9.0})
    recorder.write("event", 30, {}, note="skipped: the loss or the gradient was not finite")
    recorder.close()

    lines = metrics.read(str(tmp_path))
    assert [(x["kind"], x["step"]) for x in lines] == [
        ("train", 10), ("train", 20), ("event", 20), ("train", 30), ("event", 30)
    ]  # fmt: skip
    assert lines[3]["metrics"] == {"loss": 9.0}
    assert [x["wall"] for x in lines] == [0, 0, 400, 400, 400]  # since the first start
    assert set(lines[0]) == {"v", "kind", "step", "time", "wall", "split", "metrics", "stderr"}
    assert list((tmp_path / "events").iterdir())


def test_a_torn_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    """A killed process's half line is not read, and the next recorder does not write behind it."""
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"v": 1, "kind": "train", "step": 1, "time": 5.0, "wall": 0.0, "split": None, "metrics": {}})
    path.write_text(f'{whole}\n{{"v":1,"kind":"tr')
    assert [x["step"] for x in metrics.read(str(tmp_path))] == [1]
    recorder = metrics.Recorder(str(tmp_path), runtime([7.0]))
    recorder.write("train", 2, {})
    recorder.close()
    assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == [1, 2]
    assert metrics.read(str(tmp_path))[1]["wall"] == 2


@pytest.mark.filterwarnings("ignore:.*NaN or Inf.*")
def test_non_finite_metrics_are_strings(tmp_path: Path) -> None:
    """JSON has no NaN: strict parsers must be able to read the file."""
    recorder = metrics.Recorder(str(tmp_path), runtime([0.0]))
    recorder.write("eval", 1, {"loss": math.nan, "lr": 0.5}, split="test", stderr={"loss": math.inf, "lr": -math.inf})
    recorder.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["metrics"] == {"loss": "nan", "lr": 0.5}
    assert line["stderr"] == {"loss": "inf", "lr": "-inf"}
    assert line["split"] == "test"


def test_every_metric_has_a_unit() -> None:
    """What the tasks measure is in the table of units."""
    logits = jnp.zeros((2, 3, 4))
    batch = {"targets": jnp.zeros((2, 3), jnp.int32), "weight": jnp.ones((2, 3)), "bytes": jnp.ones((2, 3))}
    rows = {"label": jnp.zeros(2, jnp.int32), "weight": jnp.ones(2)}
    names = set(TASKS["next_token"].terms(logits, batch)) | set(TASKS["softmax"].terms(jnp.zeros((2, 6)), rows))
    assert "top5_accuracy" in names
    assert names | {"perplexity", "ece", "grad_norm", "lr", "skipped"} <= set(metrics.UNITS)


class Wandb:
    """What of the package wandb a run calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def init(self, **settings: Any) -> "Wandb":
        self.calls.append(("init", settings))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", (step, values)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_a_run_reports_to_wandb_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run there for one workdir, with the config; every line of metrics once, under its step."""
    theirs = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", theirs)
    settings = ["--config=configs/mlp.py:xor", "--config.mesh=tp:*", "--config.train.steps=20"]
    settings += ["--config.log.every=5", "--config.eval.every=10", "--config.log.wandb=trials"]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *settings]) == 0
    (kind, begun), *logged, last = theirs.calls
    assert (kind, last) == ("init", ("finish", None))
    assert (begun["project"], begun["id"], begun["resume"]) == (
        "trials",
        (tmp_path / "w" / "wandb_id").read_text(),
        "allow",
    )
    assert begun["config"]["train"]["steps"] == 20
    lines = [r for r in metrics.read(str(tmp_path / "w")) if r["kind"] != "event"]
    want = [(r["step"], {f"{r['split'] or r['kind']}/{k}": v for k, v in r["metrics"].items()}) for r in lines]
    assert [what for _, what in logged] == want
    assert {r["kind"] for r in lines} == {"train", "eval"}


def test_runs_of_one_name_are_two_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one run is one, however often it is taken up."""
    theirs = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", theirs)
    for folder in ("a", "a", "b"):
        (tmp_path / folder / "seed0").mkdir(parents=True, exist_ok=True)
        metrics.Recorder(str(tmp_path / folder / "seed0"), runtime([0.0]), project="trials").close()
    first, again, other = (settings["id"] for kind, settings in theirs.calls if kind == "init")
    assert first == again != other


FIELDS = {"v": 1, "kind": "train", "step": 2, "time": 5.0, "wall": 0.0, "split": None, "metrics": {}, "stderr": {}}
WRONG = [  # of a field of a line
    *({"step": "x"}, {"step": None}, {"step": 1.5}, {"step": True}, {"step": 10**400}, {"time": "y"}, {"time": None}),
    *({"time": math.nan}, {"time": 10**400}, {"note": 3}, {"note": None}, {"metrics": None}, {"metrics": [1]}),
    *({"split": 3}, {"kind": 7}, {"kind": None}, {"stderr": 1}),
]
LINES = [b"null", b"{}", b"[1]", b'{"kind": "train"}', b"\xff", b"[" * 100_000, b"\0\0", b'"x"', b"3", b""]


@pytest.mark.parametrize("line", [*LINES, *(json.dumps({**FIELDS, **one}).encode() for one in WRONG)])
def test_a_line_that_is_none_of_ours_is_passed_over(line: bytes, tmp_path: Path) -> None:
    recorder = metrics.Recorder(str(tmp_path), runtime([0.0]))
    recorder.write("train", 1, {"loss": 1.0})
    recorder.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    lines: list[str] = []
    assert [r["step"] for r in metrics.read(str(tmp_path), lines.append)] == [1]
    assert len(lines) == 1
    assert "line 2 cannot be read" in lines[0]


def test_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"metrics\.jsonl is a folder"):
        metrics.Recorder(str(tmp_path), runtime([0.0]))


def test_a_workdir_that_is_no_more_is_noticed(tmp_path: Path) -> None:
    recorder = metrics.Recorder(str(tmp_path / "w"), runtime([0.0]))
    recorder.write("train", 1, {"loss": 1.0})
    shutil.rmtree(tmp_path / "w")
    with pytest.raises(RuntimeError, match="was deleted while the run wrote to it"):
        recorder.write("train", 2, {"loss": 1.0})
    recorder.close()


def test_wandb_is_not_asked_for_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Without the package a run that asks is refused before anything is written; one that does not ask goes on."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = ["--config=configs/mlp.py:xor", "--config.mesh=tp:*", "--config.train.steps=1"]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *settings, "--config.log.wandb=trials"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert launch.main(["train", f"--workdir={tmp_path}/w", *settings]) == 0
