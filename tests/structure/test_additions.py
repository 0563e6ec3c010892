"""ARCHITECTURE's table of what to touch: its names exist, and its short rows are enough."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import launch
import models
from cli.flags import HELP
from configs import gpt
from configs.knobs import RunConfig
from data import sources
from data.images import augment
from data.sources import builtin
from data.types import texts
from errors import UsageError
from tests.support import ROOT
from train.runtime import Runtime
from train.setup import inputs
from train.setup.setup import make_tokenizer
from train.tasks import TASKS, get_task
from train.update import optim, schedules

ROWS = [line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("| ") and " | " in line]
NAMED = sorted({(m[1], m[2]) for line in ROWS for m in re.finditer(r"`([\w/]+\.py): (\w+(?:\.\w+)?)`", line)})


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_table_names_exists(file: str, name: str) -> None:
    """Each `file: NAME` is a name at the top of that file, or a method of a class there."""
    text = (ROOT / file).read_text()
    for part in name.split("."):
        assert re.search(rf"^ *(def |class |async def )?{part}\b[ :=(\[]", text, re.MULTILINE)


def test_an_embedded_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair in BUILTIN is loaded by name, for its splits only."""
    monkeypatch.setitem(builtin.BUILTIN, "mine", (lambda split: texts("mine", split, ["a text"]), ("train",)))
    assert sources.load("mine", "train").documents == ("a text",)  # type: ignore[union-attr]
    assert sources.splits_of("mine") == ("train",)
    config = RunConfig().replace({"data.name": "mine", "data.tokenizer": "char"})
    assert make_tokenizer(config, Runtime(lambda: 0.0, {}, io.StringIO())).vocab > 0


def test_a_kind_of_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The module of docs/add_a_source.md, in KINDS: its files are read, in parts too, and what they lack is named."""
    page = (ROOT / "docs" / "add_a_source.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    libsvm: Any = ModuleType("libsvm")
    exec(compile(code, "docs/add_a_source.md", "exec"), vars(libsvm))
    monkeypatch.setattr(sources, "KINDS", [libsvm, *sources.KINDS])
    file = tmp_path / "a.svm"
    file.write_text("1 1:0.5 3:2\n0 2:1\n1\n")
    assert sources.splits_of(str(file)) == ("train",)
    rows = sources.load(str(file), "train[1:]").__getitems__([0, 1])  # type: ignore[attr-defined]
    assert rows["features"].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert rows["label"].tolist() == [0, 1]
    file.write_text("1 1:0.5\n0 one:1\n")
    with pytest.raises(UsageError, match=r"a\.svm, line 2: '0 one:1' is not LABEL INDEX:VALUE"):
        sources.load(str(file), "train")


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    """That of docs/data.md."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "own.py").write_text(code)
    name = f"{tmp_path}/own.py:circles"
    assert sources.splits_of(name) == ("train", "test")
    assert sources.load(name, "test").classes == 2


def test_a_schedule_and_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of SCHEDULES and one of OPTIMIZERS are found by their knobs."""
    monkeypatch.setitem(schedules.SCHEDULES, "mine", lambda config, updates: optax.constant_schedule(0.5))
    monkeypatch.setitem(optim.OPTIMIZERS, "mine", lambda config, decay, specs: [decay])
    config = RunConfig().replace({"schedule.name": "mine", "optim.name": "mine"})
    assert schedules.make(config.schedule, 2.0, 10)(jnp.array(3)) == 1.0
    assert optim.make(config.optim, models.build("mlp").specs["params"]) is not None


def test_a_loss_and_an_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of TASKS, and an operation with its form."""
    monkeypatch.setitem(TASKS, "mine", TASKS["softmax"])
    assert get_task("mine").output_kind == "classifier"
    black: Callable[..., Any] = lambda image, draw, frame: np.zeros_like(image)  # noqa: E731
    monkeypatch.setitem(augment.OPERATIONS, "mine", black)
    monkeypatch.setitem(augment.SYNTAX, "mine", augment.OpSyntax("mine", ()))
    config = RunConfig().replace({"data.augment": "mine"})
    batch = {"image": np.full((2, 4, 4, 1), 255, np.uint8)}
    assert not inputs.train_transform(config)(batch, 0, np.arange(2))["image"].any()


def test_a_verb_and_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of VERBS with its help, and an entry of CONFIGS."""
    monkeypatch.setitem(launch.VERBS, "mine", lambda args, assignments: launch.DONE)
    monkeypatch.setitem(HELP, "mine", "Mine.")
    assert launch.main(["mine", "--help"]) == launch.main(["mine"]) == launch.DONE
    monkeypatch.setitem(gpt.CONFIGS, "mine", {"seed": 3})
    assert gpt.get_config("mine+no_warmup").seed == 3
