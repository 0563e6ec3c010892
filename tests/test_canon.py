"""Canon from Python: train, load, evaluate, generate, without the command line."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import canon
import launch
from train import checkpoint
from train.generate import sample
from train.runtime import find_revision

TINY = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.context": 16,
    "train.steps": 3,
    "schedule.warmup": 0,
}

UNREAD = {"optim.name": "momentum", "optim.beta2": 0.5}


@pytest.fixture(scope="module")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> canon.RunResult:
    config = canon.config(
        "configs/gpt.py:quick", {**TINY, "train.batch": 8, "eval.batch": 64, "log.table": False, "optim.ema": 0.5}
    ).replace({"optim.name": "momentum"})
    return canon.train(config, tmp_path_factory.mktemp("canon") / "w")


def test_a_run_is_loaded_without_its_data(language_run: canon.RunResult, capsys: pytest.CaptureFixture[str]) -> None:
    """On one device, without a mesh: the model predicts and generates outside of any context, as the launcher does."""
    model, variables, tokenizer = canon.load(language_run.workdir)
    assert tokenizer is not None
    assert {leaf.sharding for leaf in jax.tree.leaves(variables)} == {
        jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    }
    logits = model.predict(variables, tokenizer.encode("the text")[None])
    assert logits.shape == (1, 8, model.config.vocab)
    assert np.isfinite(logits).all()
    text = canon.generate(model, variables, tokenizer, "the", max_new_tokens=5, temperature=0)
    capsys.readouterr()
    sample = ["sample", f"--workdir={language_run.workdir}", "--prompt=the", "--max_new_tokens=5", "--temperature=0"]
    assert launch.main(sample) == 0
    assert capsys.readouterr().out == f"the{text}\n"


@pytest.mark.parametrize(
    ("source", "shapes"),
    [
        ("mlp.py:xor", {"features": (3, 2)}),
        ("mlp.py:multilabel", {"features": (3, 40)}),
        ("rnn.py:adding", {"features": (3, 20, 2)}),
        ("cnn.py:digits", {"image": (3, 8, 8, 1)}),
    ],
)
def test_a_network_of_any_input_is_loaded_without_its_data(
    source: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    """Its sizes come from the checkpoint, and it has no tokenizer."""
    steps = {"train.steps": 1, "eval.limit": 1, "eval.batch": 8, "log.table": False, "schedule.warmup": 0}
    canon.train(canon.config(f"configs/{source}", steps), tmp_path / "w", devices=jax.devices()[:1])
    model, variables, tokenizer = canon.load(tmp_path / "w")
    assert tokenizer is None
    inputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert len(model.predict(variables, inputs)) == 3


def test_a_network_on_arrays_of_tokens_is_loaded_without_them(tmp_path: Path) -> None:
    """Its vocabulary is theirs, in the checkpoint."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        tokens = draw.integers(0, 11, (16, 8)).astype(np.int32)
        np.savez(tmp_path / f"{split}.npz", tokens=tokens, label=np.arange(16) % 2)
    model = {"family": "bert", "head": "classes", "pool": "first", "width": 16, "depth": 1, "heads": 2, "hidden": 16}
    knobs = {f"model.{name}": value for name, value in {**model, "context": 8}.items()}
    canon.train(
        canon.config(None, {**knobs, "data.name": str(tmp_path), "train.batch": 8, "train.steps": 1}), tmp_path / "w"
    )
    shutil.move(tmp_path / "w", w := tmp_path.with_name("moved"))
    loaded, variables, tokenizer = canon.load(w)
    assert (loaded.config.vocab, tokenizer) == (11, None)
    assert loaded.predict(variables, tokens).shape == (16, 2)


def test_a_config_is_a_value() -> None:
    """Equal ones have one hash, and a path may be a Path."""
    given = canon.config(Path("configs/gpt.py:quick"))
    assert {given, canon.config("configs/gpt.py:quick"), given.replace({"rules": {"embed": "fsdp"}})} == {
        given,
        given.replace({"rules.embed": "fsdp"}),
    }


def test_a_run_records_its_code(language_run: canon.RunResult) -> None:
    assert checkpoint.load_manifest(language_run.workdir, 3)["revision"] == find_revision()


def test_text_is_generated_in_the_precision_of_training(
    language_run: canon.RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, variables, tokenizer = canon.load(language_run.workdir)
    seen = []

    def record_precision(*args: object, **settings: object) -> Iterator[np.ndarray]:
        seen.append(jax.config.jax_default_matmul_precision)
        yield np.array([[65]])

    monkeypatch.setattr(sample, "generate", record_precision)
    for compute in ("float32", "bfloat16"):
        model = canon.build("gpt", vocab=300, context=16, width=16, depth=1, heads=2, compute=compute)
        assert canon.generate(model, variables, tokenizer, "the") == "A"
    assert seen == ["highest", "default"]


def test_an_evaluation_is_the_verbs(language_run: canon.RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures, and with knobs those of other data."""
    workdir = Path(language_run.workdir)
    monkeypatch.setenv("HOME", str(workdir.parent))
    scores = canon.evaluate(f"~/{workdir.name}@3")
    assert scores.metrics == pytest.approx(language_run.metrics)
    assert scores.prefix == "ema_"
    other = canon.evaluate(language_run.workdir, {"eval.split": "train", "eval.limit": 1}, devices=jax.devices()[:2])
    assert other.metrics["loss"] != scores.metrics["loss"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda w: canon.load(f"{w}@all"), "names all checkpoints"),
        (lambda w: canon.load(f"{w}@7"), "has no checkpoint 7|no checkpoint"),
        (lambda w: canon.load(f"{w}-none"), "no checkpoint in"),
        (lambda w: canon.config("configs/gpt.py:quick", {"optim.lrr": 1.0}), "did you mean 'optim.lr'"),
        (lambda w: canon.config(None, {"train.steps": "many"}), "'train.steps' takes int"),
        (lambda w: canon.train(canon.config("configs/gpt.py:quick"), w), "holds another run"),
        (lambda w: canon.train(canon.config(), "ftp://host/w"), "must be a local path"),
        (
            lambda w: canon.train(canon.config("configs/gpt.py:quick", UNREAD), f"{w}-none"),
            "'optim.beta2' = 0.5 has no",
        ),
        (lambda w: canon.evaluate(w, {"eval.split": "none"}), "unknown split"),
        (lambda w: canon.evaluate(w, {"optim.lr": 0.1}), "'optim.lr' has no effect here"),
        (lambda w: canon.evaluate(w, {"eval": {"num_beams": 2}}), "'eval.num_beams' = 2 has no effect"),
        (lambda w: canon.evaluate(w, {"data.augment": "flip"}), "'data.augment' = 'flip' has no effect"),
        (lambda w: canon.evaluate(w, devices=[]), "devices takes a list"),
        (lambda w: canon.config(3), "not 3"),
        (lambda w: canon.config(None, [("seed", 1)]), "knobs are a mapping"),
        (lambda w: canon.config(None, {"args": {}}), "unknown config key 'args'"),
        (lambda w: canon.train("configs/gpt.py:quick", w), r"as canon\.config"),
        (lambda w: canon.generate(*canon.load(w), "a", temperature=-1), "temperature must be"),
        (lambda w: canon.generate(*canon.load(w), "a", temperature="1"), "temperature takes float"),
        (lambda w: canon.generate(*canon.load(w), "a", max_new_tokens=2.5), "max_new_tokens takes int"),
        (lambda w: canon.generate(*canon.load(w), "a", seed=2**32), "seed takes int up to"),
        (lambda w: canon.generate(*canon.load(w), "a", stop=[3]), "stop takes"),
        (lambda w: canon.generate(*canon.load(w), ["a"]), "prompt takes str"),
        (lambda w: canon.generate(*canon.load(w), "a\ud800"), "no valid Unicode"),
        (lambda w: canon.generate(*canon.load(w)[:2], None, "a"), "takes a tokenizer"),
    ],
)
def test_a_mistake_is_one_line(language_run: canon.RunResult, call, says: str) -> None:
    with pytest.raises(canon.UsageError, match=says) as caught:
        call(language_run.workdir)
    assert "\n" not in str(caught.value)


def test_one_of_several_processes_is_refused(language_run: canon.RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for call in (canon.load, canon.evaluate, lambda workdir: canon.train(canon.config(), workdir)):
        with pytest.raises(canon.UsageError, match=r"start launch\.py in each"):
            call(language_run.workdir)
