"""Compiled programs that outlive their process: found again, bounded, and never believed when damaged."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from cli.runtime import enable_cache
from tests.support import ROOT
from tests.support.harness import Trainer, clear_programs
from train import compilation_cache
from train.record import metrics


@pytest.fixture(autouse=True)
def suites_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The suite's folder is put back. Programs of one device are kept here, in spite of the suite's eight."""
    monkeypatch.setattr(compilation_cache, "is_safe", lambda: True)
    before = jax.config.jax_compilation_cache_dir
    yield
    enable_cache(before)


def compiled(folder: Path, n: int) -> np.ndarray:
    """What a program of its own makes of an array, compiled by a process that keeps its programs in a folder."""
    assert enable_cache(str(folder)) is None
    return np.asarray(jax.jit(lambda x: jnp.sin(x) * n)(np.arange(8.0)))


def damages(whole: bytes) -> dict[str, bytes]:
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    return {"empty": b"", "cut": whole[:-7], "flipped": flipped, "other": b"no program"}


@pytest.mark.parametrize("damage", damages(b"12"))
def test_a_damaged_program_is_compiled_anew(damage: str, tmp_path: Path) -> None:
    """Without a warning, which the suite would raise, and the file is whole afterwards."""
    want = compiled(tmp_path, 3)
    (file,) = tmp_path.glob("jit__lambda*.program")
    whole = file.read_bytes()
    file.write_bytes(damages(whole)[damage])
    np.testing.assert_array_equal(compiled(tmp_path, 3), want)
    assert compilation_cache.ProgramCache(str(tmp_path)).get(file.stem) is not None
    assert not list(tmp_path.glob("*.part"))


def test_a_program_is_found_again(tmp_path: Path) -> None:
    compiled(tmp_path, 3)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    compiled(tmp_path, 3)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert compilation_cache.contents(str(tmp_path)).programs == len(before)


def test_programs_of_several_cpu_devices_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert jax.device_count() > 1
    compiled(tmp_path, 5)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    compiled(tmp_path, 6)
    assert list(tmp_path.iterdir())


def test_losses_are_those_without(tmp_path: Path) -> None:
    """Bit for bit, of programs that are compiled and of those that are read."""
    found = []
    for folder in (None, str(tmp_path), str(tmp_path)):
        enable_cache(folder)
        clear_programs()
        found.append(Trainer("mlp").steps(3))
    assert found[0] == found[1] == found[2]
    assert list(tmp_path.glob("jit_step*.program"))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    kept = compilation_cache.ProgramCache(str(tmp_path))
    for i, key in enumerate("abcd"):
        kept.put(key, bytes(100))
        os.utime(tmp_path / f"{key}.program", (i, i))
    kept.get("a")
    assert compilation_cache.contents(str(tmp_path), limit=2 * (100 + compilation_cache.DIGEST_SIZE)) == (
        2,
        2 * (100 + compilation_cache.DIGEST_SIZE),
    )
    assert [kept.get(key) is not None for key in "abcd"] == [True, False, False, True]


def test_a_folder_that_vanishes_or_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    folder, file = tmp_path / "gone", tmp_path / "file"
    want = compiled(folder, 5)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: jnp.sin(x) * 5)(np.arange(8.0))), want)
    file.write_text("no folder")
    note = enable_cache(str(file / "cache"))
    assert note is not None
    assert f"{file}/cache" in note
    assert "--cache=DIR" in note
    assert jax.config.jax_compilation_cache_dir is None


def test_a_jax_with_another_cache_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.delattr(compilation_cache.JAX_CACHE, "get_file_cache")
        assert compilation_cache.jax_cache_module() is None
    assert compilation_cache.jax_cache_module() is compilation_cache.JAX_CACHE
    monkeypatch.setattr(compilation_cache, "JAX_CACHE", None)
    note = enable_cache(str(tmp_path))
    assert note is not None
    assert note.startswith(f"compiled programs are not cached: jax {jax.__version__} ")
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.undo()
    enable_cache(None)


def test_which_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag, jax's own variable, the user's cache folder; a relative XDG_CACHE_HOME counts for nothing."""
    monkeypatch.setenv("HOME", "/home/me")
    default = f"canon/jax-{jax.__version__}"
    assert compilation_cache.cache_dir(None, {}) == f"/home/me/.cache/{default}"
    assert compilation_cache.cache_dir(None, {"XDG_CACHE_HOME": "/c"}) == f"/c/{default}"
    assert compilation_cache.cache_dir(None, {"XDG_CACHE_HOME": "c"}) == f"/home/me/.cache/{default}"
    assert compilation_cache.cache_dir(None, {"JAX_COMPILATION_CACHE_DIR": "/j"}) == "/j"
    assert compilation_cache.cache_dir("~/x", {"JAX_COMPILATION_CACHE_DIR": "/j"}) == "/home/me/x"
    assert compilation_cache.cache_dir("none", {"JAX_COMPILATION_CACHE_DIR": "/j"}) is None


def test_the_doctor_says_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compilation_cache.ProgramCache(str(tmp_path)).put("a", bytes(2**20))
    launch.main(["doctor", f"--cache={tmp_path}"])
    assert f"compiled program(s), 1.0 MiB, in {tmp_path}" in capsys.readouterr().out
    launch.main(["doctor", "--cache=none"])
    assert "compiled programs are not cached" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_that_share_a_folder(tmp_path: Path) -> None:
    """Two at once, one after them and one without learn the same, and say nothing of the folder."""

    def begin(name: str, folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "launch.py", "train", "--config=configs/mlp.py:digits", "--config.train.steps=20"]
        command += [f"--workdir={tmp_path / name}", f"--cache={folder}"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    kept = str(tmp_path / "kept")
    for names in (("a", "b"), ("c",), ("none",)):
        for run in [begin(name, "none" if name == "none" else kept) for name in names]:
            _, err = run.communicate(timeout=300)
            assert (run.returncode, err) == (0, "")
    assert compilation_cache.contents(kept).programs
    losses = [
        [line["metrics"]["loss"] for line in metrics.read(str(tmp_path / name)) if line["kind"] != "event"]
        for name in ("a", "b", "c", "none")
    ]
    assert losses[0] == losses[1] == losses[2] == losses[3]
