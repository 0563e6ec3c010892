"""Questions put to language models: likelihoods against the definition, and what is made of them."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from data.sources import multiple_choice
from data.sources.multiple_choice import Question, Questions
from data.text import tokenizers
from data.types import texts
from errors import UsageError
from tests.support.cases import random_variables, tiny_model
from tests.support.harness import jit_predict
from train.evaluate import evaluate
from train.evaluate import lm_eval as examiner
from train.sharding import mesh
from train.tasks import TASKS

BYTE = tokenizers.ByteTokenizer()
ITEMS = (
    Question("two and two is ", ("four", "a large number of things", "5"), 0),
    Question("", ("x", "yes"), 1),
    Question("q" * 60, ("no", "n"), 1),
)


@pytest.fixture(scope="module")
def model():
    made = tiny_model("gpt", vocab=257, context=40)
    return made, random_variables(made)


def likelihood(model, variables, context: str, after: str) -> tuple[float, bool]:
    """By the definition, token by token, each from as much of what is before it as there is room for."""
    tokens = [*BYTE.encode(context), *BYTE.encode(after)] if context else [256, *BYTE.encode(after)]
    count = len(BYTE.encode(after))
    tokens = np.array(tokens[-41:])
    padded = np.pad(tokens[:-1], (0, 41 - len(tokens)))  # a later token changes nothing, and one length is compiled
    logits = jax.nn.log_softmax(jit_predict(model)(variables, padded[None])[0])
    rows = range(len(tokens) - count, len(tokens))
    picked = [(logits[i - 1, tokens[i]], int(np.argmax(logits[i - 1])) == tokens[i]) for i in rows]
    return float(sum(p for p, _ in picked)), all(hit for _, hit in picked)


def ask(model, variables, items, text: str = "dp:1", size: int = 2) -> evaluate.Scores:
    count = math.prod(int(part.split(":")[1]) for part in text.split(","))
    place = mesh.make_placement(mesh.make_mesh(text, jax.devices()[:count]), model.specs)
    with jax.set_mesh(place.mesh):
        variables = {"params": jax.device_put(variables["params"], place.shardings(model.specs["params"])), "stats": {}}
        examine = evaluate.make_eval_step(model, TASKS["next_token"], place)
        return examiner.score_questions(
            model, BYTE, examine, variables, place, Questions(tuple(items), {"name": "x"}), size
        )


@pytest.mark.parametrize("text", ["dp:1", pytest.param("dp:2,fsdp:2,tp:2", marks=pytest.mark.slow)])
def test_the_likeliest_choice_counts(model, text: str) -> None:
    """Answers are set by the definition, first to the likeliest and then to another: all right, and none."""
    made, variables = model
    found = [
        [
            likelihood(made, variables, q.context.rstrip(), q.context[len(q.context.rstrip()) :] + f" {c}")[0]
            for c in q.choices
        ]
        for q in ITEMS
    ]
    best = [int(np.argmax(row)) for row in found]
    normed = [int(np.argmax(np.array(row) / [len(c) for c in q.choices])) for row, q in zip(found, ITEMS, strict=True)]
    right = [Question(q.context, q.choices, b) for q, b in zip(ITEMS, best, strict=True)]
    scores = ask(made, variables, right, text)
    assert scores.metrics["acc"] == 1
    assert scores.metrics["acc_norm"] == np.mean(np.equal(best, normed))
    assert scores.examples == 3
    wrong = [Question(q.context, q.choices, (b + 1) % len(q.choices)) for q, b in zip(ITEMS, normed, strict=True)]
    assert ask(made, variables, wrong, text).metrics["acc_norm"] == 0


def test_likelihoods_are_those_of_the_definition(model) -> None:
    made, variables = model
    pairs = [("two and two is", " four"), ("", " x"), ("ab", " cd"), ("q" * 60, " no")]
    place = mesh.make_placement(mesh.make_mesh("dp:1", jax.devices()[:1]), made.specs)
    with jax.set_mesh(place.mesh):
        examine = evaluate.make_eval_step(made, TASKS["next_token"], place)
        rows = [examiner.encode_pair(BYTE, *pair) for pair in pairs]
        assert examiner.encode_pair(BYTE, "ab ", "cd")[1].tolist() == rows[2][1].tolist()  # spaces go to what follows
        found = examiner.likelihoods(made, examine, {**variables, "stats": {}}, place, rows, 3)
    for i, (context, after) in enumerate(pairs):
        nats, greedy = likelihood(made, variables, context, after)
        assert found.nats[i] == pytest.approx(nats, rel=1e-5)
        assert bool(found.greedy[i]) is greedy
        assert found.tokens[i] == len(after.encode())


def test_last_words_are_predicted_greedily_or_not(model) -> None:
    made, variables = model
    questions = multiple_choice.last_words(texts("x", "y", ["the cat sat", " a b "]))
    assert [(q.context, q.choices) for q in questions.items] == [("the cat", ("sat",)), ("a", ("b",))]
    scores = ask(made, variables, questions.items)
    want = [likelihood(made, variables, q.context, f" {q.choices[0]}") for q in questions.items]
    assert scores.metrics["loss"] == pytest.approx(-np.mean([nats for nats, _ in want]), rel=1e-5)
    assert scores.metrics["perplexity"] == pytest.approx(math.exp(scores.metrics["loss"]), rel=1e-6)
    assert scores.metrics["accuracy"] == np.mean([greedy for _, greedy in want])
    with pytest.raises(UsageError, match="only one word"):
        multiple_choice.last_words(texts("x", "y", ["one"]))


def test_a_standard_error_is_that_of_a_mean() -> None:
    """Of zeros and ones: sqrt(p (1 - p) / (n - 1)), as lm-evaluation-harness has it."""
    items = tuple(Question("", ("a", "b"), i % 2) for i in range(10))
    nats = np.tile([-1.0, -2.0], 10)
    found = examiner.accuracy_scores(Questions(items, {}), examiner.Likelihood(nats, nats > 0, nats))
    assert found.metrics["acc"] == 0.5
    assert found.stderr["acc"] == pytest.approx(math.sqrt(0.25 / 9))


@pytest.mark.parametrize(
    "line",
    [
        '{"context": "a", "choices": ["b"]}',
        '{"context": "a", "choices": ["b"], "answer": 1}',
        '{"context": "a", "choices": ["b"], "answer": "0"}',
        '{"context": "a", "choices": ["b", "c"], "answer": true}',
        '{"context": "a", "choices": "bc", "answer": 0}',
        '{"context": 3, "choices": ["b"], "answer": 0}',
        '["context", "choices", "answer"]',
    ],
)
def test_a_line_that_is_no_question_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    good = json.dumps({"context": "a", "choices": ["b", "c"], "answer": 1})
    file.write_text(f"{good}\n{line}\n")
    with pytest.raises(UsageError, match="line 2 is not a question"):
        multiple_choice.load(str(file), "test", None)
    file.write_text(f"{good}\nnothing\n")
    with pytest.raises(UsageError, match="line 2 cannot be read as JSON"):
        multiple_choice.load(str(file), "test", None)
    file.write_text(f"{good}\n\n{good}\n")
    assert multiple_choice.load(str(file), "test", None).items == (Question("a", ("b", "c"), 1),) * 2


def test_lines_of_questions_end_at_line_feeds_only(tmp_path: Path) -> None:
    """Not at the line separator or the next line of Unicode, which JSON may hold; a byte-order mark is passed over."""
    file = tmp_path / "q.jsonl"
    row = json.dumps({"context": "a\u2028b\u0085", "choices": ["b", "c"], "answer": 1}, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n{row}".encode())
    assert multiple_choice.load(str(file), "test", None).items == (Question("a\u2028b\u0085", ("b", "c"), 1),) * 2


def test_arc_and_mmlu_are_put_as_in_the_harness() -> None:
    one = multiple_choice.with_text_choices("Why?", ("so", "thus"), 1, "")
    assert (one.context, one.choices, one.answer) == ("Question: Why?\nAnswer:", ("so", "thus"), 1)
    two = multiple_choice.with_letter_choices("Why? ", ("so", "thus"), 0, "moral_disputes")
    heading = "The following are multiple choice questions (with answers) about moral disputes.\n\n"
    assert two.context == f"{heading}Why?\nA. so\nB. thus\nAnswer:"
    assert two.choices == ("A", "B")
    assert multiple_choice.context_choice_pairs([two])[1] == (two.context, " B")
