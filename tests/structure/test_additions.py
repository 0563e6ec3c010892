"""ARCHITECTURE's table of what to touch: its names exist, and its short rows are enough."""

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import launch
from cli.flags import HELP
from configs import gpt, unread
from configs.knobs import OptimConfig, RunConfig, ScheduleConfig
from data import sources
from data.eval_set import EvalSet
from data.images import augment
from data.sources import builtin
from data.types import texts
from errors import UsageError
from models.core.spec import Spec, zeros
from tests.support import ROOT
from tests.support.cases import B, T, tiny_model
from train.evaluate import callbacks
from train.evaluate.evaluate import Rows, Scores
from train.runtime import Runtime
from train.setup import inputs
from train.setup.setup import make_tokenizer
from train.sharding import mesh
from train.tasks import TASKS, get_task
from train.update import optim, schedules, step

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


def test_a_callback(tmp_path: Path) -> None:
    """That of docs/evaluation.md: the mean of the classes' recall."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "recall.py").write_text(code)
    loss, prediction, label = np.zeros(4), np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1])
    scores = Scores({"loss": 0.0}, {}, 4, 4, rows=Rows(loss, np.ones(4), prediction, label))
    model, rows = tiny_model("mlp"), EvalSet({}, np.arange(4))
    found = callbacks.find_callbacks((f"{tmp_path}/recall.py:balanced",), model)
    evaluation = callbacks.Evaluation(model, {"params": {}}, 0, scores, rows, RunConfig(), print)
    assert callbacks.call(found, evaluation) == {"balanced_accuracy": 0.75}


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    """That of docs/data.md."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "own.py").write_text(code)
    name = f"{tmp_path}/own.py:circles"
    assert sources.splits_of(name) == ("train", "test")
    assert sources.load(name, "test").classes == 2


def test_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of SCHEDULES is found by its knob."""
    monkeypatch.setitem(schedules.SCHEDULES, "mine", lambda config, updates: optax.constant_schedule(0.5))
    assert schedules.make(ScheduleConfig("mine"), 2.0, 10)(jnp.array(3)) == 1.0


def test_an_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/optimizers.md: a transform, its entry of OPTIMIZERS and its knob are enough for a run."""
    page = (ROOT / "docs" / "optimizers.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (entry,) = re.findall(r'`"signum": (lambda .*)`', page)
    signum = ModuleType("signum")
    exec(compile(code, "docs/optimizers.md", "exec"), vars(signum))
    monkeypatch.setitem(optim.OPTIMIZERS, "signum", eval(entry, vars(signum)))
    monkeypatch.setitem(unread.READ_UNDER, "optim.momentum", {"optim.name": ("signum",)})
    tx = optim.make(OptimConfig("signum", momentum=0.5), {"w": Spec((2,), "embed", zeros)})
    params, state = {"w": jnp.zeros(2)}, tx.init({"w": jnp.zeros(2)})
    for gradient, sign in (([1.0, -4.0], [1, -1]), ([-2.0, 1.0], [-1, -1])):
        step, state = tx.update({"w": jnp.array(gradient)}, state, params, lr=jnp.asarray(0.1))
        np.testing.assert_allclose(step["w"], 0.1 * np.array(sign), rtol=1e-6)
    settings = ["--config=configs/mlp.py:digits", "--config.optim.name=signum", "--config.optim.momentum=0.5"]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *settings, "--config.train.steps=3"]) == 0


LOSSES = dict(
    re.findall(
        r"^`train/tasks/(\w+)\.py`:\n\n```python\n(.*?)^```",
        (ROOT / "docs" / "losses.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


def loss_of(name: str) -> Any:
    """The task of the page's module `train/tasks/<name>.py`."""
    module = ModuleType(name)
    exec(compile(LOSSES[name], f"{name}.py", "exec"), vars(module))
    return getattr(module, name.capitalize())


def test_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/losses.md: a class and its entry of TASKS are enough for a run and its evaluation."""
    monkeypatch.setitem(TASKS, "poly", loss_of("poly")())
    value, batch = jnp.zeros((3, 4)), {"label": jnp.zeros(3, jnp.int32), "weight": jnp.ones(3)}
    np.testing.assert_allclose(get_task("poly").terms(value, batch)["loss"][0], math.log(4) + 0.75, rtol=1e-6)
    settings = ["--config=configs/mlp.py:digits", "--config.loss=poly", "--config.train.steps=3"]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *settings]) == 0


def test_a_loss_with_forward_passes_of_its_own() -> None:
    """docs/losses.md: a network that is its own reference prefers nothing, and learns to."""
    net, task = tiny_model("gpt"), loss_of("preference")(beta=1.0)
    place = mesh.make_placement(mesh.make_mesh("dp:8"), net.specs)
    with jax.set_mesh(place.mesh):
        options = step.StepOptions()
        tx = optim.make(OptimConfig(), net.specs["params"])
        state = step.init_on_mesh(net, tx, place, 0, options)
        reference = {"params": jax.tree.map(jnp.copy, state["params"])}
        update = step.make_step(net, task, tx, lambda n: jnp.asarray(1e-2), place, options, {"reference": reference})
        draw, names = np.random.default_rng(0), ("tokens", "targets", "rejected_tokens", "rejected_targets")
        batch = {name: jnp.asarray(draw.integers(0, 100, (B, T)), jnp.int32) for name in names}
        put = {k: jax.device_put(v, place.sharding("batch width")) for k, v in batch.items()}
        put["weight"] = jax.device_put(jnp.ones(B), place.sharding("batch"))
        losses = []
        for _ in range(3):
            state, metrics = update(state, put)
            losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[2] < losses[1] < losses[0]


def test_an_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation with its form."""
    black: Callable[..., Any] = lambda image, draw, frame: np.zeros_like(image)  # noqa: E731
    monkeypatch.setitem(augment.OPERATIONS, "mine", black)
    monkeypatch.setitem(augment.SYNTAX, "mine", augment.OpSyntax("mine", ()))
    config = RunConfig().replace({"data.augment": "mine"})
    batch = {"image": np.full((2, 4, 4, 1), 255, np.uint8)}
    assert not inputs.train_transform(config, TASKS["softmax"])(batch, 0, np.arange(2))["image"].any()


def test_a_verb_and_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of VERBS with its help, and an entry of CONFIGS."""
    monkeypatch.setitem(launch.VERBS, "mine", lambda args, assignments: launch.DONE)
    monkeypatch.setitem(HELP, "mine", "Mine.")
    assert launch.main(["mine", "--help"]) == launch.main(["mine"]) == launch.DONE
    monkeypatch.setitem(gpt.CONFIGS, "mine", {"seed": 3})
    assert gpt.get_config("mine+no_warmup").seed == 3
