"""Old names of the public interface: refused with the new ones, and read in the files of older runs."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import launch
import models
import renamed
from cli.flags import define_flags
from configs import base, reader
from configs.knobs import ModelConfig, RunConfig
from data.sources import multiple_choice
from errors import UsageError, unknown
from models.blocks.attention import attention
from models.families import mlp
from tests.support.runs import config_of, runtime
from train.record import metrics
from train.tasks import TASKS, get_task
from train.verbs import evaluate as evaluate_verb

OLDER = Path(__file__).parent / "fixtures" / "run_of_62e66cd"  # made by that commit, under the old names


def test_the_tables_agree_with_the_code() -> None:
    """Every new name exists, and no old one does."""
    tables = [
        (renamed.KNOBS, base.KNOBS),
        (renamed.METRICS, metrics.UNITS),
        (renamed.TASKS, multiple_choice.EVAL_KINDS),
    ]
    tables += [(renamed.WORDS["loss"], TASKS), (renamed.WORDS["train.attention"], attention.BACKENDS)]
    tables += [(renamed.WORDS["model.init"], mlp.INITIALIZERS)]
    tables += [(names, set(define_flags(verb))) for verb, names in renamed.FLAGS.items()]
    for family, names in renamed.FIELDS.items():
        tables.append((names, {field.name for field in dataclasses.fields(models.FAMILIES[family].Config)}))
    for names, legal in tables:
        assert set(names.values()) <= set(legal)
        assert not set(names) & set(legal)
        assert len(set(names.values())) == len(names)
    assert set(renamed.WORDS) == {"loss", "train.attention", "model.init"}


def test_an_old_name_is_refused_with_the_new_one() -> None:
    """But not where the new name is none of those that are legal."""
    assert str(unknown("knob", "old", ["new"], {"old": "new"})) == "unknown knob 'old': it is now called 'new'"
    assert "now called" not in str(unknown("knob", "old", ["other"], {"old": "new"}))
    assert "now called" not in str(unknown("knob", "odd", ["new"], {"old": "new"}))


@pytest.mark.parametrize(("old", "new"), renamed.KNOBS.items())
def test_an_old_knob(old: str, new: str) -> None:
    """In a config file as in an assignment."""
    for refused in (lambda: RunConfig().replace({old: None}), lambda: reader.parse(old, "1")):
        with pytest.raises(UsageError, match=f"'{old}': it is now called '{new}'"):
            refused()


@pytest.mark.parametrize(
    ("verb", "old", "new"), [(verb, *names) for verb, table in renamed.FLAGS.items() for names in table.items()]
)
def test_an_old_flag(verb: str, old: str, new: str, capsys) -> None:
    """With its value or before it; as an argument of its own too."""
    for flag in (f"--{old}=1", f"--{old}", f"-{old}"):
        assert launch.main([verb, flag, "1"]) == 2
        assert f"'--{old}': it is now called '--{new}'" in capsys.readouterr().err
    assert launch.main(["sample", "--nostats"]) == 2
    assert "'--timing'" in capsys.readouterr().err


def test_an_old_word() -> None:
    """Of a loss, a backend of attention, and a task."""
    with pytest.raises(UsageError, match="'squared': it is now called 'mse'"):
        get_task("squared")
    with pytest.raises(UsageError, match="'kernel': it is now called 'splash'"):
        models.build("gpt", attention="kernel")
    with pytest.raises(UsageError, match="'he': it is now called 'he_normal'"):
        models.build("mlp", init="he")
    for old, new in renamed.TASKS.items():
        with pytest.raises(UsageError, match=f"'{old}': it is now called '{new}'"):
            multiple_choice.eval_kind(old, "pydoc_text", None)


def test_an_old_field(monkeypatch) -> None:
    """Of a model: refused where one is built, read in an older config."""
    monkeypatch.setitem(renamed.FIELDS, "gpt", {"breadth": "width"})
    with pytest.raises(UsageError, match="'breadth': it is now called 'width'"):
        models.build("gpt", breadth=8)
    text = json.dumps({"model": {"family": "gpt", "breadth": 8}})
    assert reader.from_json(text).model == ModelConfig("gpt", None, {"width": 8})
    other = reader.from_json(text.replace("gpt", "bert")).model
    assert other.fields["breadth"] == 8


def test_an_older_config_is_read() -> None:
    """Knobs, and the words that they take; under the new names the same text is read as it stands."""
    old = {"loss": "squared", "train": {"attention": "kernel", "smoothing": 0.1, "carry": True}}
    old |= {"data": {"vocab": 300, "fit": "stretch"}, "schedule": {"steps": "3:0.1"}}
    cfg = reader.from_json(json.dumps(old))
    assert (cfg.loss, cfg.train.attention, cfg.train.label_smoothing, cfg.train.stateful) == (
        "mse",
        "splash",
        0.1,
        True,
    )
    assert (cfg.data.vocab_size, cfg.data.resize_mode, cfg.schedule.milestones) == (300, "stretch", "3:0.1")
    assert reader.from_json(cfg.to_json()) == cfg
    perceptron = reader.from_json(json.dumps({"model": {"family": "mlp", "law": "he"}})).model
    assert perceptron.fields == {"init": "he_normal"}


def test_older_metrics_are_read(tmp_path: Path) -> None:
    """Whole, by entry and of a mean of parameters; another name that begins so is another metric."""
    names = [
        "box",
        "ahead_expert_load_max",
        "ahead_expert_load/0/3",
        "ema_accuracy_top5",
        "balance",
        "boxes",
        "ahead_x",
    ]
    line = {"v": 1, "kind": "eval", "step": 1, "time": 5.0, "wall": 0.0, "split": "test"}
    line |= {"metrics": dict.fromkeys(names, 1.0), "stderr": {"ema_accuracy_top5": 0.5}}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    read = metrics.read(str(tmp_path))[0]
    want = ["box_loss", "mtp_expert_load_max", "mtp_expert_load/0/3", "ema_top5_accuracy", "router_aux_loss"]
    assert list(read["metrics"]) == [*want, "boxes", "ahead_x"]
    assert read["stderr"] == {"ema_top5_accuracy": 0.5}


def test_a_run_of_an_older_commit_goes_on(tmp_path: Path, capsys) -> None:
    """It is evaluated with the loss that it wrote, and extended."""
    run = tmp_path / "w"
    shutil.copytree(OLDER, run)
    cfg = config_of(run, 20)
    assert (cfg.optim.weight_decay, cfg.optim.clip_norm, cfg.schedule.end_fraction) == (0.1, 1.0, 0.1)
    wrote = metrics.read(str(run))[-1]
    cfg = cfg.replace({"mesh": "tp:*"})  # 4 rows, which 8 devices do not share
    found = evaluate_verb.evaluate_checkpoint(cfg, str(run), 20, runtime())
    assert set(found.metrics) == set(wrote["metrics"])
    np.testing.assert_allclose(found.metrics["loss"], wrote["metrics"]["loss"], rtol=1e-6)
    longer = ["--config.train.steps=22", "--config.resume=extend", "--config.mesh=tp:*"]
    assert launch.main(["train", f"--workdir={run}", *longer]) == 0, capsys.readouterr().err
    lines = metrics.read(str(run))
    assert (lines[-1]["step"], lines[-1]["kind"]) == (22, "eval")
    assert any(line["kind"] == "event" and "train.steps: 20 -> 22" in line["note"] for line in lines)
