"""Our weights under lm-evaluation-harness, against our own questions."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed (requirements-parity.txt)")

import models
from configs.knobs import RunConfig
from data.sources.multiple_choice import Question, Questions
from data.text import tokenizer_writer, tokenizers
from data.types import Texts
from examples.lm_eval_adapter import CanonLM
from tests.support.cases import random_variables, tiny_model
from tests.support.harness import jit_predict
from tests.support.runs import runtime
from train.evaluate import evaluate, lm_eval
from train.verbs import load_model


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> CanonLM:
    """A tiny GPT of bytes, opened from a folder of the hub."""

    folder = tmp_path_factory.mktemp("harness") / "hub"
    model = tiny_model("gpt", vocab=257, context=32)
    models.save_pretrained(model, random_variables(model), folder)
    tokenizer_writer.write_tokenizer(tokenizer_writer.as_subwords(tokenizers.ByteTokenizer()), folder)
    cfg = RunConfig(mesh="dp:1")
    blank = Texts((), {"name": "x"})
    return CanonLM(load_model.open_pretrained(cfg, str(folder), runtime(), blank, jax.devices()[:1]), rows=3)


def request(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_likelihoods_are_ours(harness: CanonLM) -> None:
    """And so acc and acc_norm, which the package makes of them."""
    asked = (Question("The cat", ("sat", "is a cat", "x"), 0), Question("", ("yes", "no"), 1))
    pairs = [(q.context, f" {c}") for q in asked for c in q.choices]
    found = harness.loglikelihood([request(*pair) for pair in pairs])
    setup = harness.opened.setup
    rows = [lm_eval.encode_pair(harness.tokenizer, *pair) for pair in pairs]
    with setup.activate():
        ours = lm_eval.likelihoods(setup.model, harness._eval_step, harness.opened.variables, setup.place, rows, 2)
    np.testing.assert_allclose([nats for nats, _ in found], ours.nats, rtol=1e-5)
    assert [greedy for _, greedy in found] == ours.greedy.tolist()
    scores = lm_eval.accuracy_scores(Questions(asked, {}), ours)
    assert set(scores.metrics) == {"acc", "acc_norm"}


def test_rolling_scores_each_token_once(harness: CanonLM) -> None:
    """A text longer than the context: the sum over windows, each by the definition."""
    text = "The cat sat on the mat, and then it sat on the other mat for a long while."
    setup, ids = harness.opened.setup, [harness.eot_token_id, *harness.tokenizer.encode(text).tolist()]
    total, scored = 0.0, 1
    variables = jax.device_get(harness.opened.variables)
    while scored < len(ids):
        start = 0 if scored == 1 else scored - 16
        window = np.array(ids[start : start + 33])
        logits = jax.nn.log_softmax(jit_predict(setup.model)(variables, window[None, :-1])[0])
        total += sum(float(logits[i - 1, window[i]]) for i in range(scored - start, len(window)))
        scored = start + len(window)
    assert harness.loglikelihood_rolling([request(text), request("")])[0] == pytest.approx(total, rel=1e-5)


def test_writing_stops(harness: CanonLM) -> None:
    free = harness.generate_until([request("The cat", {"max_gen_toks": 12, "until": []})])[0]
    again = harness.generate_until([request("The cat", {"max_gen_toks": 12, "until": [free[3:5]]})])[0]
    assert again == free[: free.index(free[3:5])]


def test_a_task_of_the_package_runs(harness: CanonLM, tmp_path: Path) -> None:
    """Its own acc and acc_norm on a set of ours are those of `eval`."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    asked = [Question(f"Item {i}:", ("alpha", "be", f"gamma {i}"), i % 3) for i in range(6)]
    rows = [{"context": q.context, "choices": list(q.choices), "answer": q.answer} for q in asked]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    report = simple_evaluate(harness, tasks=[task], task_manager=TaskManager(include_defaults=False), verbosity="ERROR")
    setup = harness.opened.setup
    examine = evaluate.make_eval_step(setup.model, setup.task, setup.place)
    with jax.set_mesh(setup.place.mesh):
        variables, place = harness.opened.variables, setup.place
        ours = lm_eval.score_questions(
            setup.model, harness.tokenizer, examine, variables, place, Questions(tuple(asked), {}), 4
        )
    for name in ("acc", "acc_norm"):
        assert report["results"]["ours"][f"{name},none"] == pytest.approx(ours.metrics[name])
        assert report["results"]["ours"][f"{name}_stderr,none"] == pytest.approx(ours.stderr[name])
