"""Prediction of tokens after the next: what each module sees, what it predicts, and the loss."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.core.layers import compute_logits, per_row_keys
from models.core.spec import flatten, unsharded
from tests.support.cases import batch_for, random_variables, tiny_model
from train.sharding import mesh
from train.tasks import TASKS, language
from train.update import step


def ahead(model: models.Model, variables: Any, tokens: Any) -> list[np.ndarray]:
    out = _mtp_logits(model)(variables, tokens)
    return [np.asarray(value) for value in out]


@cache
def _mtp_logits(model: models.Model) -> Any:
    return jax.jit(
        lambda v, t: [compute_logits(value) for value in model.apply(v, t, train=True, logits=False).mtp_values]
    )


@pytest.mark.slow
def test_a_token_further_is_predicted_from_those_before_it_alone() -> None:
    """The k-th module sees, at each position, k tokens further, and not the one that it predicts."""
    model = tiny_model("deepseek_softmax", depth=1, dense_layers=(0,))
    variables, tokens = random_variables(model), batch_for("deepseek")["tokens"][:2]
    before, at = ahead(model, variables, tokens), 9
    other = tokens.copy()
    other[:, at] = (other[:, at] + 1) % 100
    for k, (one, two) in enumerate(zip(before, ahead(model, variables, other), strict=True), 1):
        np.testing.assert_array_equal(one[:, : at - k], two[:, : at - k])
        assert (one[:, at - k :] != two[:, at - k :]).any(-1).all()


def test_targets_further_on_are_those_that_all_on_the_way_lead_to() -> None:
    draw = np.random.default_rng(0)
    batch = {
        "targets": draw.integers(0, 9, (3, 8)),
        "weight": np.float32([[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0.5, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]),
        "segment": np.int32([[0] * 8, [0] * 8, [0, 0, 0, 0, 1, 1, 1, 1]]),
    }
    for count in (1, 2, 9):
        got = language.shift_targets(jax.tree.map(jnp.asarray, batch), count, unsharded)
        for b, t in np.ndindex(3, 8):
            way = batch["weight"][b, t : t + count + 1]
            near = t + count < 8 and (way > 0).all() and len(set(batch["segment"][b, t : t + count + 1])) == 1
            assert got["weight"][b, t] == (way[-1] if near else 0)
            if near:
                assert got["targets"][b, t] == batch["targets"][b, t + count]


@pytest.mark.slow
def test_the_loss_takes_a_mean_over_modules_and_all_tokens() -> None:
    """Eq. 24 and 25 of arXiv:2412.19437: sums of nats over as many tokens as the loss has, mean over modules."""
    model = tiny_model("deepseek_softmax", depth=1, dense_layers=(0,), mtp_weight=0.7)
    batch = jax.tree.map(jnp.asarray, batch_for("deepseek_softmax"))
    params, total = random_variables(model)["params"], jnp.sum(batch["weight"])

    def nats(logits: Any, k: int) -> tuple[Any, Any]:
        """Sum over all tokens that have one k further, and of their weights."""
        ways = jnp.stack([batch["weight"][:, i : 16 - k + i] for i in range(k + 1)])
        weight = ways[-1] * jnp.all(ways > 0, 0)
        one_hot = jax.nn.one_hot(batch["targets"][:, k:], 100)
        return -jnp.sum(jax.nn.log_softmax(logits[:, : 16 - k, :100]) * one_hot * weight[..., None]), jnp.sum(weight)

    def loss(params: Any) -> Any:
        out = model.apply({"params": params}, batch, train=True, logits=False)
        own, *more = (nats(compute_logits(value), k) for k, value in enumerate((out.value, *out.mtp_values)))
        mean = sum(s for s, _ in more) / len(more)
        return (own[0] + 0.7 * mean) / total, mean / (sum(w for _, w in more) / len(more))

    (_, mtp_loss), want = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    place = mesh.make_placement(mesh.make_mesh("dp:1", jax.devices()[:1]), model.specs)
    grad = step.make_gradient(model, TASKS["next_token"], place, step.StepOptions())
    with jax.set_mesh(place.mesh):
        put = {k: jax.device_put(v, place.sharding("batch seq")) for k, v in batch.items()}
        mine = jax.device_put(params, place.shardings(model.specs["params"]))
        keys = per_row_keys(jax.random.key(0), jax.device_put(jnp.arange(16), place.sharding("batch")))
        got, (terms, _, _) = jax.jit(grad)(mine, {}, put, keys, total, {}, {})
    np.testing.assert_allclose(terms["mtp_loss"][0] / terms["mtp_loss"][1], mtp_loss, rtol=1e-5)
    whole = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(want)))
    for name, g in flatten(got).items():
        assert np.linalg.norm(g - flatten(want)[name]) <= 2e-5 * max(np.linalg.norm(g), 1e-3 * whole), name
    assert any(np.any(g) for g in jax.tree.leaves(got["mtp"]))
