"""Values of Configs: what each field takes, and what is refused by name."""

from typing import Any

import jax
import pytest

import models
from errors import UsageError
from tests.support.cases import batch_for, random_variables, tiny_model, to_inputs


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("cnn", dict(inputs=()), "inputs = () must be three numbers"),
        ("vgg", dict(depths=(), channels=()), "depths = () must be one for each of channels"),
        ("resnet", dict(depths=(), channels=()), "depths = () must be one for each of channels"),
        ("yolo", dict(layers=()), "layers = () must be of Darknet"),
        ("yolo", dict(anchors=()), "anchors = () must be those that heads name"),
    ],
)
def test_nothing_is_refused_where_something_is_wanted(family: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        models.build(family, **fields)
    assert says in str(refused.value)


def test_an_integer_beyond_int32_is_a_float() -> None:
    """A float field takes it from a config.json; jax takes no such int."""
    model = tiny_model("llama", eps=10**20)
    assert model == tiny_model("llama", eps=1e20)
    jax.eval_shape(model.predict, random_variables(model), to_inputs(batch_for("llama")))
    with pytest.raises(UsageError, match="depth = 100000000000000000000"):
        tiny_model("llama", depth=10**20)
