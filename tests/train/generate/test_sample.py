"""Text that models write: how tokens are drawn, and that rows of a batch do not know of each other."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UsageError
from tests.support.cases import random_variables, tiny_model
from tests.support.harness import jit_predict
from train.generate import sample
from train.generate.sample import FINISHED, Sampling
from train.sharding import mesh

PROMPTS = [np.array(p) for p in ([5, 9, 2, 7, 3, 8, 1], [4], [6, 6, 1])]


@cache
def model_of(name: str, **more: Any) -> tuple[models.Model, Any]:
    """A tiny model whose next token depends on all before it, as with initial values alone it hardly does."""
    model, draw = tiny_model(name, **{"context": 32, **more}), np.random.default_rng(1)
    return model, jax.tree.map(
        lambda x: x + 0.3 * draw.normal(size=x.shape).astype(np.float32), random_variables(model, 1)
    )


def texts(model: models.Model, variables: Any, prompts: list[np.ndarray], count: int, **how: Any) -> list[list[int]]:
    made = sample.generate(model, variables, prompts, jax.random.key(0), count=count, sampling=Sampling(**how))
    return np.concatenate(list(made), 1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt", "rnn"])
def test_a_batch_writes_what_each_row_writes_alone(name: str) -> None:
    """Prompts of different lengths, padded on the left, longer than a sliding window."""
    model, variables = model_of(name)
    together = texts(model, variables, PROMPTS, 20, temperature=0)
    assert len({tuple(row) for row in together}) == 3
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert texts(model, variables, [prompt], 20, temperature=0) == [row]


def test_parameters_of_a_mesh_of_one_device_write_the_same() -> None:
    """A checkpoint is opened on such a mesh; the text is that of plain arrays."""
    model, variables = model_of("mixtral", depth=1, dense_layers=())
    row = texts(model, variables, PROMPTS[:1], 4, temperature=0)
    place = mesh.make_placement(mesh.make_mesh("dp:1", jax.devices()[:1]), model.specs)
    with jax.set_mesh(place.mesh):
        placed = jax.device_put(variables, place.replicated)
        assert texts(model, placed, PROMPTS[:1], 4, temperature=0) == row


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_greedy_is_the_argmax_of_the_full_forward(name: str) -> None:
    model, variables = model_of(name)
    row = texts(model, variables, PROMPTS, 20, temperature=0)[0]
    whole = np.concatenate([PROMPTS[0], row])
    want = np.argmax(jit_predict(model)(variables, whole[None])[0], -1)
    np.testing.assert_array_equal(want[6:-1], row)


def test_beyond_the_context_the_newest_half_is_read_again() -> None:
    model, variables = model_of("gpt", context=8)
    row = texts(model, variables, [PROMPTS[0]], 9, temperature=0)[0]
    text = [*PROMPTS[0], *row]
    for start, at in ((0, 7), (0, 8), (5, 9), (5, 13), (10, 14), (10, 15)):
        window = np.pad(text[start:at], (0, 8 - (at - start)))  # no token sees what stands behind it
        want = int(np.argmax(jit_predict(model)(variables, window[None])[0, at - start - 1]))
        assert text[at] == want, (start, at)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_beyond_the_context_too_each_row_writes_what_it_writes_alone(temperature: float) -> None:
    model, variables = model_of("gpt", context=8)
    prompts = [np.arange(9), *PROMPTS]  # the first is too long already
    together = texts(model, variables, prompts, 20, temperature=temperature)
    assert together[:3] == texts(model, variables, prompts[:3], 20, temperature=temperature)
    assert [together[0]] == texts(model, variables, prompts[:1], 20, temperature=temperature)
    if temperature == 0:  # else a row draws by its number
        assert [together[2]] == texts(model, variables, prompts[2:3], 20, temperature=0)


def test_a_stop_ends_its_row_alone() -> None:
    model, variables = model_of("llama")
    free = texts(model, variables, PROMPTS, 20, temperature=0)
    stop = free[0][3]
    rows = texts(model, variables, PROMPTS, 20, temperature=0, stop=(stop,))
    for row, plain in zip(rows, free, strict=True):
        end = plain.index(stop) + 1 if stop in plain else len(plain)
        assert row[:end] == plain[:end]
        assert set(row[end:]) <= {FINISHED}


def test_a_stop_for_all_ends_at_once() -> None:
    model, variables = model_of("gpt")
    assert texts(model, variables, PROMPTS, 20, temperature=0, stop=tuple(range(128))) == [
        [row[0]] for row in texts(model, variables, PROMPTS, 20, temperature=0)
    ]


def test_rows_draw_by_their_own_keys() -> None:
    """Equal prompts part ways, the same key draws the same, and a row does not hang on the others."""
    model, variables = model_of("gpt")
    same = [PROMPTS[2]] * 3
    rows = texts(model, variables, same, 10, temperature=2.0)
    assert len({tuple(r) for r in rows}) == 3
    assert texts(model, variables, same, 10, temperature=2.0) == rows
    assert texts(model, variables, same[:1], 10, temperature=2.0) == rows[:1]


def filtered(how: Sampling, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.asarray(sample.filter_logits(jnp.asarray(logits), how, jnp.asarray(seen)))


@pytest.mark.parametrize(
    "how",
    [
        dict(top_k=3),
        dict(top_p=0.6, temperature=0.7),
        dict(min_p=0.2, temperature=1.5),
        dict(repetition=1.4),
        dict(top_k=9, top_p=0.8, min_p=0.05, repetition=0.8, temperature=0.9),
    ],
)
def test_logits_are_narrowed_as_in_transformers(how: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
    theirs = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(6, 40)).astype(np.float32) * 2
    ids = draw.integers(0, 40, (6, 8))
    seen = np.zeros((6, 40), bool)
    np.put_along_axis(seen, ids, True, 1)
    made = {
        "repetition": lambda v: theirs.RepetitionPenaltyLogitsProcessor(penalty=v),
        "temperature": lambda v: theirs.TemperatureLogitsWarper(v),
        "top_k": lambda v: theirs.TopKLogitsWarper(v),
        "top_p": lambda v: theirs.TopPLogitsWarper(v),
        "min_p": lambda v: theirs.MinPLogitsWarper(v),
    }
    want = torch.tensor(logits)
    for name, make in made.items():
        if name in how:
            want = make(how[name])(torch.tensor(ids), want)
    np.testing.assert_allclose(filtered(Sampling(**how), logits, seen), want.numpy(), rtol=1e-5, atol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    """10,000 draws from softmax(logits / temperature), top 3: each share within 5 standard errors."""
    logits = jnp.log(jnp.asarray([0.5, 0.2, 0.2, 0.05, 0.05]))
    keys = jax.random.split(jax.random.key(0), 10_000)
    rows = jnp.broadcast_to(logits, (10_000, 5))
    found = sample.sample_token(rows, keys, Sampling(temperature=2.0, top_k=3), jnp.zeros(rows.shape, bool))
    share = np.bincount(np.asarray(found), minlength=5) / 10_000
    want = np.sqrt([0.5, 0.2, 0.2, 0, 0])
    want /= want.sum()
    assert (np.abs(share - want) <= 5 * np.sqrt(want * (1 - want) / 10_000)).all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(temperature=-1.0), "temperature"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(top_k=0), "top_k"),
        (dict(top_p=1.5), "top_p"),
        (dict(min_p=0.0), "min_p"),
        (dict(repetition=0.0), "repetition"),
    ],
)
def test_bad_settings_are_named(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Sampling(**how)
