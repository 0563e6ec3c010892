"""Lists of names with values in one text."""

import pytest

from errors import UsageError
from pairs import parse_pairs


def test_pairs_are_split_at_commas_and_the_first_colon() -> None:
    assert parse_pairs(" fsdp:4, tp : 2:3,flip", "mesh") == [("fsdp", "4"), ("tp", "2:3"), ("flip", "")]
    assert parse_pairs(None, "mesh") == parse_pairs("", "mesh") == []


@pytest.mark.parametrize("text", ["a:1,,b:2", "a:1,", ":1", "a:", " "])
def test_a_pair_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"config key 'mesh' must be AXIS:SIZE joined by commas, not {text!r}"):
        parse_pairs(text, "mesh", "AXIS:SIZE")
