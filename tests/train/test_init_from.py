"""What a run begins with: another run's parameters, a running mean, extras of the loss, sources of the gradient."""

from pathlib import Path

import jax
import numpy as np
import pytest

import launch
import models
from errors import UsageError
from models import pretrained
from models.core.spec import flatten
from tests.support.cases import random_variables
from tests.support.harness import Trainer
from train import checkpoint, init_from
from train.record import metrics

pytestmark = pytest.mark.usefixtures("no_plots")

MLP = ["--config=configs/mlp.py:digits", "--config.train.steps=20", "--config.model.hidden=(16,)"]
MLP += ["--config.optim.name=sgd"]  # the least state to compile, where no other is named


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
    trainer = Trainer("mlp", options={"ema": 0.5}, lr=0.1)
    want = np.asarray(trainer.state["params"]["head"]["kernel"])
    for n in range(3):
        trainer.steps(1, first=n)
        keep = min(0.5, (1 + n) / (10 + n))
        want = keep * want + (1 - keep) * np.asarray(trainer.state["params"]["head"]["kernel"])
    np.testing.assert_allclose(trainer.state["ema"]["head"]["kernel"], want, rtol=1e-5)


def test_parameters_of_another_run(source: Path, tmp_path: Path, capsys) -> None:
    """Its mean, but for the head that starts fresh; and the report says so. All of them: see the optimizers below."""
    still = ["--config.optim.lr=0", "--config.train.steps=1", f"--config.init_from={source}"]
    assert train(tmp_path / "w", *still, "--config.init_fresh=head") == 0
    out = capsys.readouterr().out
    assert "2 leaves loaded" in out
    assert "fresh: params/head/bias, params/head/kernel" in out
    mean, found = digests(source, 20, "ema"), digests(tmp_path / "w", 1)
    assert {k for k in mean if found[k] == mean[k]} == {"hidden/0/bias", "hidden/0/kernel"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--config.model.hidden=(8,)"], "params/hidden/0/bias has shape (16,) there, (8,) in the model"),
        (["--config.model.hidden=(16, 16)"], "hidden/1/kernel is missing"),
        (["--config.model.hidden=()", "--config.init_fresh=head"], "params/hidden/0/kernel has no counterpart"),
        (["--config.init_fresh=haed"], "'init_fresh': 'haed'"),
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
    """Their first layer is our second: of the same shape, where the first keeps the input's width."""
    still = ["--config.optim.lr=0", "--config.train.steps=1", f"--config.init_from={source}"]
    more = [
        "--config.model.hidden=(64, 16)",
        "--config.init_fresh=params/hidden/0",
        "--config.init_rename=hidden/0:hidden/1",
    ]
    assert train(tmp_path / "w", *still, *more) == 0
    theirs, ours = digests(source, 20, "ema"), digests(tmp_path / "w", 1)
    assert {k: v for k, v in ours.items() if not k.startswith("hidden/0")} == {
        k.replace("hidden/0", "hidden/1"): v for k, v in theirs.items()
    }


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--config.init_rename=hiden/0:hidden/1"], "'init_rename': 'hiden/0' matches none of"),
        (["--config.init_rename=hidden/0:head"], "would both become params/head/bias"),
        (["--config.init_rename=head:x,head:y"], "THEIRS:OURS"),
        (["--config.init_fresh=*", "--config.init_ignore=*"], "leaves nothing to load"),
    ],
)
def test_a_mapping_that_is_none_is_refused(more: list[str], says: str, source: Path, tmp_path: Path, capsys) -> None:
    assert train(tmp_path / "w", f"--config.init_from={source}", *more) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_a_vocabulary_of_another_tokenizer_is_not_taken_over(tmp_path: Path, capsys) -> None:
    """Its table may have the same shape, padded, and would mean other words."""
    text = ["--config=configs/rnn.py:shakespeare", "--config.data.name=pydoc_text", "--config.model.width=16"]
    text += ["--config.model.embed=8", "--config.model.context=16", "--config.train.batch=8", "--config.train.steps=1"]
    text += ["--config.schedule.warmup=0", "--config.eval.limit=1", "--config.eval.overlap=0", "--config.eval.batch=8"]
    word, byte = ["--config.data.tokenizer=word", "--config.data.vocab_size=300"], ["--config.data.tokenizer=byte"]
    assert launch.main(["train", f"--workdir={tmp_path}/a", *text, *word]) == 0
    begin = ["train", f"--workdir={tmp_path}/b", *text, *byte, f"--config.init_from={tmp_path}/a"]
    assert launch.main(begin) == 2
    assert "belongs to another tokenizer" in capsys.readouterr().err
    assert launch.main([*begin, "--config.init_fresh=embed,head"]) == 0


@pytest.mark.slow
def test_the_average_of_schedule_free_is_what_another_run_begins_with(tmp_path: Path) -> None:
    """Frozen leaves have none, and are as they are."""
    free = ["--config.optim.name=schedule_free", "--config.optim.lr=0.02", "--config.optim.freeze=hidden/0/bias"]
    assert train(tmp_path / "a", *free) == 0
    still = ["--config.optim.name=sgd", "--config.optim.lr=0", "--config.train.steps=1"]
    assert train(tmp_path / "b", *still, f"--config.init_from={tmp_path}/a", "--config.mesh=dp:2,fsdp:2,tp:2") == 0
    theirs, ours = (checkpoint.load_manifest(str(tmp_path / w), n)["metrics"] for w, n in (("a", 20), ("b", 1)))
    assert ours == pytest.approx(theirs, rel=1e-5)
    plain = digests(tmp_path / "a", 20)
    assert {k for k, v in digests(tmp_path / "b", 1).items() if v == plain[k]} == {"hidden/0/bias"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--config.init_fresh=head"], "'init_fresh' = 'head' has no effect: it is read where init_from is set"),
        (["--config.init_rename=a:b"], "'init_rename' = 'a:b' has no effect: it is read where init_from is set"),
        (["--config.optim.name=schedule_free", "--config.optim.ema=0.9"], "must be None for schedule_free"),
        (["--config.optim.name=schedule_free", "--config.train.precision=bf16_params"], "needs float32 parameters"),
        (
            ["--config.train.gradient=equations", "--config.train.label_smoothing=0.1"],
            "supports neither train.label_smoothing",
        ),
        (["--config.train.gradient=scalar", "--config.train.z_loss=0.1"], "supports neither train.label_smoothing"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(more: list[str], says: str, tmp_path: Path, capsys) -> None:
    assert train(tmp_path / "w", *more) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


RNN = ["--config=configs/rnn.py:shakespeare", "--config.data.name=pydoc_text", "--config.data.tokenizer=byte"]
RNN += ["--config.model.width=16", "--config.model.embed=8", "--config.model.context=16", "--config.train.batch=8"]
RNN += ["--config.train.steps=1", "--config.schedule.warmup=0", "--config.optim.lr=0", "--config.optim.name=sgd"]
RNN += ["--config.eval.limit=1", "--config.eval.batch=8", "--config.eval.overlap=0"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """An LSTM as torch names its tensors, inside a module that calls it `lstm`; and its leaves."""
    model = models.build("rnn", head="none", inputs=8, width=16)
    variables = jax.tree.map(jax.numpy.asarray, random_variables(model, 5))
    folder = tmp_path_factory.mktemp("theirs")
    pretrained.save(model, variables, folder / "model.safetensors", prefix="lstm.")
    return folder, flatten(variables["params"])


def start_from(path: Path, workdir: Path, *more: str) -> int:
    given = [*RNN, f"--config.init_from={path}", "--config.log.table=false", *more]
    return launch.main(["train", f"--workdir={workdir}", *given])


NEW = "--config.init_fresh=embed,head"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["dp:*", "dp:2,fsdp:2,tp:2"])
def test_parameters_as_others_publish_them(theirs, mesh: str, tmp_path: Path, capsys) -> None:
    """A folder or a file; what a layout does not hold must start fresh by name."""
    folder, leaves = theirs
    assert start_from(folder, tmp_path / "a", NEW, f"--config.mesh={mesh}") == 0
    assert "4 leaves loaded" in capsys.readouterr().out
    found = digests(tmp_path / "a", 1)
    for name, value in leaves.items():
        assert found[name] == checkpoint.digests({"x": value})["x"], name
    assert start_from(folder / "model.safetensors", tmp_path / "b", NEW, f"--config.mesh={mesh}") == 0
    assert digests(tmp_path / "b", 1) == found


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--config.init_fresh=head"], "params/embed/token is missing"),
        ([NEW, "--config.model.width=8"], "input/kernel has shape (64, 8) there, (8, 4, 8) in"),
        ([NEW, "--config.model.bias=false"], "params/lstm.bias_hh_l0 has no counterpart"),
        ([NEW, "--config.model.cell=gru"], "input/kernel has shape (64, 8) there, (8, 3, 16) in"),
    ],
)
def test_published_parameters_that_do_not_fit_are_named(theirs, more, says, tmp_path: Path, capsys) -> None:
    assert start_from(theirs[0], tmp_path / "w", *more) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_a_tensor_of_no_leaf_is_none(theirs) -> None:
    """Renamed, it is still not known how it lies."""
    found = init_from._read_pretrained(models.build("rnn", head="none", inputs=8, width=16), str(theirs[0]))
    with pytest.raises(UsageError, match=r"params/extra is not a tensor of a rnn"):
        found.read({"params/extra": jax.sharding.SingleDeviceSharding(jax.devices()[0])})


def test_a_family_without_a_layout_is_refused(theirs, tmp_path: Path, capsys) -> None:
    assert train(tmp_path / "w", f"--config.init_from={theirs[0]}") == 2
    assert "family mlp" in capsys.readouterr().err


@pytest.mark.parametrize(
    "optimizer", ["schedule_free", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adafactor", "muon"))]
)
def test_an_optimizer_begins_where_the_parameters_do(optimizer: str, source: Path, tmp_path: Path) -> None:
    """All of them, at rate 0; schedule_free keeps a copy, and its average, rounded, is still what was loaded."""
    settings = [f"--config.optim.name={optimizer}", "--config.optim.lr=0", "--config.train.steps=1"]
    assert train(tmp_path / "w", *settings, f"--config.init_from={source}", "--config.mesh=dp:2,fsdp:2,tp:2") == 0
    theirs = checkpoint.load_manifest(str(source), 20)["metrics"]
    assert checkpoint.load_manifest(str(tmp_path / "w"), 1)["metrics"] == pytest.approx(theirs, rel=1e-5)
    if optimizer != "schedule_free":
        assert digests(tmp_path / "w", 1) == digests(source, 20, "ema")


def test_a_folder_without_parameters_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"pickled")
    assert start_from(tmp_path / "hub", tmp_path / "w") == 2
    assert "neither checkpoints of a run nor .safetensors files" in capsys.readouterr().err


def test_extras_are_for_training_alone(tmp_path: Path) -> None:
    assert (
        train(tmp_path / "w", "--config.train.label_smoothing=0.9", "--config.optim.lr=0", "--config.train.steps=1")
        == 0
    )
    lines = {r["kind"]: r["metrics"]["loss"] for r in metrics.read(str(tmp_path / "w")) if r["kind"] != "event"}
    assert train(tmp_path / "v", "--config.optim.lr=0", "--config.train.steps=1") == 0
    plain = {r["kind"]: r["metrics"]["loss"] for r in metrics.read(str(tmp_path / "v")) if r["kind"] != "event"}
    assert lines["eval"] == plain["eval"]
    assert lines["train"] != plain["train"]
