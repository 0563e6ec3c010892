"""Cross-entropy by chunks against the plain one: values, guesses and gradients, on meshes too."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.spec import Unembedding
from train import mesh
from train.update import cross_entropy

B, T, D, V, VOCAB = 8, 6, 16, 64, 53
MESHES = ["", "dp:8", "tp:2,dp:4", "dp:2,fsdp:2,tp:2", "fsdp:2,cp:2,tp:2", "fsdp:8"]
EXTRAS = [{}, {"smoothing": 0.1}, {"z_loss": 0.01}, {"smoothing": 0.2, "z_loss": 0.05}]


def drawn(dtype: Any = jnp.float32) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (B, T, D)).astype(dtype)
    table, bias = jax.random.normal(keys[1], (V, D)), jax.random.normal(keys[2], (V,))
    return x, table, bias, jax.random.randint(keys[3], (B, T), 0, VOCAB), jax.random.uniform(keys[4], (B, T))


def measured(x: Any, table: Any, bias: Any, targets: Any, weight: Any, chunk: int, **extras: float) -> Any:
    def total(x: Any, table: Any, bias: Any) -> Any:
        nats, hit = cross_entropy.of_tokens(Unembedding(x, table, VOCAB, bias), targets, chunk=chunk, **extras)
        return jnp.sum(nats * weight), (nats, hit)

    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(x, table, bias)


def on(text: str, *arrays: Any) -> list[Any]:
    """The arrays as a model has them on a mesh."""
    count = math.prod(int(part.split(":")[1]) for part in text.split(","))
    place = mesh.place_on(mesh.make_mesh(text, jax.devices()[:count]), {})
    jax.set_mesh(place.mesh)
    names = ("batch seq width", "vocab embed", "vocab", "batch seq", "batch seq")
    return [jax.device_put(a, place.sharding(axes)) for a, axes in zip(arrays, names, strict=True)]


def assert_same(got: Any, want: Any, tolerance: float = 1e-6) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("text", MESHES)
def test_chunks_change_nothing(text: str, extras: dict[str, float]) -> None:
    """As many tokens at once as divide theirs, and as many as do not."""
    arrays = drawn()
    want = measured(*arrays, chunk=10**9, **extras)
    given = on(text, *arrays) if text else arrays
    for tokens in (5, 1) if extras else (4,):
        got = measured(*given, chunk=tokens * V, **extras)
        assert_same(got, want)
        np.testing.assert_array_equal(got[0][1][1], want[0][1][1])


def test_there_are_never_more_logits_than_a_chunk() -> None:
    """Neither forward nor backward, nor is there an array of all of them."""
    arrays = drawn()
    program = str(jax.make_jaxpr(lambda *a: measured(*a, chunk=4 * V))(*arrays))
    assert f"{B},{T},{V}]" not in program
    assert f"[{4},{V}]" in program
    assert f"{B},{T},{V}]" in str(jax.make_jaxpr(lambda *a: measured(*a, chunk=10**9))(*arrays))


def test_half_precision_is_as_near_as_it_can_be() -> None:
    low, full = drawn(jnp.bfloat16), drawn()
    want = measured(low[0].astype(jnp.float32), *full[1:], chunk=10**9)
    assert_same(measured(*low, chunk=5 * V), want, 0.01)
    plain = measured(*low, chunk=10**9)
    assert_same(measured(*low, chunk=5 * V)[0], plain[0], 1e-6)


def test_a_nan_is_no_guess() -> None:
    x, table, bias, targets, _ = drawn()
    x = x.at[0, 0].set(jnp.nan)
    nats, hit = cross_entropy.of_tokens(Unembedding(x, table, VOCAB, bias), targets, chunk=5 * V)
    assert np.isnan(nats[0, 0])
    assert hit[0, 0] == 0
    assert np.isfinite(np.asarray(nats)[1:]).all()
