"""A look inside an update: its trace and its program."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import launch
from errors import UsageError
from train.record import profile

pytestmark = pytest.mark.usefixtures("no_plots")


def test_a_profile_and_the_programs_are_written(tmp_path: Path) -> None:
    settings = ["--config.train.steps=5", "--config.log.profile=1:3", "--config.log.hlo=true"]
    assert launch.main(["train", f"--workdir={tmp_path}/w", "--config=configs/mlp.py:digits", *settings]) == 0
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))
    assert "stablehlo" in (tmp_path / "w" / "hlo" / "update.stablehlo.txt").read_text()
    assert "HloModule" in (tmp_path / "w" / "hlo" / "update.hlo.txt").read_text()


@pytest.mark.parametrize(("start", "window", "traced"), [(0, (1, 3), [1, 2]), (2, (1, 4), [2, 3]), (0, (3, 9), [3, 4])])
def test_the_updates_of_the_window_are_traced(start: int, window, traced: list[int], monkeypatch) -> None:
    on, seen = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", on.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", on.pop)

    def update(state: int, batch: None) -> tuple[int, dict[str, jax.Array]]:
        seen.extend([state] if on else [])
        return state + 1, {}

    with profile.profile_steps(update, start, window, "folder") as run:
        state = start
        while state < 5:
            state, _ = run(state, None)
    assert seen == traced
    assert not on


@pytest.mark.parametrize("text", ["10", "5:5", "a:b", "3:1"])
def test_bad_windows_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FIRST:LAST"):
        profile.parse_window(text, 100)


@pytest.mark.slow
def test_a_trace_ends_with_the_run(tmp_path: Path, capsys) -> None:
    """A window beyond the end is refused, one that a resume has passed is reported, one that it is in is traced on."""
    run = ["train", f"--workdir={tmp_path}/w", "--config=configs/mlp.py:digits", "--config.log.table=false"]
    assert launch.main([*run, "--config.train.steps=4", "--config.log.profile=2:9"]) == 2
    assert "must end at update 4" in capsys.readouterr().err
    assert launch.main([*run, "--config.train.steps=2"]) == 0
    longer = ["--config.train.steps=4", "--config.resume=extend"]
    assert launch.main([*run, *longer, "--config.log.profile=0:2"]) == 0
    assert "no profile: updates 0:2 are already done" in capsys.readouterr().out
    assert not (tmp_path / "w" / "profile").exists()
    longer[0] = "--config.train.steps=6"
    assert launch.main([*run, *longer, "--config.log.profile=0:6"]) == 0
    assert len(list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))) == 1


def test_a_trace_is_kept_when_the_run_breaks_off(tmp_path: Path) -> None:
    def breaks(state: jax.Array, batch: None) -> tuple[jax.Array, dict[str, jax.Array]]:
        raise RuntimeError("broken off")

    tracing = profile.profile_steps(breaks, 0, (0, 9), str(tmp_path))
    with pytest.raises(RuntimeError, match="broken off"), tracing as update:
        update(jnp.zeros(2), None)
    assert list(tmp_path.rglob("*.xplane.pb"))
