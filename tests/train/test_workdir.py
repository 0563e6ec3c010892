"""The one spelling of a workdir."""

from pathlib import Path

import pytest

from errors import UsageError
from train.workdir import normalize_workdir


def test_a_workdir_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage and the operating system disagree about what lies above a link."""
    far = tmp_path / "far" / "real"
    far.mkdir(parents=True)
    (tmp_path / "link").symlink_to(far)
    for given, meant in (("link/../y@2", "far/y@2"), ("none/../y", "y"), ("y/./@best", "y/@best"), ("y//", "y")):
        assert normalize_workdir(f"{tmp_path}/{given}") == str(tmp_path / meant)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert normalize_workdir("~/y/") == str(tmp_path / "y")
    assert normalize_workdir("gs://bucket/y") == "gs://bucket/y"


@pytest.mark.parametrize(("name", "says"), [("", "is missing"), ("ftp://host/y", "or start with one of gs://")])
def test_a_name_that_is_no_workdir_is_refused(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        normalize_workdir(name)
