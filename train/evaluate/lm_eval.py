"""Language models examined by likelihood: which choice is likelier to follow, and whether a text follows greedily.

Definitions are those of lm-evaluation-harness (Gao et al. 2024, arXiv:2405.14782, section 4), so that figures compare.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data.eval_set import EvalSet
from data.progress import Tick, silent, track
from data.sources.multiple_choice import Questions, context_choice_pairs
from data.text.tokenizers import Tokenizer
from models import Model
from train.evaluate import evaluate
from train.sharding.mesh import Placement

BUCKET = 32  # tokens: rows of like length share a batch, and few lengths are compiled


class Likelihood(NamedTuple):
    """Of continuations: log-probabilities in nats, whether each token is the likeliest, and how many there are [n]."""

    nats: np.ndarray
    greedy: np.ndarray
    tokens: np.ndarray


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a context and of what follows; spaces that end the context go to what follows.

    What follows is what encoding both together adds to the context's ids. An empty context is the end of a document.
    """
    bare = context.rstrip()
    if not bare:
        return _document_start(tokenizer), tokenizer.encode(context + continuation)
    continuation = context[len(bare) :] + continuation
    before, whole = tokenizer.encode(bare), tokenizer.encode(bare + continuation)
    start = np.array(tokenizer.prefix, np.int32)
    return np.concatenate([start, before]), whole[len(before) :]


def _document_start(tokenizer: Tokenizer) -> np.ndarray:
    return np.array(tokenizer.prefix or [tokenizer.eot], np.int32)


def likelihoods(
    model: Model,
    eval_step: evaluate.EvalStep,
    variables: Any,
    place: Placement,
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    size: int,
    tick: Tick = silent,
) -> Likelihood:
    """Each continuation's log-probability after its context, `size` rows at a time; ids of both -> arrays [n].

    What is longer than the model's context loses its beginning. Rows are what is reported to `tick`.
    """
    context = model.config.context
    whole = [np.concatenate(pair)[-(context + 1) :] for pair in rows]
    told = np.array([len(after) for _, after in rows])
    length = np.array([min(context, max(1, -(-(len(w) - 1) // BUCKET)) * BUCKET) for w in whole])
    nats, hits, done = np.zeros(len(rows)), np.zeros(len(rows)), 0

    def rows_done(what: str, batches: int, of: int) -> None:
        tick("reading choices", done + min(batches * len(index) // max(of, 1), len(index)), len(rows))

    for bucket in np.unique(length):
        index = np.flatnonzero(length == bucket)
        fields = {k: np.zeros((len(index), bucket), np.int32) for k in ("tokens", "targets")}
        weight = np.zeros((len(index), bucket), np.float32)
        for row, i in enumerate(index):
            n = len(whole[i]) - 1
            fields["tokens"][row, :n], fields["targets"][row, :n] = whole[i][:-1], whole[i][1:]
            weight[row, max(0, n - told[i]) : n] = 1
        eval_set = EvalSet({**fields, "weight": weight}, index)
        found, _ = evaluate.run_eval(eval_step, variables, eval_set, place, size, tick=rows_done)
        nats[index], hits[index] = -found["loss"][0], found["accuracy"][0]
        done += len(index)
    if not np.isfinite(nats).all():
        bad = int((~np.isfinite(nats)).sum())
        raise evaluate.NotFinite(
            f"the likelihood of {bad:,} of {len(nats):,} choices is not finite: nothing is measured"
        )
    kept = np.minimum(told, [len(w) - 1 for w in whole])
    return Likelihood(nats, hits == kept, kept)


def accuracy_scores(questions: Questions, found: Likelihood) -> evaluate.Scores:
    """What the likelihoods of all choices, question by question, make of questions; each question is a cluster.

    acc: the likeliest choice is right; acc_norm: the likeliest by log-probability over its length in characters. Of
    single choices, as last words: accuracy of greedy decoding, and perplexity a word.
    """
    if all(len(q.choices) == 1 for q in questions.items):
        terms = {"loss": -found.nats, "accuracy": found.greedy.astype(np.float64)}
        return evaluate.with_perplexity(
            evaluate.compute_scores({k: np.stack([v, np.ones_like(v)]) for k, v in terms.items()})
        )
    length = np.array([max(1, len(choice)) for q in questions.items for choice in q.choices])
    ends, answers = np.cumsum([len(q.choices) for q in questions.items])[:-1], [q.answer for q in questions.items]
    right = {}
    for name, value in (("acc", found.nats), ("acc_norm", found.nats / length)):
        best = [int(np.argmax(of_one)) for of_one in np.split(value, ends)]
        right[name] = np.equal(best, answers).astype(np.float64)
    return evaluate.compute_scores({k: np.stack([v, np.ones_like(v)]) for k, v in right.items()})


def score_questions(
    model: Model,
    tokenizer: Tokenizer,
    eval_step: evaluate.EvalStep,
    variables: Any,
    place: Placement,
    questions: Questions,
    size: int,
    tick: Tick = silent,
) -> evaluate.Scores:
    """Put questions to a model -> scores."""
    rows = [
        encode_pair(tokenizer, *pair)
        for pair in track(context_choice_pairs(questions.items), "tokenising choices", tick)
    ]
    return accuracy_scores(questions, likelihoods(model, eval_step, variables, place, rows, size, tick))
