"""The loss of each row of a batch: `canon.losses`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import canon
from tests.support.cases import CASES, batch_for, random_variables, tiny_model
from train.tasks.classification import Softmax


@pytest.mark.parametrize("name", CASES)
def test_every_model_has_a_usual_loss(name: str) -> None:
    """That by which it is trained; without weights all rows, or tokens, count as 1."""
    model, batch = tiny_model(name), batch_for(name)
    del batch["weight"]
    terms = jax.eval_shape(lambda v, b: canon.losses(model, v, b), random_variables(model), batch)
    assert [x.shape for x in terms["loss"]] == [(16,), (16,)]
    named = jax.eval_shape(lambda v, b: canon.losses(model, v, b, CASES[name].loss), random_variables(model), batch)
    assert terms == named


@pytest.mark.parametrize("name", ["gpt", "yolo_region"])
def test_a_row_has_its_loss_in_any_batch(name: str) -> None:
    model, batch = tiny_model(name), {k: x[:4] for k, x in batch_for(name).items()}
    variables = random_variables(model)
    program = jax.jit(lambda batch: canon.losses(model, variables, batch))
    whole = program(batch)
    apart = [program({k: x[i : i + 1] for k, x in batch.items()}) for i in range(4)]
    joined = jax.tree.map(lambda *rows: jnp.concatenate(rows), *apart)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, joined)


def test_the_nats_of_a_text_are_those_of_its_logits() -> None:
    """Also the gradient of each text's own loss, by `vmap`."""
    model, batch = tiny_model("gpt"), {k: x[:4] for k, x in batch_for("gpt").items()}
    variables = random_variables(model)
    nats, count = canon.losses(model, variables, batch)["loss"]
    log_probs = jax.nn.log_softmax(model.predict(variables, batch))
    each = -jnp.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0] * batch["weight"]
    np.testing.assert_allclose(nats, each.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(count, batch["weight"].sum(-1), rtol=1e-6)

    def own(params: Any, row: Any) -> jax.Array:
        one = jax.tree.map(lambda x: x[None], row)
        return canon.losses(model, {**variables, "params": params}, one)["loss"][0][0]

    by_row = jax.jit(jax.vmap(jax.grad(own), (None, 0)))(variables["params"], batch)
    together = jax.jit(jax.grad(lambda p: canon.losses(model, {**variables, "params": p}, batch)["loss"][0].sum()))
    total = together(variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-3, atol=1e-4), by_row, total)


class Jitted(Softmax):
    def terms(self, value: Any, batch: Any) -> Any:
        return jax.jit(super().terms)(value, batch)


@pytest.mark.parametrize("task", [Softmax, Jitted])
def test_a_task_has_settings(task: type[Softmax]) -> None:
    """It may transform its batch, a pytree as in training."""
    model, batch = tiny_model("mlp"), batch_for("mlp")
    weighted = canon.losses(model, random_variables(model), batch, task(class_weights=(1.0, 2.0, 3.0, 4.0)))
    expected = batch["weight"] * (1 + batch["label"])
    np.testing.assert_allclose(weighted["loss"][1], expected, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_no_field_is_broadcast(name: str) -> None:
    """Neither one row in place of all, nor a row without its dim, nor a dim more, nor a last dim of another size."""
    model, batch = tiny_model(name), batch_for(name)
    variables = random_variables(model)
    for field, x in batch.items():
        for wrong in (x[:1], x[0], x[None], np.concatenate([x, x], -1)):
            with pytest.raises(canon.UsageError):
                canon.losses(model, variables, {**batch, field: wrong})


MLP = {"features": np.zeros((2, 16), np.float32), "label": np.array([0, 3])}
GPT = {"tokens": np.zeros((2, 4), int), "targets": np.zeros((2, 4), int)}


@pytest.mark.parametrize(
    ("name", "batch", "loss", "says"),
    [
        ("mlp", {"features": MLP["features"]}, None, "needs the field 'label'; the batch has features"),
        ("mlp", MLP, "mse", "'mse' needs a model with the trait regressor; mlp as configured has classifier"),
        ("mlp", MLP, "sofmax", "did you mean 'softmax'"),
        ("mlp", MLP | {"label": np.array([0, 4])}, None, "'label' must be ids from 0 to 3"),
        ("mlp", MLP | {"label": np.eye(4)[:2]}, None, r"'label' must be \[2\], not of shape \(2, 4\)"),
        ("mlp", MLP | {"label": 3}, None, r"'label' must be \[2\], not of shape \(\)"),
        ("mlp", MLP | {"weight": np.ones((2, 1))}, None, r"'weight' must be \[2\], not of shape \(2, 1\)"),
        ("mlp", {"label": MLP["label"]}, None, "needs the input 'features' or 'image'; the batch has label"),
        ("mlp", MLP | {"labels": np.ones((2, 1))}, "sigmoid", r"'labels' must be \[2 4\], not of shape \(2, 1\)"),
        ("mlp", MLP | {"labels": np.full((2, 4), 7)}, "sigmoid", "'labels' must be from 0 to 1, not 7 to 7"),
        ("mlp", MLP, "hinge", "model.classes = 4 must be 1 for loss 'hinge'"),
        ("gpt", GPT | {"targets": np.full((2, 4), -100)}, None, "'targets' must be ids from 0 to 99"),
        ("gpt", GPT | {"tokens": np.full((2, 4), 100)}, None, "'tokens' must be ids from 0 to 99"),
        ("gpt", GPT | {"weight": np.ones(2)}, None, r"'weight' must be \[2 4\], not of shape \(2,\)"),
        ("gpt", {"tokens": GPT["tokens"]}, None, "needs the field 'targets'; the batch has tokens"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, batch: Any, loss: Any, says: str) -> None:
    model = tiny_model(name)
    with pytest.raises(canon.UsageError, match=says):
        canon.losses(model, random_variables(model), batch, loss)


def test_a_model_without_a_usual_loss() -> None:
    model = canon.build("bert", vocab=10, context=4, width=8, depth=1, heads=2, head="none", pool="none")
    with pytest.raises(canon.UsageError, match="bert as configured has no usual loss"):
        canon.losses(model, random_variables(model), {"tokens": np.zeros((1, 4), int)})
