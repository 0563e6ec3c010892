"""Nothing is drawn where a test does not look at pictures: they take most of a small evaluation's seconds.

For the tests of a file: `from tests.undrawn import drawn, undrawn  # noqa: F401`; what looks at pictures asks for
`drawn`. No law is lost: a picture that cannot be drawn fails no run and no evaluation.
"""

import pytest

from train.record import pictures, plots


@pytest.fixture
def drawn() -> None:
    """Pictures are drawn in this test."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(pictures, "draw", lambda *args: [])
        monkeypatch.setattr(plots, "curve", lambda *args: None)
