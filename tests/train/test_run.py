"""A run from its command to its files."""

import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import launch
from configs import reader
from errors import UsageError
from tests.support.runs import config_of, runtime, train
from train import checkpoint, introduction, run
from train.plots import curves
from train.record import metrics
from train.sharding import device_batches
from train.update import step
from train.verbs import evaluate as evaluate_verb

pytestmark = pytest.mark.usefixtures("no_plots")


def test_checkpoints_are_compared_on_the_same_examples(tmp_path: Path) -> None:
    """With eval.limit the best is chosen by the first batches of each, though the last is measured on all."""
    assert train(tmp_path / "w", "--config.eval.limit=1") == 0
    scored = {n: checkpoint.load_manifest(str(tmp_path / "w"), n)["metrics"]["loss"] for n in (10, 20, 30)}
    lines = {r["step"]: r["metrics"]["loss"] for r in metrics.read(str(tmp_path / "w")) if r["kind"] == "eval"}
    assert (lines[10], lines[20]) == (scored[10], scored[20])
    cfg = config_of(tmp_path / "w", 30)
    assert evaluate_verb.evaluate_checkpoint(cfg, str(tmp_path / "w"), 30, runtime()).metrics["loss"] == scored[30]
    cfg = cfg.replace({"eval.limit": None})  # as the verb has it
    whole = evaluate_verb.evaluate_checkpoint(cfg, str(tmp_path / "w"), 30, runtime()).metrics["loss"]
    assert lines[30] == whole != scored[30]


def test_a_folder_may_have_an_at_in_its_name(finished_run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = finished_run_copy.rename(finished_run_copy.parent / "w@home")
    assert launch.main(["eval", f"--workdir={odd}"]) == 0
    assert launch.main(["eval", f"--workdir={odd}@20"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint 30 of" in out
    assert "checkpoint 20 of" in out


def test_a_run_leaves_its_files(finished_run: Path) -> None:
    assert {p.name for p in finished_run.iterdir()} == {
        *("config.json", "metrics.jsonl", "events", "plots", "lock", "checkpoints")
    }
    assert checkpoint.steps(str(finished_run)) == [10, 20, 30]
    lines = metrics.read(str(finished_run))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [10, 20, 30]
    assert all({"v", "time", "wall", "metrics", "stderr", "split"} <= line.keys() for line in lines)
    assert (finished_run / "plots" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert any((finished_run / "events").iterdir())
    manifest = checkpoint.load_manifest(str(finished_run), 30)
    assert manifest["step"] == 30
    assert manifest["phases"] == [{"from_step": 0, "batch_size": 64, "weights": [1.0]}]
    assert manifest["state"]["params/head/kernel"]["shape"] == [128, 16]


def test_the_curve_of_losses_falls(finished_run: Path) -> None:
    losses = [line["metrics"]["loss"] for line in metrics.read(str(finished_run)) if line["kind"] == "eval"]
    assert losses[0] > losses[1] > losses[2]


def test_eval_on_one_device_equals_eval_on_eight(finished_run: Path) -> None:
    cfg = config_of(finished_run, 30)
    eight = evaluate_verb.evaluate_checkpoint(cfg, str(finished_run), 30, runtime())
    cfg = cfg.replace({"mesh": "dp:1"})
    one = evaluate_verb.evaluate_checkpoint(cfg, str(finished_run), 30, runtime(), jax.devices()[:1])
    cfg = cfg.replace({"eval.batch": 7})
    uneven = evaluate_verb.evaluate_checkpoint(cfg, str(finished_run), 30, runtime(), jax.devices()[:1])
    logged = [line for line in metrics.read(str(finished_run)) if line["kind"] == "eval"][-1]
    for name, value in eight.metrics.items():
        assert abs(one.metrics[name] - value) < 1e-6
        assert abs(uneven.metrics[name] - value) < 1e-6
        assert abs(logged["metrics"][name] - value) < 1e-6
    assert one.examples == uneven.examples == 359


@pytest.mark.usefixtures("with_plots")
def test_eval_leaves_pictures_of_a_classifier(finished_run_copy: Path, capsys) -> None:
    """Each checkpoint's own, said in one line; those of an earlier evaluation go; none where one must not write."""
    few = "--config.eval.limit=1"
    plots, made = finished_run_copy / "plots", ("confusion", "calibration", "mistakes")
    (plots / "eval-20-passages.txt").write_text("old")
    for n in (30, 20):
        assert launch.main(["eval", f"--workdir={finished_run_copy}@{n}", few]) == 0
        names = ", ".join(f"eval-{n}-{what}.png" for what in made)
        assert f"to look at, in {plots}: {names}\n" in capsys.readouterr().out
    files = sorted(p.name for p in plots.iterdir())
    assert files == [
        *(f"eval-{n}-{what}.png" for n in (20, 30) for what in sorted(made)),
        "loss.png",
    ]
    assert all((plots / name).read_bytes()[:4] == b"\x89PNG" for name in files)

    shutil.rmtree(plots)
    plots.write_text("no folder")
    assert launch.main(["eval", f"--workdir={finished_run_copy}", few]) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    assert "nothing drawn: " in out


def test_eval_takes_no_other_optimizer(finished_run_copy: Path, capsys) -> None:
    """It says which parameters are meant, those of schedule_free or of a mean, and is what was trained."""
    assert launch.main(["eval", f"--workdir={finished_run_copy}", "--config.optim.name=schedule_free"]) == 2
    assert "'optim.name' has no effect here" in capsys.readouterr().err


def test_the_same_command_again_says_complete(finished_run_copy: Path, capsys) -> None:
    assert train(finished_run_copy) == 0
    assert "is complete" in capsys.readouterr().out


def test_another_identity_is_refused_and_nothing_is_touched(finished_run_copy: Path, capsys) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished_run_copy.rglob("*")}
    assert train(finished_run_copy, "--config.optim.beta1=0.8") == 2
    assert "optim.beta1: 0.9 -> 0.8" in capsys.readouterr().err
    assert train(finished_run_copy, "--config.train.batch=32") == 2
    assert "resume=extend" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in finished_run_copy.rglob("*")} == before


def test_extending_records_a_phase(finished_run_copy: Path) -> None:
    more = ("--config.train.batch=32", "--config.train.steps=40", "--config.resume=extend")
    assert train(finished_run_copy, *more) == 0
    phases = checkpoint.load_manifest(str(finished_run_copy), 40)["phases"]
    assert phases[1:] == [{"from_step": 30, "batch_size": 32, "weights": [1.0]}]
    kinds = [line.get("note", "") for line in metrics.read(str(finished_run_copy))]
    assert any(note.startswith("resumed") for note in kinds)


def test_a_signal_saves_and_ends_the_run(tmp_path: Path) -> None:
    cfg = reader.override(reader.read("configs/mlp.py:digits"), [("train.steps", "4"), ("checkpoint.every", "None")])
    interrupted = runtime(signals=lambda: "SIGTERM")
    assert run.train(cfg, str(tmp_path / "w"), interrupted).signal == "SIGTERM"
    assert checkpoint.steps(str(tmp_path / "w")) == [1]


class Bell:
    """A signal that comes when it has been asked for so many times."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> str | None:
        self.left -= 1
        return "SIGTERM" if self.left < 0 else None


def test_a_signal_in_an_evaluation_saves_at_once(tmp_path: Path) -> None:
    """It is left undone, in the middle and at the end, and done by the run that goes on: @best knows of it too."""
    given = [("train.steps", "4"), ("eval.every", "2"), ("eval.batch", "8"), ("checkpoint.every", "2")]
    cfg = reader.override(reader.read("configs/mlp.py:digits"), given)
    workdir = str(tmp_path / "w")

    def measured() -> dict[int, Any]:
        return {r["step"]: r["metrics"] for r in metrics.read(workdir) if r["kind"] == "eval"}

    def kept() -> dict[int, Any]:
        return {n: checkpoint.load_manifest(workdir, n)["metrics"] for n in checkpoint.steps(workdir)}

    assert run.train(cfg, workdir, runtime(signals=Bell(2 + 3))).signal == "SIGTERM"
    assert (kept(), measured()) == ({2: None}, {})
    assert run.train(cfg, workdir, runtime(signals=Bell(3))).signal == "SIGTERM"  # again, before the first update
    assert (kept(), measured()) == ({2: None}, {})
    assert (
        run.train(cfg, workdir, runtime(signals=Bell(45 + 2 + 3))).signal == "SIGTERM"
    )  # 45 batches are an evaluation
    assert measured().keys() == {2}
    assert kept() == {**measured(), 4: None}
    assert run.train(cfg, workdir, runtime()).signal is None
    assert measured().keys() == {2, 4}
    assert kept() == measured()
    again = runtime()
    assert run.train(cfg, workdir, again).signal is None
    assert "is complete" in again.stdout.getvalue()


def test_a_run_that_no_longer_learns_stops_and_says_so(tmp_path: Path, capsys) -> None:
    more = ("--config.optim.name=sgd", "--config.optim.lr=1e38", "--config.train.max_skipped=2")
    assert train(tmp_path / "w", *more) == 1
    assert "not finite" in capsys.readouterr().err
    events = [line for line in metrics.read(str(tmp_path / "w")) if line["kind"] == "event"]
    assert len(events) == 4  # and the one that was under way


def test_a_run_that_made_no_update_is_never_done(tmp_path: Path, capsys) -> None:
    """However often it is started again, saves or not; another rate goes on."""
    wild = ("--config.optim.name=sgd", "--config.optim.lr=1e38", "--config.train.max_skipped=2")
    wild = (*wild, "--config.checkpoint.every=2", "--config.train.steps=4")
    for says in ("updates 1 to 3 changed no parameter", "updates 1 to 3 changed no parameter"):
        assert train(tmp_path / "w", *wild) == 1
        assert says in capsys.readouterr().err
    assert checkpoint.load_manifest(str(tmp_path / "w"), 2)["skipped"] == 2
    assert train(tmp_path / "w", *wild, "--config.train.max_skipped=1") == 1
    assert "has stopped at update 2" in capsys.readouterr().err
    assert train(tmp_path / "w", *wild, "--config.optim.lr=0.1", "--config.resume=extend") == 0
    assert checkpoint.load_manifest(str(tmp_path / "w"), 4)["skipped"] == 0


@pytest.mark.usefixtures("with_plots")
def test_drawing_fails_no_run(finished_run_copy: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the folder of plots goes, and a matplotlib that does not draw."""
    shutil.rmtree(finished_run_copy / "plots")
    (finished_run_copy / "plots").write_text("no folder")
    assert train(finished_run_copy) == 0
    out = capsys.readouterr().out
    assert "no curve drawn: " in out
    assert "is complete" in out

    def fail(*size: float) -> None:
        raise ValueError("no backend")

    monkeypatch.setattr(curves, "make_figure", fail)
    assert train(finished_run_copy) == 0
    assert "no curve drawn: no backend; checkpoint 30 in" in capsys.readouterr().out
    assert launch.main(["eval", f"--workdir={finished_run_copy}", "--config.eval.limit=1"]) == 0
    assert "nothing drawn: " in capsys.readouterr().out


def test_a_finished_run_says_so_where_nothing_can_be_written(
    finished_run_copy: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(workdir: str) -> None:
        raise UsageError("read-only")

    monkeypatch.setattr(checkpoint, "prepare", refuse)
    assert train(finished_run_copy) == 0
    assert "is complete: 30 of 30" in capsys.readouterr().out
    assert train(finished_run_copy, "--config.train.steps=40", "--config.resume=extend") == 2
    assert "read-only" in capsys.readouterr().err


def test_a_finished_run_says_so_where_its_lock_cannot_be_held(finished_run_copy: Path, capsys) -> None:
    (finished_run_copy / "lock").unlink()
    (finished_run_copy / "lock").mkdir()
    assert train(finished_run_copy) == 0
    assert "is complete: 30 of 30" in capsys.readouterr().out
    assert train(finished_run_copy, "--config.train.steps=40", "--config.resume=extend") == 2
    err = capsys.readouterr().err
    assert (
        f"cannot hold checkpoints: {finished_run_copy}/lock cannot be read: it is a folder, not a regular file" in err
    )


def test_an_evaluation_without_a_finite_loss_fails(
    finished_run_copy: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not look like a number; of several checkpoints the others are measured all the same."""
    views, spoils = step.eval_variables, iter([True, True, False, True])

    def broken(*args) -> dict:
        spoilt = next(spoils)
        return jax.tree.map(lambda x: x * math.nan if spoilt else x, views(*args))

    monkeypatch.setattr(step, "eval_variables", broken)
    assert launch.main(["eval", f"--workdir={finished_run_copy}"]) == 1
    out, err = capsys.readouterr()
    assert "loss not finite in 359" in out
    assert "the loss is not finite in 359 of 359 rows" in err
    assert launch.main(["eval", f"--workdir={finished_run_copy}@all"]) == 1
    out = capsys.readouterr().out
    for n, says in ((10, "is not finite in 359"), (20, ", test: loss"), (30, "is not finite in 359")):
        assert any(f"checkpoint {n} of" in line and says in line for line in out.splitlines())


def test_data_that_are_not_finite_are_refused() -> None:
    """A number that only a sum overflows is none of them, nor are whole numbers."""
    good = {"image": np.full((2, 9), 3e38, np.float32), "label": np.zeros(2, np.int32)}
    assert device_batches.check_finite_batch(good) is good
    for value in (math.nan, math.inf, -math.inf):
        bad = good["image"].copy()
        bad[1, 3] = value
        with pytest.raises(UsageError, match="'image' is not finite in 1 of the 2 rows"):
            device_batches.check_finite_batch({**good, "image": bad})


def test_every_verb_explains_itself(capsys) -> None:
    for verb in launch.VERBS:
        assert launch.main([verb, "--help"]) == 0
        assert "--debug" in capsys.readouterr().out or verb
    assert launch.main(["doctor"]) == 0
    assert "no problems" in capsys.readouterr().out


def _eval_leaves_passages(tmp_path: Path, capsys) -> None:
    assert launch.main(["eval", f"--workdir={tmp_path}/w", "--config.eval.limit=4"]) == 0
    written = tmp_path / "w" / "plots" / "eval-2-passages.txt"
    assert f"to look at, in {written.parent}: {written.name}\n" in capsys.readouterr().out
    text = written.read_text()
    assert text.startswith("gpt on pydoc_text, validation, checkpoint 2: the 20 windows of highest loss, of 256\n")
    assert text.count("nats per token over 16 tokens") == 20
    written.unlink()
    (tmp_path / "short.txt").write_text("ten signs.")  # its last tenth is no window
    assert launch.main(["eval", f"--workdir={tmp_path}/w", f"--config.data.name={tmp_path}/short.txt"]) == 2
    assert "no document of two tokens or more" in capsys.readouterr().err
    assert not written.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("with_plots")
def test_text_is_sampled_from_a_checkpoint(tmp_path: Path, capsys) -> None:
    args = [
        "--config=configs/gpt.py:quick",
        "--config.train.steps=2",
        "--config.model.depth=1",
        "--config.eval.limit=1",
    ]
    small = [
        "--config.model.width=16",
        "--config.model.context=16",
        "--config.train.batch=8",
        "--config.schedule.warmup=0",
        "--config.optim.name=sgd",
    ]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *args, *small]) == 0
    _eval_leaves_passages(tmp_path, capsys)
    sample = ["sample", f"--workdir={tmp_path}/w", "--prompt=import", "--max_new_tokens=20", "--temperature=0"]
    assert launch.main(sample) == 0
    first = capsys.readouterr().out
    assert first.startswith("import")
    assert len(first) > 20
    assert launch.main(sample) == 0
    assert capsys.readouterr().out == first
    _what_a_verb_does_not_read_is_refused(tmp_path, capsys)
    tokenizer = tmp_path / "w" / "checkpoints" / "2" / "tokenizer" / "tokenizer.json"
    for spoilt in ('{"kind": "char", "characters": "abc"}', '{"kind', None):
        tokenizer.unlink() if spoilt is None else tokenizer.write_text(spoilt)
        assert launch.main(sample) == 1
        assert "its tokenizer" in capsys.readouterr().err


def _what_a_verb_does_not_read_is_refused(tmp_path: Path, capsys) -> None:
    for verb, key, flags in (
        ("sample", "eval.limit=3", ()),
        ("sample", "data.split=test", ()),
        ("eval", "data.workers=1", ()),
        ("eval", "eval.overlap=2", ("--task=lambada",)),
        ("convert", "eval.batch=2", (f"--export={tmp_path}/h",)),
    ):
        assert launch.main([verb, f"--workdir={tmp_path}/w", f"--config.{key}", *flags]) == 2
        name = key.partition("=")[0]
        assert f"config key {name!r} = " in (err := capsys.readouterr().err)
        assert "has no effect" in err


def test_rows_that_the_context_cuts_are_said() -> None:
    (line,) = introduction.shortened_note(64, 32)
    assert "rows have 32 tokens, the model's context, and not data.max_length = 64" in line
    assert not any(
        introduction.shortened_note(length, context) for length, context in ((32, 32), (None, 32), (64, None))
    )
