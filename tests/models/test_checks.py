"""Values of Configs: what each field takes, and what is refused by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import pytest

import models
from errors import UsageError
from models.core.checks import at_least, check_types, divides, not_negative, positive, probability
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


@dataclass(frozen=True)
class Toy:
    width: int = 6
    heads: int | None = 2
    rate: float = 0.1
    sides: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize(
    ("check", "fields", "says"),
    [
        (lambda c: positive(c, "heads", "width"), dict(width=0), "width = 0 must be positive"),
        (lambda c: positive(c, "sides"), dict(sides=(1, 0)), "sides = (1, 0) must be positive"),
        (lambda c: positive(c, "width"), dict(width=1.5), "width = 1.5 is not of type int within int32"),
        (lambda c: positive(c, "width"), dict(width=None), "width = None is not of type int within int32"),
        (lambda c: not_negative(c, "rate"), dict(rate=-0.1), "rate = -0.1 must be 0 or more"),
        (lambda c: probability(c, "rate"), dict(rate=1.0), "rate = 1.0 must be in [0, 1)"),
        (lambda c: divides(c, "heads", "width"), dict(heads=4), "heads = 4 must be a divisor of width=6"),
        (lambda c: at_least(c, "width", 7, "the 7 tokens"), {}, "width = 6 must be at least the 7 tokens"),
        (check_types, dict(rate="x"), "rate = 'x' is not of type float within float32"),
    ],
)
def test_a_refusal_names_family_field_value_and_rule(
    check: Callable[[Toy], None], fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as refused:
        check(Toy(**fields))
    assert str(refused.value) == f"test_checks: {says}"


def test_none_passes_where_its_type_allows_it() -> None:
    toy = Toy(heads=None)
    positive(toy, "heads")
    divides(toy, "heads", "width")
    check_types(toy)
