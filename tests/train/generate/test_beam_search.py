"""Beam search: against all sequences there are, a greedy loop, and its own words."""

import itertools
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UsageError
from tests.support.cases import random_variables
from train.generate.beam_search import beam_search

START, STOP, V, S = 1, 2, 4, 5
TINY: dict[str, dict[str, Any]] = {
    "transformer": dict(vocab=V, vocab_multiple=8, width=16, context=8, depth=1, heads=2, hidden=16, tied="none"),
    "seq2seq": dict(vocab=V, vocab_multiple=8, width=16, context=8, embed=8, tied="none"),
}


@cache
def started(family: str, **more: Any) -> tuple[models.Model, Any]:
    """A model far from its initial values, whose tokens hang on what was said, and whose padding would be likely."""
    model, draw = models.build(family, **{**TINY[family], **more}), np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.4 * draw.normal(size=x.shape).astype(np.float32), random_variables(model))
    moved["params"]["head"][model.config.vocab :] = 9.0
    return model, moved


def sources(rows: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(5)
    mask = (np.arange(S) < draw.integers(1, S + 1, rows)[:, None]).astype(np.float32)
    return draw.integers(0, V, (rows, S)).astype(np.int32), mask


@partial(jax.jit, static_argnums=0)
def predict(model: models.Model, variables: Any, inputs: dict[str, Any]) -> jax.Array:
    return model.predict(variables, inputs)


def logs_of(model: models.Model, variables: Any, source: np.ndarray, mask: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Log-probabilities of every next token after each sequence said of one source: [N T] -> [N T V]."""
    begun = np.concatenate([np.full((len(said), 1), START), said[:, :-1]], 1).astype(np.int32)
    source, mask = (np.broadcast_to(x, (len(said), S)) for x in (source, mask))
    inputs = {"tokens": begun, "source": source, "source_mask": mask}
    return np.asarray(jax.nn.log_softmax(predict(model, variables, inputs)))


@pytest.mark.parametrize("penalty", [0.0, 1.5])
@pytest.mark.parametrize("family", ["transformer", pytest.param("seq2seq", marks=pytest.mark.slow)])
def test_as_many_beams_as_sequences_find_the_best(family: str, penalty: float) -> None:
    """Among all that end within four tokens, by the length penalty as it stands in the paper."""
    model, variables = started(family)
    (source, mask), count = sources(3), 4
    every = np.array(list(itertools.product(range(V), repeat=count)))
    how: dict[str, Any] = dict(start=START, stop=STOP, count=count, beams=V**count, penalty=penalty)
    said, scores = beam_search(model, variables, source, mask, **how)
    for row in range(3):
        logs = np.take_along_axis(logs_of(model, variables, source[row], mask[row], every), every[..., None], 2)[..., 0]
        found = {}
        for tokens, log in zip(every.tolist(), logs, strict=True):
            if STOP in tokens:
                n = tokens.index(STOP) + 1
                found[(*tokens[:n], *[STOP] * (count - n))] = log[:n].sum() / ((5 + n) / 6) ** penalty
        best = max(found, key=found.__getitem__)
        assert tuple(said[row].tolist()) == best
        np.testing.assert_allclose(scores[row], found[best], rtol=1e-5)


@pytest.mark.parametrize("family", list(TINY))
def test_one_beam_is_greedy(family: str) -> None:
    model, variables = started(family, vocab=13, vocab_multiple=16)
    source, mask = sources(6)
    how: dict[str, Any] = dict(start=START, count=7, beams=1)
    said, _ = beam_search(model, variables, source, mask, stop=STOP, **how)
    stop = int(said[0, 2])  # a token that does come
    said, scores = beam_search(model, variables, source, mask, stop=stop, **how)
    assert len({tuple(row) for row in np.asarray(said).tolist()}) > 1
    for row, tokens in enumerate(np.asarray(said)):
        n = tokens.tolist().index(stop) + 1 if stop in tokens else 7
        logs = logs_of(model, variables, source[row], mask[row], tokens[None])[0, :n]
        np.testing.assert_array_equal(tokens[:n], np.argmax(logs, -1))
        assert (tokens[n:] == stop).all()
        np.testing.assert_allclose(scores[row], np.max(logs, -1).sum() / ((5 + n) / 6) ** 0.6, rtol=1e-5)


@pytest.mark.parametrize("family", ["seq2seq", pytest.param("transformer", marks=pytest.mark.slow)])
def test_a_row_knows_neither_the_others_nor_padding(family: str) -> None:
    """Rows alone say what they say together, with a longer padding of the source too; no token is of the padding."""
    model, variables = started(family, vocab=13, vocab_multiple=16)
    source, mask = sources(5)
    how: dict[str, Any] = dict(start=START, stop=STOP, count=6, beams=3)
    how["stop"] = int(beam_search(model, variables, source, mask, **how)[0][0, 2])  # a token that does come
    together, scores = beam_search(model, variables, source, mask, **how)
    assert np.asarray(together).max() < 13
    ended = np.asarray(together) == how["stop"]
    assert (np.diff(ended.astype(int), axis=1) >= 0).all()
    assert ended.any()
    wide = np.pad(source, ((0, 0), (0, 2)), constant_values=3), np.pad(mask, ((0, 0), (0, 2)))
    for row in range(5):
        said, score = beam_search(model, variables, *(x[row : row + 1] for x in wide), **how)
        np.testing.assert_array_equal(said[0], together[row])
        np.testing.assert_allclose(score[0], scores[row], rtol=1e-5)


def test_more_beams_find_no_worse_score() -> None:
    """The score is that of the sequence as the full forward sees it, and that of many beams is the best there is."""
    model, variables = started("transformer")
    source, mask = sources(4)
    how: dict[str, Any] = dict(start=START, stop=STOP, count=5, penalty=0.6)
    found = {k: beam_search(model, variables, source, mask, beams=k, **how) for k in (2, 4, V**4)}
    for said, scores in found.values():
        for row in range(4):
            tokens = np.asarray(said)[row]
            logs = logs_of(model, variables, source[row], mask[row], tokens[None])[0]
            n = tokens.tolist().index(STOP) + 1 if STOP in tokens else 5
            total = sum(logs[t, tokens[t]] for t in range(n))
            np.testing.assert_allclose(scores[row], total / ((5 + n) / 6) ** 0.6, rtol=1e-4)
            assert scores[row] <= found[V**4][1][row] + 1e-5 or STOP not in tokens


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(beams=0), "beams .*1 or more, not 0"),
        (dict(count=0), "count .*1 or more, not 0"),
        (dict(penalty=-1.0), "penalty .*0 or more, not -1.0"),
        (dict(start=4), "start .*below vocab=4, not 4"),
        (dict(stop=-1), "stop .*below vocab=4, not -1"),
        (dict(count=9), "context = 8 must be at least the cache's length 9"),
    ],
)
def test_bad_values_are_refused(changes: dict, says: str) -> None:
    model, variables = started("transformer")
    with pytest.raises(UsageError, match=says):
        beam_search(model, variables, *sources(1), **{**dict(start=START, stop=STOP, count=4), **changes})


def test_what_does_not_translate_is_refused() -> None:
    model = models.build("gpt", width=16, heads=2, depth=1)
    with pytest.raises(UsageError, match="family 'gpt' does not translate"):
        beam_search(model, {}, jnp.zeros((1, 2), jnp.int32), start=0, stop=1, count=2)
