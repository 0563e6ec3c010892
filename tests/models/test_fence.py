"""The residual stream is made once: what a fence lowers to, and what it does to a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hlo
from models.blocks.decoder import stack
from models.core import loop
from models.core.fence import KEEP_FENCES, fence
from models.families import gpt
from tests.support.cases import batch_for, random_variables, tiny_model


def chain(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(fence(jnp.sin(x))) ** 2)


def plain(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(jnp.sin(x)) ** 2)


@pytest.mark.parametrize("transform", [jax.grad, jax.hessian, jax.jacfwd, lambda f: jax.vmap(jax.grad(f))])
def test_it_changes_no_value(transform) -> None:
    x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    np.testing.assert_allclose(jax.jit(transform(chain))(x), jax.jit(transform(plain))(x), rtol=1e-6)


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
def test_other_platforms_have_none(platform: str) -> None:
    traced = jax.jit(jax.grad(chain)).trace(jnp.ones(3))
    fenced, free = (
        jax.jit(jax.grad(f)).trace(jnp.ones(3)).lower(lowering_platforms=(platform,)) for f in (chain, plain)
    )
    count = {text.as_text().count("stablehlo.") for text in (fenced, free)}
    assert len(count) == 1
    assert "barrier" not in fenced.as_text()
    assert traced.lower(lowering_platforms=("cpu",)).as_text().count("optimization_barrier") == 2  # value and gradient


@pytest.mark.parametrize("size", [2, 64])
def test_a_loop_of_any_size_compiles_and_keeps_it(size: int) -> None:
    def run(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.scan(lambda x, w: (fence(x + jnp.tanh(x @ w)), None), x, w)[0])

    w, x = jnp.ones((3, size, size)) / size, jnp.ones((2, size))
    kept = jax.jit(jax.grad(run), compiler_options=KEEP_FENCES).lower(w, x).compile()
    assert "opt-barrier" in kept.as_text()
    np.testing.assert_allclose(kept(w, x), jax.jit(jax.grad(run))(w, x), rtol=1e-5)


def widest_fusion(depth: int) -> int:
    """The most operands of a fusion in the gradient of a GPT whose layers are unrolled."""
    model = tiny_model("gpt", depth=depth, scan=False)
    variables, batch = random_variables(model), batch_for("gpt")

    def loss(params, batch):
        return jnp.sum(jnp.sin(model.apply({"params": params}, batch).value))

    gradient = jax.jit(jax.grad(loss), compiler_options=KEEP_FENCES)
    text = gradient.lower(variables["params"], batch).compile().as_text()
    return max(fusion.operands for fusion in hlo.fusions(text))


def test_no_fusion_reads_all_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fences the widest fusion grows with depth: 60 operands at depth 3, 159 at depth 9."""
    assert widest_fusion(3) == widest_fusion(9) < 20
    for module in (gpt, stack):
        monkeypatch.setattr(module, "fence", lambda x: x)
    assert widest_fusion(3) > 40


def test_few_layers_are_unrolled_on_one_cpu_device() -> None:
    assert [loop.unroll(None, n) for n in (1, 8, 9)] == [1, 8, 1]
    assert loop.unroll(None, 4, layers=24) == 1
    assert (loop.unroll(True, 4), loop.unroll(False, 24)) == (1, 24)
    with jax.set_mesh(jax.make_mesh((8,), ("dp",))):
        assert loop.unroll(None, 4) == 1
    with jax.set_mesh(jax.make_mesh((1,), ("dp",), devices=jax.devices()[:1])):
        assert loop.unroll(None, 4) == 4
