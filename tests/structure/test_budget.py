"""CPU seconds that test files may take: growth of one file is named, a slower machine is not."""

from tests.support.budget import above

SHARES = {"a.py": 100.0, "b.py": 60.0, "c.py": 20.0}


def test_a_file_above_its_share_is_named() -> None:
    (line,) = above({**SHARES, "b.py": 110.0}, SHARES)
    assert line.startswith("b.py: 110 CPU s, where 60 are")


def test_a_file_without_a_share_is_named() -> None:
    assert above({**SHARES, "new.py": 31.0}, SHARES)[0].startswith("new.py: 31 CPU s, where 0 are")
    assert not above({**SHARES, "new.py": 29.0}, SHARES)


def test_a_slower_machine_has_larger_shares() -> None:
    slow = {file: 2 * seconds for file, seconds in SHARES.items()}
    assert not above(slow, SHARES)
    assert above({**slow, "a.py": 300.0}, SHARES)[0].startswith("a.py")


def test_a_faster_machine_has_no_smaller_ones() -> None:
    assert not above({"a.py": 50.0, "b.py": 30.0, "c.py": 20.0}, SHARES)


def test_a_suite_that_was_never_measured_holds_nothing() -> None:
    assert not above(SHARES, {})
