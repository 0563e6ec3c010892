"""The cross-entropy in chunks against the one of whole logits."""

import math
import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.core.spec import LazyLogits, flatten
from tests.support.cases import tiny_model, weights
from tests.support.harness import Trainer, assert_gradients_close, clear_programs
from train.sharding import mesh
from train.tasks import chunked_cross_entropy
from train.tasks.language import NextToken

B, T, V, D, VOCAB = 8, 6, 24, 16, 21
MESHES = ("dp:8", "tp:2,dp:4", "dp:2,fsdp:2,tp:2", "fsdp:2,cp:2,tp:2")
EXTRAS: dict[str, Any] = dict(label_smoothing=0.1, z_loss=0.01)


def parts(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    draw = np.random.default_rng(0)
    return {
        "x": jnp.asarray(draw.normal(size=(B, T, D)).astype(jnp.dtype(dtype))),
        "table": jnp.asarray(draw.normal(size=(V, D)).astype(np.float32)),
        "bias": jnp.asarray(draw.normal(size=V).astype(np.float32)),
    }


def batch() -> dict[str, jax.Array]:
    draw = np.random.default_rng(1)
    return {"targets": jnp.asarray(draw.integers(0, VOCAB, (B, T))), "weight": jnp.asarray(weights(draw, B, T))}


def measured(given: Any, batch: Any, biased: bool = True, **extra: float) -> Any:
    """Terms, and the gradients of the loss."""

    def loss(given: Any) -> Any:
        bias = given["bias"] if biased else None
        terms = NextToken(**extra).terms(LazyLogits(given["x"], given["table"], VOCAB, bias), batch)
        return terms["loss"][0].sum(), terms

    return jax.jit(jax.grad(loss, has_aux=True))(given)


@cache
def whole(plain: bool = False, dtype: Any = jnp.float32) -> Any:
    """The same of whole logits, without a bias and extras or with both."""
    assert B * T * V <= chunked_cross_entropy.MAX_LOGITS
    return measured(parts(dtype), batch(), biased=not plain, **({} if plain else EXTRAS))


def close(got: Any, want: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("limit", [1, 7 * V, 16 * V])  # a token, a number that does not divide, one that does
@pytest.mark.parametrize("extra", [{}, EXTRAS])
def test_chunks_change_nothing(limit: int, extra: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    want = whole(plain=not extra)
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", limit)
    close(measured(parts(), batch(), biased=bool(extra), **extra), want, 1e-6)


@pytest.mark.parametrize("text", MESHES)
def test_nor_does_a_mesh(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = whole()
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", 2 * V)
    place = mesh.make_placement(mesh.make_mesh(text), {})
    axes = {"x": "batch seq width", "table": "vocab embed", "bias": "vocab"}
    given = {k: jax.device_put(v, place.sharding(axes[k])) for k, v in parts().items()}
    rows = {k: jax.device_put(v, place.sharding("batch seq")) for k, v in batch().items()}
    with jax.set_mesh(place.mesh):
        got = measured(given, rows, **EXTRAS)
    assert got[0]["table"].sharding.is_equivalent_to(given["table"].sharding, 2)
    close(got, want, 1e-6)


def test_bfloat16_is_as_close_as_its_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    want = whole(dtype=jnp.bfloat16)
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", 7 * V)
    got = measured(parts(jnp.bfloat16), batch(), **EXTRAS)
    close(got[1], want[1], 1e-6)
    close(got[0], want[0], 2**-8)


def test_no_array_of_all_logits_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array of loss and gradient has fewer scalars than the logits; without chunks, the largest has as many."""

    def largest(limit: int) -> int:
        monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", limit)
        text = jax.jit(lambda *given: measured(*given)).lower(parts(), batch()).as_text()
        shapes = re.findall(r"tensor<((?:\d+x)+)f32>", text)
        return max(math.prod(int(n) for n in shape.split("x")[:-1]) for shape in shapes)

    assert largest(B * T * V) == B * T * V
    assert largest(7 * V) < B * T * V


HARD = "fsdp:2,cp:2,tp:2"
CASES = [
    ("gpt", HARD),
    pytest.param("rnn", "dp:2", marks=pytest.mark.slow),
    *(pytest.param(*case, marks=pytest.mark.weekly) for case in (("rnn", HARD), ("gpt", "dp:2"))),
]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_an_update_is_the_same(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In microbatches, with what is recomputed, by SGD: loss, and what moved, by more than a parameter's last bits."""
    more: dict[str, Any] = dict(remat="full", depth=1) if name == "gpt" else {}

    def run() -> Any:
        trainer = Trainer(name, text, accumulate=2, optimizer="sgd", lr=64.0, model=tiny_model(name, **more))
        start = {k: np.asarray(v) for k, v in flatten(trainer.state["params"]).items()}
        loss = trainer.steps(1)
        return loss, {k: np.asarray(v) - start[k] for k, v in flatten(trainer.state["params"]).items()}

    want = run()
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", 1000)
    clear_programs()
    got = run()
    clear_programs()
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    assert_gradients_close(got[1], want[1], 2e-5)  # of what is left when like numbers are subtracted
