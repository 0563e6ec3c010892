"""Likelihood evaluation of language models: the most likely choice, and whether greedy decoding gives a text.

The definitions are those of lm-evaluation-harness (Gao et al. 2024, arXiv:2405.14782, section 4).
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

BUCKET = 32  # lengths are rounded up to a multiple of this many tokens, so that few shapes are compiled


class Likelihood(NamedTuple):
    """Log-probabilities of continuations in nats, whether greedy decoding gives them, and their tokens [n]."""

    nats: np.ndarray
    greedy: np.ndarray
    tokens: np.ndarray


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a context and of its continuation. Trailing spaces of the context move to the continuation.

    The continuation's ids are those that encoding both together adds to the context's ids. An empty context becomes the
    start of a document.
    """
    stripped = context.rstrip()
    if not stripped:
        return _document_start(tokenizer), tokenizer.encode(context + continuation)
    continuation = context[len(stripped) :] + continuation
    before, both = tokenizer.encode(stripped), tokenizer.encode(stripped + continuation)
    start = np.array(tokenizer.prefix, np.int32)
    return np.concatenate([start, before]), both[len(before) :]


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
    """The log-probability of each continuation given its context, `size` rows at a time: pairs of ids -> arrays [n].

    Rows longer than the model's context are truncated at the start. `tick` counts rows.
    """
    context = model.config.context
    tokens = [np.concatenate(pair)[-(context + 1) :] for pair in rows]
    lengths = np.array([len(after) for _, after in rows])
    bucket_of = np.array([min(context, max(1, -(-(len(w) - 1) // BUCKET)) * BUCKET) for w in tokens])
    nats, hits, done = np.zeros(len(rows)), np.zeros(len(rows)), 0

    def rows_done(what: str, batches: int, of: int) -> None:
        tick("reading choices", done + min(batches * len(index) // max(of, 1), len(index)), len(rows))

    for bucket in np.unique(bucket_of):
        index = np.flatnonzero(bucket_of == bucket)
        fields = {k: np.zeros((len(index), bucket), np.int32) for k in ("tokens", "targets")}
        weight = np.zeros((len(index), bucket), np.float32)
        for row, i in enumerate(index):
            n = len(tokens[i]) - 1
            fields["tokens"][row, :n], fields["targets"][row, :n] = tokens[i][:-1], tokens[i][1:]
            weight[row, max(0, n - lengths[i]) : n] = 1
        eval_set = EvalSet({**fields, "weight": weight}, index)
        found, _ = evaluate.run_eval(eval_step, variables, eval_set, place, size, tick=rows_done)
        nats[index], hits[index] = -found["loss"][0], found["accuracy"][0]
        done += len(index)
    if not np.isfinite(nats).all():
        bad = int((~np.isfinite(nats)).sum())
        raise evaluate.NotFinite(
            f"the likelihood of {bad:,} of {len(nats):,} choices is not finite: nothing is measured"
        )
    kept = np.minimum(lengths, [len(w) - 1 for w in tokens])
    return Likelihood(nats, hits == kept, kept)


def accuracy_scores(questions: Questions, found: Likelihood) -> evaluate.Scores:
    """Scores of questions from the likelihoods of all their choices, in order; each question is a cluster.

    acc: the most likely choice is correct; acc_norm: the same by log-probability per character. For single choices, as
    in last-word prediction: accuracy of greedy decoding, and perplexity per word.
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
    """Evaluate a model on questions -> scores."""
    rows = [
        encode_pair(tokenizer, *pair)
        for pair in track(context_choice_pairs(questions.items), "tokenising choices", tick)
    ]
    return accuracy_scores(questions, likelihoods(model, eval_step, variables, place, rows, size, tick))
