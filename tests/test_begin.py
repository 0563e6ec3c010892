"""What a run begins with: another run's parameters, a running mean, extras of the loss, sources of the gradient."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import launch
from data import sources
from errors import UsageError
from tests.harness import Trainer, batch_for
from train import checkpoint
from train.record import metrics, profile
from train.update import losses

MLP = ["--config=configs/mlp.py:digits", "--config.train.steps=20", "--config.model.hidden=(16,)"]


def train(workdir: Path, *more: str) -> int:
    return launch.main(["train", f"--workdir={workdir}", *MLP, "--config.log.table=false", *more])


def digests(workdir: Path, n: int, part: str = "params") -> dict[str, str]:
    saved = checkpoint.load_manifest(str(workdir), n)["state"]
    return {k.partition("/")[2]: v["digest"] for k, v in saved.items() if k.startswith(f"{part}/")}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("source") / "w"
    assert train(workdir, "--config.optim.ema=0.9") == 0
    return workdir


def test_a_running_mean_is_evaluated_too(source: Path) -> None:
    """Both stand in the metrics; the best is chosen by the mean; it is no copy."""
    line = [r for r in metrics.read(str(source)) if r["kind"] == "eval"][-1]["metrics"]
    assert line["ema_loss"] != line["loss"]
    assert checkpoint.load_manifest(str(source), 20)["metrics"]["loss"] == line["ema_loss"]
    plain, mean = digests(source, 20), digests(source, 20, "ema")
    assert plain.keys() == mean.keys()
    assert all(plain[k] != mean[k] for k in plain)


def test_the_mean_by_hand() -> None:
    trainer = Trainer("mlp", more={"ema": 0.5}, lr=0.1)
    want = np.asarray(trainer.state["params"]["head"]["kernel"])
    for n in range(3):
        trainer.steps(1, first=n)
        keep = min(0.5, (1 + n) / (10 + n))
        want = keep * want + (1 - keep) * np.asarray(trainer.state["params"]["head"]["kernel"])
    np.testing.assert_allclose(trainer.state["ema"]["head"]["kernel"], want, rtol=1e-5)


def test_parameters_of_another_run(source: Path, tmp_path: Path, capsys) -> None:
    """All of them are the other's mean, but for the head that starts fresh; and the report says so."""
    still = ["--config.optim.lr=0", "--config.train.steps=1", f"--config.init_from={source}"]
    assert train(tmp_path / "w", *still, "--config.init_fresh=head") == 0
    out = capsys.readouterr().out
    assert "2 leaves loaded" in out
    assert "fresh: params/head/bias, params/head/kernel" in out
    mean, found = digests(source, 20, "ema"), digests(tmp_path / "w", 1)
    assert {k for k in mean if found[k] == mean[k]} == {"hidden/0/bias", "hidden/0/kernel"}
    assert train(tmp_path / "same", *still) == 0
    assert digests(tmp_path / "same", 1) == mean


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--config.model.hidden=(8,)"], "ema/hidden/0/bias is (16,) there, (8,) here"),
        (["--config.model.hidden=(16, 16)"], "hidden/1/kernel is not in it"),
        (["--config.model.hidden=()", "--config.init_fresh=head"], "ema/hidden/0/kernel has no place here"),
        (["--config.init_fresh=haed"], "'haed' of init_fresh"),
        (["--config.init_rename=head"], "THEIRS:OURS"),
        (["--config.init_from=W@9"], "no checkpoint '9'"),
    ],
)
def test_what_does_not_fit_is_named(more: list[str], says: str, source: Path, tmp_path: Path, capsys) -> None:
    more = [m.replace("=W@", f"={source}@") for m in more]
    assert train(tmp_path / "w", f"--config.init_from={source}", *more) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_leaves_may_have_other_names_there(source: Path, tmp_path: Path) -> None:
    more = ["--config.model.hidden=(16, 16)", "--config.init_fresh=hidden/0", "--config.init_ignore=hidden/0/bias"]
    more += ["--config.init_rename=hidden/0:hidden/1"]
    still = ["--config.optim.lr=0", "--config.train.steps=1", f"--config.init_from={source}"]
    assert train(tmp_path / "w", *still, *more) == 2  # 64 inputs there, 16 here
    more[2] = "--config.init_ignore=hidden"
    more[1] = "--config.init_fresh=hidden"
    assert train(tmp_path / "w", *still, *more[:3]) == 0
    assert digests(tmp_path / "w", 1)["head/kernel"] == digests(source, 20, "ema")["head/kernel"]


# Losses


def test_smoothing_and_z_loss_by_hand() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    label = np.array([0, 3, 1, 1, 2])
    masked = np.concatenate([logits, np.full((5, 2), -1e30, np.float32)], 1)
    normaliser = np.log(np.exp(logits).sum(1))
    target = 0.9 * np.eye(4)[label] + 0.1 / 4
    want = -(target * (logits - normaliser[:, None])).sum(1) + 0.01 * normaliser**2
    for given in (logits, masked):
        got = losses.cross_entropy(jnp.asarray(given), jnp.asarray(label), smoothing=0.1, z_loss=0.01)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_extras_are_for_training_alone(tmp_path: Path) -> None:
    assert train(tmp_path / "w", "--config.train.smoothing=0.9", "--config.optim.lr=0", "--config.train.steps=1") == 0
    lines = {r["kind"]: r["metrics"]["loss"] for r in metrics.read(str(tmp_path / "w")) if r["kind"] != "event"}
    assert train(tmp_path / "v", "--config.optim.lr=0", "--config.train.steps=1") == 0
    plain = {r["kind"]: r["metrics"]["loss"] for r in metrics.read(str(tmp_path / "v")) if r["kind"] != "event"}
    assert lines["eval"] == plain["eval"]
    assert lines["train"] != plain["train"]


def test_margins_by_hand() -> None:
    value = jnp.array([[2.0], [0.5], [-1.0], [0.0]])
    rows = {"label": jnp.array([1, 1, 1, 0]), "weight": jnp.array([1.0, 1, 1, 2])}
    np.testing.assert_allclose(losses.TASKS["hinge"](value, rows)["loss"][0], [0, 0.5, 2, 2])
    np.testing.assert_allclose(losses.TASKS["perceptron"](value, rows)["loss"][0], [0, 0, 1, 0])
    np.testing.assert_allclose(losses.TASKS["perceptron"](value, rows)["accuracy"][0], [1, 1, 0, 0])


@pytest.mark.slow
def test_rosenblatts_rule_errs_no_more_than_the_theorem_allows(tmp_path: Path) -> None:
    """At most (R / margin)^2 mistakes, whatever the order (Novikoff 1962), and then none ever again."""
    args = [
        "--config=configs/mlp.py:rosenblatt",
        "--config.log.every=1",
        "--config.train.steps=4000",
        "--config.mesh=tp:*",
    ]
    assert launch.main(["train", f"--workdir={tmp_path}/w", *args]) == 0
    lines = metrics.read(str(tmp_path / "w"))
    wrong = np.array([r["metrics"]["accuracy"] == 0 for r in lines if r["kind"] == "train"])
    assert len(wrong) == 4000
    data = sources.load("halves", "train").fields
    x = np.concatenate([data["features"], np.ones((len(data["label"]), 1), np.float32)], 1)  # the bias is a weight
    best = np.array([0.8, 0.6, -0.65])  # the line that made the set
    margin = ((2.0 * data["label"] - 1) * (x @ best)).min() / np.linalg.norm(best)
    assert 0 < wrong.sum() <= (np.linalg.norm(x, axis=1).max() / margin) ** 2
    assert not wrong[-400:].any()
    assert lines[-1]["metrics"]["accuracy"] > 0.99


def test_the_rule_is_sgd_on_the_perceptrons_criterion() -> None:
    trainer = Trainer("mlp", optimizer="sgd", lr=1.0, model=_perceptron())
    trainer.task = losses.TASKS["perceptron"]
    batch = batch_for("mlp")
    batch = {k: v[:1] for k, v in batch.items()}
    batch["label"], batch["weight"] = np.array([1], np.int32), np.ones(1, np.float32)
    grads = _gradient(trainer, batch)
    np.testing.assert_allclose(grads["head/kernel"][:, 0], -batch["features"][0], rtol=1e-6)


def _perceptron():
    import models

    return models.build("mlp", size="perceptron", inputs=16, classes=1)


def _gradient(trainer: Trainer, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import jax

    from models.spec import flatten

    def loss(params):
        rows = {k: jnp.asarray(v) for k, v in batch.items()}
        return trainer.task(trainer.model.apply({"params": params}, rows).value, rows)["loss"][0].sum()

    return {k: np.asarray(v) for k, v in flatten(jax.grad(loss)(trainer.state["params"])).items()}


# Sources of the gradient, looks inside


@pytest.mark.parametrize("name", ["equations", "scalar"])
def test_a_written_out_gradient_trains_alike(name: str, tmp_path: Path) -> None:
    args = ["--config=configs/mlp.py:micrograd", "--config.train.steps=4", "--config.log.every=1", "--config.mesh=tp:*"]
    assert launch.main(["train", f"--workdir={tmp_path}/jax", *args]) == 0
    assert launch.main(["train", f"--workdir={tmp_path}/own", *args, f"--config.train.gradient={name}"]) == 0
    one, two = (
        [r["metrics"]["loss"] for r in metrics.read(str(tmp_path / w)) if r["kind"] == "train"] for w in ("jax", "own")
    )
    assert len(one) == 4
    assert one[-1] < one[0]
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_a_gradient_that_a_family_lacks_is_refused(tmp_path: Path, capsys) -> None:
    argv = ["train", f"--workdir={tmp_path}/w", "--config=configs/cnn.py:digits", "--config.train.gradient=scalar"]
    assert launch.main(argv) == 2
    assert "source of gradients of family cnn" in capsys.readouterr().err


def test_a_profile_and_the_programs_are_written(tmp_path: Path) -> None:
    assert train(tmp_path / "w", "--config.train.steps=5", "--config.log.profile=1:3", "--config.log.hlo=true") == 0
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))
    assert "stablehlo" in (tmp_path / "w" / "hlo" / "update.stablehlo.txt").read_text()
    assert "HloModule" in (tmp_path / "w" / "hlo" / "update.hlo.txt").read_text()


@pytest.mark.parametrize("text", ["10", "5:5", "a:b", "3:1"])
def test_bad_windows_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FIRST:LAST"):
        profile.window(text)
