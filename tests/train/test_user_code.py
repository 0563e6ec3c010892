"""What a user's own file registers or names: found again by the verbs that start from a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import canon
import imports
import launch
from configs import reader
from configs.knobs import OptimConfig
from configs.unread import unread
from data import sources
from errors import UsageError
from tests.support.cases import tiny_model
from tests.support.configs import config
from train import checkpoint
from train.setup import facts
from train.tasks import TASKS, get_task
from train.update import optim

REGISTERS = """
import jax
import optax

from configs import mlp
from train.tasks import TASKS, SingleForwardTask
from train.tasks.classification import Softmax


class Mine(Softmax):
    unit = "nats, mine"


class Plain(SingleForwardTask):
    output_kind = "classifier"

    def terms(self, value, batch):
        return {}


def direction():
    return optax.scale_by_adam()


def by_config(config):
    return optax.scale_by_adam(config.beta1)


def by_path():
    label = lambda path, x: path[-1].key if x.ndim < 3 else "kernel"
    parts = {"kernel": optax.scale_by_adam(), "bias": optax.scale_by_lion()}
    return optax.chain(
        optax.partition(parts, lambda tree: jax.tree_util.tree_map_with_path(label, tree)),
        optax.masked(optax.scale(2.0), lambda tree: {name: name == "head" for name in tree}),
    )


def wrong_path():
    return optax.masked(optax.scale(2.0), {"no_such_part": True})


def wrong_shape():
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u[None], updates))


def wrong_way():
    return optax.sgd(0.1)


def wrong_way_of_matrices():
    return optax.masked(optax.sgd(0.1), lambda tree: jax.tree.map(lambda x: x.ndim == 2, tree))


def with_key():
    return optax.add_noise(0.01, 0.55, 0)


def no_transform():
    return 3


TASKS["mine"] = Mine()


def get_config(names="digits"):
    config = mlp.get_config(names)
    config.loss = "mine"
    config.optim.name = f"{__file__}:direction"
    return config
"""
QUICK = ["--config.train.steps=2", "--config.log.table=false", "--config.model.classes=10"]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A config file outside of the clone; what it registers is gone again after the test."""
    path = tmp_path / "mine.py"
    path.write_text(REGISTERS)
    yield path
    TASKS.pop("mine", None)


def forget() -> None:
    """What the file registers, as in another process."""
    TASKS.pop("mine")
    imports.RUN.clear()


def test_a_config_file_is_found_again(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By eval, by resuming without --config, and from Python; a change of it is named, and a file that is gone too."""
    workdir = str(tmp_path / "w")
    assert launch.main(["train", f"--config={own}", f"--workdir={workdir}", *QUICK]) == 0
    assert checkpoint.load_manifest(workdir, 2)["code"].keys() == {str(own)}
    for command in (["eval"], ["train", "--config.train.steps=3", "--config.resume=extend"]):
        forget()
        capsys.readouterr()
        assert launch.main([*command, f"--workdir={workdir}"]) == 0
        assert "has changed" not in capsys.readouterr().out
    forget()
    own.write_text(REGISTERS + "# another line\n")
    canon.load(workdir)
    assert f"{own} has changed since" in capsys.readouterr().out
    assert launch.main(["train", f"--config={own}", f"--workdir={workdir}", *QUICK, "--config.train.steps=3"]) == 0
    assert f"{own} has changed since" in capsys.readouterr().out
    own.write_text(REGISTERS + "print(f'runs as {__name__}')\n")
    assert launch.main(["eval", f"--workdir={workdir}@all"]) == 0
    said = capsys.readouterr().out
    assert (said.count("runs as mine_"), said.count("has changed since"), said.count("test: loss")) == (1, 1, 2)
    canon.load(workdir)
    assert "runs as" not in capsys.readouterr().out, "a process runs a file once"
    own.unlink()
    assert launch.main(["eval", f"--workdir={workdir}"]) == 2
    said = capsys.readouterr()
    assert "is gone" in said.out
    assert "there is no file" in said.err


def test_a_change_of_code_that_a_knob_names_is_said(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = str(tmp_path / "w")
    train = ["train", "--config=configs/mlp.py:digits", f"--config.loss={own}:Mine", f"--workdir={workdir}", *QUICK]
    assert launch.main(train) == 0
    assert checkpoint.load_manifest(workdir, 2)["named_code"].keys() == {str(own)}
    canon.load(workdir)
    assert "has changed" not in capsys.readouterr().out
    own.write_text(REGISTERS + "# another line\n")
    for again in (lambda: canon.load(workdir), lambda: launch.main([*train, "--config.train.steps=2"])):
        again()
        assert capsys.readouterr().out.count(f"{own} has changed since the checkpoint") == 1


@pytest.mark.parametrize(
    ("knob", "name", "says"),
    [
        ("optim.name", "wrong_way", "against the gradient"),
        ("optim.name", "wrong_way_of_matrices", "against the gradient"),
        ("optim.name", "wrong_path", r"mine\.py:wrong_path': ValueError: pytree"),
        ("optim.name", "wrong_shape", "other shapes than the parameters"),
        ("optim.name", "no_transform", "returns 3, not an optax"),
        ("optim.name", "directoin", "did you mean 'direction'"),
        ("optim.name", "TASKS", "unknown function or class"),
        ("loss", "direction", "not a train.tasks.Task"),
        ("loss", "Mien", "did you mean 'Mine'"),
    ],
)
def test_a_name_that_is_none_of_its_kind_is_refused(own: Path, knob: str, name: str, says: str) -> None:
    given = config("mlp", "digits").replace({knob: f"{own}:{name}"})
    with pytest.raises(UsageError, match=says) as caught:
        optim.make(given.optim, tiny_model("mlp").specs["params"]) if knob == "optim.name" else get_task(given.loss)
    assert f"config key {knob!r}" in str(caught.value) or "unknown function or class" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_state_that_no_checkpoint_can_hold_is_refused_before_the_run(own: Path, tmp_path: Path) -> None:
    given = config("mlp", "digits").replace({"optim.name": f"{own}:with_key", "train.steps": 1})
    with pytest.raises(UsageError, match=r"rng_key is key<fry>, which no checkpoint can hold"):
        canon.train(given, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_an_optimizer_may_choose_parameters_by_path(own: Path) -> None:
    """Those of the model, with frozen ones left out."""
    specs = tiny_model("mlp").specs["params"]
    params = jax.tree.map(lambda spec: jnp.ones(spec.shape), specs)
    for freeze in (None, "*/bias"):
        tx = optim.make(OptimConfig(name=f"{own}:by_path", freeze=freeze), specs)
        step, _ = tx.update(params, tx.init(params), params, lr=jnp.ones(()))
        assert float(step["head"]["kernel"][0, 0]) == pytest.approx(2 * float(step["hidden"]["0"]["kernel"][0, 0]))


@pytest.mark.parametrize(
    ("knob", "name", "key", "value", "read"),
    [
        ("optim.name", "direction", "optim.beta1", 0.5, False),
        ("optim.name", "by_config", "optim.beta1", 0.5, True),
        ("loss", "Plain", "train.class_weights", (1.0, 2.0), False),
        ("loss", "Mine", "train.class_weights", (1.0, 2.0), True),
        ("loss", "Mine", "train.focal_gamma", 1.0, False),
    ],
)
def test_a_knob_that_ones_own_code_does_not_read_is_refused(
    own: Path, knob: str, name: str, key: str, value: object, read: bool
) -> None:
    """A function without a parameter reads none, a loss those that are its fields."""
    settings = config("mlp", "xor").replace({knob: f"{own}:{name}", key: value})
    known = facts.data_facts(settings, sources.load("xor", "train"), get_task(settings.loss))
    assert [line.partition(" = ")[0] for line in unread(settings, known)] == [f"config key {key!r}"] * (not read)


def test_any_transform_of_optax_is_an_optimizer() -> None:
    """By its module: its direction times the rate, after decoupled decay; a task by its class likewise."""
    given = config("mlp", "digits").replace({"optim.name": "optax:scale_by_yogi", "optim.weight_decay": 0.1})
    assert reader.named_code(given) == {}, "an upgrade of a package is no change of one's own code"
    specs = tiny_model("mlp").specs["params"]
    params = jax.tree.map(lambda spec: jnp.full(spec.shape, 2.0), specs)
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 3.0), params)
    ours, theirs = optim.make(given.optim, specs), optax.scale_by_yogi()
    step, _ = ours.update(gradient, ours.init(params), params, lr=jnp.asarray(0.5))
    direction, _ = theirs.update(gradient, theirs.init(params), params)
    kernel, bias = (lambda tree: tree["hidden"]["0"]["kernel"]), (lambda tree: tree["hidden"]["0"]["bias"])
    np.testing.assert_allclose(kernel(step), 0.5 * (kernel(direction) + 0.1 * 2.0), rtol=1e-6)
    np.testing.assert_allclose(bias(step), 0.5 * bias(direction), rtol=1e-6)
    assert get_task("train.tasks.classification:Softmax") == TASKS["softmax"]
