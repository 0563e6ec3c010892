"""Latent attention: absorbed as with a cache, and plain; interleaved rotary pairs; what a cache keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.blocks.attention.rope import RopeScaling, apply_rope, frequencies
from models.blocks.decoder import kv_cache, mla
from models.blocks.decoder.forward import LayerContext, rms
from models.blocks.decoder.stack import Layer
from models.core.spec import flatten, initialize, ones, unsharded

B, T, D = 2, 7, 16
SHAPE = dict(width=D, heads=3, depth=1, kv_rank=6, nope_dim=4, rope_dim=2, value_dim=5, context=T)


def attend(c: mla.MLADecoder, p: Any, x: Any, cached: bool) -> Any:
    """The same attention by both forms; with a cache all tokens come at once."""
    tokens = {"tokens": jnp.zeros((B, T), jnp.int32)}
    table = kv_cache.cache_specs(c.spans, {"full": 1}, c.cache_entries, B, T, "float32")
    view = kv_cache.open_cache(tokens, c.spans, initialize(table, jax.random.key(0)) if cached else None, unsharded)
    cache = jax.tree.map(lambda w: w[0], view.layer_caches["full"]) if view.layer_caches else None
    context = LayerContext(c, view, c.ropes, rms, "reference", None, unsharded, Layer("full"), jnp.asarray(0), cache)
    return mla.latent_attention(x, p, c, context)


@pytest.mark.parametrize(
    ("q_rank", "interleaved"),
    [  # either value of each, the first in the default suite; all pairs weekly
        (8, True),
        pytest.param(None, False, marks=pytest.mark.slow),
        pytest.param(8, False, marks=pytest.mark.weekly),
        pytest.param(None, True, marks=pytest.mark.weekly),
    ],
)
def test_absorbed_is_plain_forward_and_backward(q_rank: int | None, interleaved: bool) -> None:
    c = mla.MLADecoder(**SHAPE, q_rank=q_rank, rope_interleaved=interleaved, attention_bias=True)
    specs, numbers = mla.mla_specs(c, 1), np.random.default_rng(0)
    p = jax.tree.map(lambda s: np.float32((s.init is ones) + 0.4 * numbers.normal(size=s.shape[1:])), specs)
    x = np.float32(numbers.normal(size=(B, T, D)))

    def value(p: Any, x: Any, cached: bool) -> Any:
        y, _ = attend(c, p, x, cached)
        return jnp.sum(jnp.sin(y)), y

    both = jax.value_and_grad(value, (0, 1), has_aux=True)
    absorbed, plain = jax.device_get(jax.jit(lambda p, x: (both(p, x, True), both(p, x, False)))(p, x))
    assert len(flatten(absorbed[1][0])) == len(flatten(specs))
    for a, b in zip(jax.tree.leaves(absorbed), jax.tree.leaves(plain), strict=True):
        assert np.linalg.norm(a - b) <= 2e-5 * np.linalg.norm(b)
        assert np.any(b)


def test_a_cache_keeps_the_latent_and_the_rotary_key_alone() -> None:
    """Of a token and layer as many numbers as the two have, whatever the number of heads."""
    table = models.build("deepseek", size="deepseek_v3").cache_specs(1, 100)
    kept = {name: spec.shape for name, spec in flatten(table["full"]["entries"]).items()}
    assert kept == {"latent": (61, 1, 100, 512), "k": (61, 1, 100, 64)}


def test_neighbours_turn_as_complex_numbers() -> None:
    """Dims 2i and 2i + 1 are one number times e^(i position frequency); reordered, it is the pairing of halves."""
    x, position = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32), np.arange(5)[None] + 3
    turns = frequencies(8, 100.0, RopeScaling())
    got = np.asarray(apply_rope(jnp.asarray(x), jnp.asarray(position), turns, 1.5, interleaved=True))
    want = (x[..., 0::2] + 1j * x[..., 1::2]) * 1.5 * np.exp(1j * position[..., None, None] * turns.astype(np.float64))
    np.testing.assert_allclose(got[..., 0::2] + 1j * got[..., 1::2], want, rtol=1e-5, atol=1e-5)
    apart = np.concatenate([x[..., 0::2], x[..., 1::2]], -1)
    halves = np.asarray(apply_rope(jnp.asarray(apart), jnp.asarray(position), turns, 1.5))
    np.testing.assert_array_equal(halves, np.concatenate([got[..., 0::2], got[..., 1::2]], -1))


def test_scores_grow_with_the_context() -> None:
    """By (0.1 mscale ln factor + 1) squared, where rope is stretched."""
    c = mla.MLADecoder(**SHAPE, rope="yarn", rope_factor=40.0, mscale=0.707)
    np.testing.assert_allclose(c.attention_scale, 6**-0.5 * (0.0707 * np.log(40) + 1) ** 2)
    assert mla.MLADecoder(**SHAPE, rope_factor=40.0, mscale=0.707).attention_scale == 6**-0.5
