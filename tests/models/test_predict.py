"""What `Model.predict` takes: embeddings in place of tokens; inputs that a family would misread are refused."""

from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import models
from errors import UsageError
from models.inputs import check_inputs
from tests.support.cases import CASES, batch_for, random_variables, tiny_model

TAKE_EMBEDS = [
    name for name in CASES if tiny_model(name).module.INPUT == "tokens" and CASES[name].family not in ("rnn", "flax")
]
EARLY = ("gpt", "gemma", "bert")
OTHERS = [name for name in TAKE_EMBEDS if "encoder_decoder" not in tiny_model(name).traits]


@pytest.mark.parametrize("name", [n if n in EARLY else pytest.param(n, marks=pytest.mark.slow) for n in OTHERS])
def test_embeddings_stand_for_their_tokens(name: str) -> None:
    """The rows of the table, given as an input, have the tokens' value; and a gradient, which tokens have not."""
    model, batch = tiny_model(name), batch_for(name)
    variables = random_variables(model)
    fields = {k: v for k, v in batch.items() if k in ("tokens", "position", "segment", "mask", "token_type")}
    table = np.asarray(variables["params"]["embed"]["token"])
    others = {k: v for k, v in fields.items() if k != "tokens"}

    @jax.jit
    def both(embeds: jax.Array) -> tuple[Any, Any, Any]:
        value = lambda embeds: model.apply(variables, {**others, "embeds": embeds}).value  # noqa: E731
        return model.apply(variables, fields).value, value(embeds), jax.grad(lambda e: value(e).sum())(embeds)

    by_tokens, by_embeds, gradient = both(table[batch["tokens"]])
    np.testing.assert_allclose(by_embeds, by_tokens, rtol=1e-4, atol=1e-5)
    assert np.isfinite(gradient).all()
    assert np.any(gradient)


GPT = models.build("gpt", vocab=10, context=8, width=16, depth=1, heads=2)
CNN = models.build("cnn", inputs=(8, 8, 1), channels=(8, 16), hidden=(16,))
PAIRS, BERT = tiny_model("transformer"), tiny_model("bert")
MLP, RNN = models.build("mlp", inputs=4), tiny_model("gru_both_ways")
TEXT = {"tokens": np.zeros((2, 4), int)}


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (GPT, np.array([[3, 10]]), "'tokens' must be ids from 0 to 9, not int64 3 to 10"),
        (GPT, np.array([[-1, 3]]), "-1 to 3"),
        (GPT, np.zeros((1, 4)), "not float64"),
        (GPT, np.zeros(4, int), r"must be \[B T\], not of shape \(4,\)"),
        (GPT, np.zeros((1, 2, 3), int), r"must be \[B T\]"),
        (GPT, np.zeros((1, 9), int), "context = 8"),
        (GPT, {"embeds": np.zeros((1, 16))}, r"'embeds' must be \[B T 16\], not of shape \(1, 16\)"),
        (GPT, {"image": np.zeros((1, 8, 8, 1))}, "needs the input 'embeds' or 'tokens'; the batch has image"),
        (CNN, np.zeros((8, 8, 1)), r"must be \[B Y X 1\], not of shape \(8, 8, 1\)"),
        (PAIRS, {"tokens": np.zeros((1, 4), int)}, r"needs inputs\['source'\]"),
        (PAIRS, {"tokens": np.zeros((1, 4), int), "source": np.full((1, 4), 100)}, "'source' must be ids from 0 to 99"),
        (PAIRS, {"tokens": np.zeros((3, 4), int), "source": np.zeros((1, 4), int)}, r"'source' must be \[3 S\]"),
        (BERT, TEXT | {"token_type": np.full((2, 4), 2)}, "'token_type' must be ids from 0 to 1"),
        (BERT, TEXT | {"position": np.full((2, 4), -1)}, "'position' must be ids from 0 to 15"),
        (GPT, TEXT | {"position": np.full((2, 4), 8)}, "'position' must be ids from 0 to 7"),
        (BERT, TEXT | {"mask": np.ones(4)}, r"'mask' must be \[2 4\], not of shape \(4,\)"),
        (MLP, np.ones((5, 1)), r"'features' must be \[B 4\], not of shape \(5, 1\)"),
        (MLP, np.ones(4), r"'features' must be \[B 4\], not of shape \(4,\)"),
        (RNN, np.ones((5, 6, 1)), r"'tokens' must be \[B T 4\], not of shape \(5, 6, 1\)"),
        (MLP, np.array([[1.0], [1.0, 2.0]], object), r"'features' must be an array of numbers, not array\("),
        (MLP, np.array([["a"] * 4]), "'features' must be an array of numbers"),
        (MLP, np.ones((0, 4)), r"'features' must have a row or more, not be of shape \(0, 4\)"),
    ],
)
def test_an_input_that_would_be_misread_is_refused(model: models.Model, inputs: Any, says: str) -> None:
    variables = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.specs)
    with pytest.raises(UsageError, match=says):
        model.predict(variables, inputs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["params"], r"variables must be \{'params': ..., 'stats': ...\}; they have no 'params'"),
        (lambda v: {"params": v["params"]}, "they have no 'stats'"),
        (
            lambda v: {**v, "params": {**v["params"], "head": {}}},
            "'params/head/bias' must be of shape (.*), which they",
        ),
        (lambda v: jax.tree.map(lambda x: x[:1], v), r"must be of shape \(.*\), not \(1"),
    ],
)
def test_variables_of_another_tree_are_refused(change: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        CNN.predict(change(random_variables(CNN)), np.zeros((1, 8, 8, 1)))


def test_a_traced_batch_and_fields_that_a_family_does_not_read_pass() -> None:
    """Ids are looked at where they are there."""
    variables = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), GPT.specs)
    assert jax.jit(GPT.predict)(variables, np.array([[3, 9]])).shape == (1, 2, 10)
    assert GPT.predict(variables, {**TEXT, "token_type": np.full(3, 7), "label": np.zeros(5)}).shape == (2, 4, 10)


def test_of_an_input_that_no_table_knows_its_presence_is_checked() -> None:
    """As of a family of a user's own."""
    module, config = ModuleType("mine"), SimpleNamespace()
    module.INPUT, specs, graph = "graph", {"params": {}}, np.ones((2, 5, 5))
    assert check_inputs("mine", module, config, specs, {"graph": graph, "mask": graph})[1]["B"] == 2
    with pytest.raises(UsageError, match="mine as configured needs the input 'graph'; the batch has mask"):
        check_inputs("mine", module, config, specs, {"mask": graph})
