"""Canon from Python: train, load, evaluate, generate, without the command line."""

import jax
import numpy as np
import pytest

import canon
import launch

TINY = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.context": 16,
    "train.steps": 3,
    "schedule.warmup": 0,
}


@pytest.fixture(scope="module")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> canon.RunResult:
    config = canon.config(
        "configs/gpt.py:quick", {**TINY, "train.batch": 8, "eval.batch": 64, "log.table": False, "optim.ema": 0.5}
    )
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


def test_an_evaluation_is_the_verbs(language_run: canon.RunResult, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures, and with knobs those of other data."""
    scores = canon.evaluate(f"{language_run.workdir}@3")
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
        (lambda w: canon.evaluate(w, {"eval.split": "none"}), "unknown split"),
        (lambda w: canon.generate(*canon.load(w), "a", temperature=-1), "temperature must be"),
    ],
)
def test_a_mistake_is_one_line(language_run: canon.RunResult, call, says: str) -> None:
    with pytest.raises(canon.UsageError, match=says) as caught:
        call(language_run.workdir)
    assert "\n" not in str(caught.value)
