"""Whatever ends a run, what was learnt is saved first."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest

from configs import reader
from data import sampler
from train import checkpoint, loop, run
from train.evaluate import evaluate
from train.record import metrics, profile
from train.runtime import Runtime

pytestmark = pytest.mark.usefixtures("no_plots")


def go(workdir: Path, signal: str | None = None, **knobs: Any) -> str:
    """Twelve updates with a checkpoint every five -> what was printed; raises what ends the run."""
    given = {"train.steps": "12", "train.batch": "8", "checkpoint.every": "5", "eval.every": "6", "log.table": "false"}
    cfg = reader.override(reader.read("configs/mlp.py:xor"), list((given | knobs).items()))
    text = io.StringIO()
    try:
        run.train(cfg, str(workdir), Runtime(lambda: 0.0, os.environ, text, lambda: signal))
    except BaseException as error:
        error.args = (*error.args, text.getvalue())
        raise
    return text.getvalue()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run saves last where nothing ends it before."""
    workdir = tmp_path_factory.mktemp("straight")
    go(workdir)
    return checkpoint.load_manifest(str(workdir), 12)["state"]


def raising(error: BaseException, when: Any, then: Any) -> Any:
    """A function that raises where `when` says so of its arguments."""

    def call(*args: Any, **more: Any) -> Any:
        if when(*args):
            raise error
        return then(*args, **more)

    return call


READS = (sampler.BatchSampler, "batch", lambda self, n, *rows: n == 8)
MEASURES = (evaluate, "format_scores", lambda scores: True)
WRITES = (metrics.Recorder, "write", lambda self, kind, n, *more: n == 8)


@pytest.mark.parametrize(
    ("where", "error", "saved"),
    [
        (READS, ValueError("b.png cannot be read"), 8),
        pytest.param(READS, MemoryError(), 8, marks=pytest.mark.slow),
        pytest.param(READS, KeyboardInterrupt(), 8, marks=pytest.mark.slow),
        (MEASURES, ZeroDivisionError(), 6),
        (WRITES, OSError(28, "No space left on device"), 9),
    ],
)
def test_what_was_learnt_is_saved_before_an_error_ends_the_run(
    where: tuple, error: BaseException, saved: int, straight: dict[str, Any], tmp_path: Path, monkeypatch
) -> None:
    """Under its own number, and the run goes on from there as if nothing had been."""
    owner, name, when = where
    with monkeypatch.context() as spoilt:
        spoilt.setattr(owner, name, raising(error, when, getattr(owner, name)))
        with pytest.raises(type(error)) as ended:
            go(tmp_path / "a", **{"log.every": "1"})
    assert f"saved checkpoint {saved}, before the error" in ended.value.args[-1]
    assert checkpoint.steps(str(tmp_path / "a"))[-1] == saved
    assert f"from checkpoint {saved}" in go(tmp_path / "a")
    assert checkpoint.load_manifest(str(tmp_path / "a"), 12)["state"] == straight


def test_a_second_ctrl_c_saves_nothing(tmp_path: Path, monkeypatch) -> None:
    """The first, still pending, asked for a save; who asks again does not wait for one."""
    monkeypatch.setattr(loop, "is_due", raising(KeyboardInterrupt(), lambda n, *more: n == 1, loop.is_due))
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "w", signal="SIGINT")
    assert not checkpoint.steps(str(tmp_path / "w"))


def test_storage_that_failed_is_not_asked_again(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def full(*args: Any) -> None:
        asked.append(args)
        raise checkpoint.SaveError("full")

    monkeypatch.setattr(checkpoint.Store, "save", full)
    with pytest.raises(checkpoint.SaveError):
        go(tmp_path / "w")
    assert len(asked) == 1


def test_updates_that_taught_nothing_are_not_saved(tmp_path: Path) -> None:
    """A run that diverges would only go on from there."""
    with pytest.raises(RuntimeError, match="not finite"):
        go(tmp_path / "w", **{"optim.lr": "1e38", "optim.clip_norm": "None", "train.max_skipped": "2"})
    assert not checkpoint.steps(str(tmp_path / "w"))


def test_a_state_that_is_gone_is_not_saved(tmp_path: Path, monkeypatch) -> None:
    """An error in the middle of an update leaves none: it is raised, and that something is lost is said."""

    @contextmanager
    def broken(*args: Any) -> Iterator[Any]:
        def update(state: Any, batch: Any) -> Any:
            jax.tree.map(lambda x: x.delete(), state)
            raise RuntimeError("the device is lost")

        yield update

    monkeypatch.setattr(profile, "profile_steps", broken)
    with pytest.raises(RuntimeError, match="the device is lost") as ended:
        go(tmp_path / "w")
    assert "the newest updates are not saved: Array has been deleted" in ended.value.args[-1]
