"""What `Model.predict` takes: embeddings in place of tokens; inputs that a family would misread are refused."""

from typing import Any

import jax
import numpy as np
import pytest

import models
from errors import UsageError
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
PAIRS = tiny_model("transformer")


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (GPT, np.array([[3, 10]]), "tokens must be ids from 0 to 9, not int64 3 to 10"),
        (GPT, np.array([[-1, 3]]), "-1 to 3"),
        (GPT, np.zeros((1, 4)), "not float64"),
        (GPT, np.zeros(4, int), r"must be \[B T\], not of shape \(4,\)"),
        (GPT, np.zeros((1, 2, 3), int), r"must be \[B T\]"),
        (GPT, np.zeros((1, 9), int), "context = 8"),
        (GPT, {"embeds": np.zeros((1, 16))}, r"'embeds' must be \[B T D\]"),
        (GPT, {"image": np.zeros((1, 8, 8, 1))}, "needs the input 'tokens'; it has image"),
        (CNN, np.zeros((8, 8, 1)), r"must be \[B Y X C\], not of shape \(8, 8, 1\)"),
        (PAIRS, {"tokens": np.zeros((1, 4), int)}, r"needs inputs\['source'\]"),
        (PAIRS, {"tokens": np.zeros((1, 4), int), "source": np.full((1, 4), 100)}, "source must be ids from 0 to 99"),
    ],
)
def test_an_input_that_would_be_misread_is_refused(model: models.Model, inputs: Any, says: str) -> None:
    variables = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.specs)
    with pytest.raises(UsageError, match=says):
        model.predict(variables, inputs)


def test_an_empty_batch_and_a_traced_one_pass() -> None:
    """Ids are looked at where they are there; padding of the vocabulary is no id."""
    variables = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), GPT.specs)
    assert GPT.predict(variables, np.zeros((0, 4), int)).shape == (0, 4, 10)
    assert jax.jit(GPT.predict)(variables, np.array([[3, 9]])).shape == (1, 2, 10)
