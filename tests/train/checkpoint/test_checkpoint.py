"""What the checkpoints of a run survive, and by what they are known."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import launch
from errors import UsageError
from tests.support.runs import config_of, manifest, runtime, train
from train import checkpoint
from train.checkpoint import folder
from train.checkpoint import manifest as manifests
from train.record import metrics
from train.setup import setup
from train.sharding import mesh
from train.verbs import load_model

pytestmark = pytest.mark.usefixtures("no_plots")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(bytes(data))


def array_files(workdir: Path, step: int) -> list[Path]:
    found = [
        p for p in (workdir / "checkpoints" / str(step) / "state").rglob("*") if p.is_file() and p.parent.name == "d"
    ]
    assert found
    return sorted(found, key=lambda p: -p.stat().st_size)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops futures when it fails
def test_a_damaged_newest_checkpoint_is_named_and_passed_over(finished_run_copy: Path, capsys) -> None:
    for file in array_files(finished_run_copy, 30):
        flip(file, file.stat().st_size // 2)
    assert launch.main(["eval", f"--workdir={finished_run_copy}"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint 30 " in out
    assert "damaged" in out
    assert "checkpoint 20 of" in out
    assert launch.main(["eval", f"--workdir={finished_run_copy}@30"]) == 1
    assert "checkpoint 30 of" in capsys.readouterr().err
    assert launch.main(["eval", f"--workdir={finished_run_copy}@all"]) == 1
    assert capsys.readouterr().out.count(", test: loss") == 2
    straight = checkpoint.load_manifest(str(finished_run_copy), 30)["state"]
    assert train(finished_run_copy) == 0
    assert "resuming" in capsys.readouterr().out
    assert checkpoint.load_manifest(str(finished_run_copy), 30)["state"] == straight
    assert (finished_run_copy / "damaged" / "30").is_dir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops futures when it fails
def test_no_flipped_bit_is_ever_restored(finished_run_copy: Path) -> None:
    cfg = config_of(finished_run_copy, 30)
    whole = checkpoint.load_manifest(str(finished_run_copy), 30)["state"]
    setup_host = runtime()
    source = setup.load_source(cfg, setup_host, "digits", "test")
    made = setup.set_up(cfg, setup_host, source, None)
    draw = np.random.default_rng(0)
    caught = 0
    for _ in range(48):  # many of them in files that hold no array
        files = array_files(finished_run_copy, 30)
        file = files[draw.integers(len(files))]
        saved = file.read_bytes()
        flip(file, int(draw.integers(len(saved))))
        try:
            got = checkpoint.digests(load_model.restore_state(made, str(finished_run_copy), 30))
            assert all(whole[name]["digest"] == code for name, code in got.items())
        except checkpoint.CorruptCheckpoint:
            caught += 1
        file.write_bytes(saved)
    assert caught > 0


def test_a_checkpoint_without_manifest_is_damaged(finished_run_copy: Path, capsys) -> None:
    """It is named and passed over by eval, counts for nothing in @best, and is out of the way when training goes on."""
    (finished_run_copy / "checkpoints" / "30" / "manifest.json").unlink()
    assert launch.main(["eval", f"--workdir={finished_run_copy}"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint 30 of" in out
    assert "skipping it" in out
    assert "checkpoint 20 of" in out
    assert checkpoint.select(str(finished_run_copy), "best")[0] in (10, 20)
    assert launch.main(["eval", f"--workdir={finished_run_copy}@all"]) == 1
    assert "checkpoint 20 of" in capsys.readouterr().out
    assert train(finished_run_copy) == 0
    assert checkpoint.load_manifest(str(finished_run_copy), 30)["step"] == 30
    assert [p.name for p in (finished_run_copy / "damaged").iterdir()] == ["30"]


def test_a_run_is_known_by_its_checkpoints(finished_run_copy: Path, capsys) -> None:
    """Without config.json another run is refused all the same; extending once does not extend ever after."""
    (finished_run_copy / "config.json").unlink()
    assert train(finished_run_copy, "--config.seed=7") == 2
    assert "seed: 0 -> 7" in capsys.readouterr().err
    assert train(finished_run_copy, "--config.train.steps=32", "--config.resume=extend") == 0
    assert train(finished_run_copy, "--config.train.steps=34") == 2
    history = checkpoint.load_manifest(str(finished_run_copy), 32)["history"]
    assert history == [{"from_step": 30, "changes": ["train.steps: 30 -> 32"]}]
    assert any("train.steps: 30 -> 32" in line.get("note", "") for line in metrics.read(str(finished_run_copy)))


def test_restore_is_strict_about_dtype_shape_and_names(finished_run: Path) -> None:
    cfg = config_of(finished_run, 30)
    one = mesh.make_placement(mesh.make_mesh("dp:1", jax.devices()[:1]), {}).replicated
    manifest = checkpoint.load_manifest(str(finished_run), 30)["state"]

    def target(**changes):
        leaves = {"kernel": ((128, 16), "float32"), "bias": ((16,), "float32")} | changes
        head = {k: jax.ShapeDtypeStruct(s, d, sharding=one) for k, (s, d) in leaves.items()}
        hidden = {
            k: jax.ShapeDtypeStruct(manifest[f"params/hidden/0/{k}"]["shape"], "float32", sharding=one)
            for k in ("kernel", "bias")
        }
        return {"params": {"head": head, "hidden": {"0": hidden}}}

    assert checkpoint.restore(str(finished_run), 30, target())["params"]["head"]["bias"].shape == (16,)
    for changes, message in (
        ({"kernel": ((128, 16), "bfloat16")}, "bfloat16"),
        ({"kernel": ((64, 16), "float32")}, "64, 16"),
        ({"scale": ((16,), "float32")}, "head/scale is missing"),
    ):
        with pytest.raises(UsageError, match=message):
            checkpoint.restore(str(finished_run), 30, target(**changes))
    missing = target()
    del missing["params"]["head"]["bias"]
    with pytest.raises(UsageError, match="head/bias"):
        checkpoint.restore(str(finished_run), 30, missing)
    assert cfg.model.family == "mlp"


def test_best_is_the_checkpoint_of_least_held_out_loss(finished_run: Path) -> None:
    losses = {n: checkpoint.load_manifest(str(finished_run), n)["metrics"]["loss"] for n in (10, 20, 30)}
    assert checkpoint.select(str(finished_run), "best") == sorted(losses, key=losses.__getitem__)
    with pytest.raises(UsageError, match="10, 20, 30"):
        checkpoint.select(str(finished_run), "11")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops futures when it fails
def test_where_the_best_is_damaged_it_is_the_best_of_the_others(finished_run_copy: Path, capsys) -> None:
    first, second, _ = checkpoint.select(str(finished_run_copy), "best")
    for file in array_files(finished_run_copy, first):
        flip(file, file.stat().st_size // 2)
    assert launch.main(["eval", f"--workdir={finished_run_copy}@best", "--config.eval.limit=1"]) == 0
    out = capsys.readouterr().out
    assert f"checkpoint {first} of {finished_run_copy} is damaged" in out
    assert f"checkpoint {second} of {finished_run_copy} on digits" in out


def test_retention_keeps_newest_and_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Orbax has nothing to warn of when it saves."""
    store = checkpoint.Store(str(tmp_path), keep=2, keep_best=1)
    for n, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 4.0)):
        scores = None if loss is None else {"loss": loss}
        store.save({"step": jax.numpy.int32(n)}, manifest(n, metrics=scores), None)
    store.close()
    assert checkpoint.steps(str(tmp_path)) == [2, 4, 5]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_second_run_in_the_same_workdir_is_refused(finished_run_copy: Path) -> None:
    with (
        checkpoint.lock(str(finished_run_copy)),
        pytest.raises(UsageError, match="another run"),
        checkpoint.lock(str(finished_run_copy)),
    ):
        pass


# The manifest


def edit(workdir: Path, step: int, change: Callable[[dict], Any], seal: bool = False) -> None:
    """Change a manifest on disk; its digest stays as it was, or is made anew."""
    path = workdir / "checkpoints" / str(step) / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(manifests.dump_manifest(content) if seal else json.dumps(content))


def assign(*path: Any) -> Callable[[dict], None]:
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


ANY_VALUE = {
    "rate": assign("config", "optim", "lr", 0.9),
    "seed": assign("config", "seed", 3),
    "data": assign("config", "data", "name", "xor"),
    "split": assign("config", "eval", "split", "train"),
    "loss": assign("metrics", "loss", 1e-4),
    "checksum": assign("data", 0, "name", "mnist"),
    "schema": assign("schema", 3),
    "legacy": assign("schema", 1),
    "step": assign("step", 20),
    "shape": assign("state", "params/head/bias", "shape", [17]),
    "a leaf": assign("state", "params/head/bias", 3),
    "no dtype": lambda content: content["state"]["params/head/bias"].pop("dtype"),
    "no state": assign("state", {}),
    "state": assign("state", None),
    "phases": assign("phases", []),
    "history": assign("history", 7),
    "config": assign("config", None),
    "no digest": lambda content: content.pop("digest"),
    "a key more": assign("more", 1),
}


@pytest.mark.parametrize("change", ANY_VALUE.values(), ids=ANY_VALUE)
def test_a_changed_manifest_is_damaged(change: Callable[[dict], Any], finished_run_copy: Path) -> None:
    """Whatever is changed in it; the older ones say what the run is, and which was best."""
    best = checkpoint.select(str(finished_run_copy), "best")
    edit(finished_run_copy, 30, change)
    with pytest.raises(checkpoint.CorruptCheckpoint, match=r"checkpoint 30 of .* is damaged: .*manifest"):
        checkpoint.load_manifest(str(finished_run_copy), 30)
    assert list(checkpoint.readable_manifests(str(finished_run_copy))) == [20, 10]
    assert checkpoint.select(str(finished_run_copy), "best")[0] in {*best, 20, 10} - {30}


STRUCTURE = {k: v for k, v in ANY_VALUE.items() if k in ("step", "a leaf", "no dtype", "no state", "state", "phases")}
STRUCTURE |= {
    "no table": lambda content: content.pop("table"),
    "config": assign("config", 3),
    "loss": assign("metrics", "loss", "0.1"),
    "dtype": assign("state", "params/head/bias", "dtype", "float31"),
    "size": assign("state", "params/head/bias", "shape", [-1]),
    "digest": assign("state", "params/head/bias", "digest", "zz"),
    "weights": assign("phases", 0, "weights", None),
}


@pytest.mark.parametrize("change", STRUCTURE.values(), ids=STRUCTURE)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_manifest_has_its_structure(legacy: bool, change: Callable[[dict], Any], finished_run_copy: Path) -> None:
    """That of a schema without a digest is held to it as well."""
    edit(finished_run_copy, 30, change, seal=True)
    if legacy:
        edit(finished_run_copy, 30, lambda content: content.update(schema=1) or content.pop("digest"))
    with pytest.raises(checkpoint.CorruptCheckpoint, match="in its manifest"):
        checkpoint.load_manifest(str(finished_run_copy), 30)


@pytest.mark.parametrize("text", ["", "null", "[]", "3", "{", '{"schema": 2}', "[" * 100_000, "\udcff"])
def test_a_manifest_that_is_none_is_damaged(text: str, finished_run_copy: Path) -> None:
    (finished_run_copy / "checkpoints" / "30" / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(checkpoint.CorruptCheckpoint, match=r"manifest\.json"):
        checkpoint.load_manifest(str(finished_run_copy), 30)


def test_a_pipe_is_not_waited_for(finished_run_copy: Path) -> None:
    """In the place of a manifest, of a run's metrics, of its lock."""
    for name in ("checkpoints/30/manifest.json", "metrics.jsonl", "lock"):
        (finished_run_copy / name).unlink()
        os.mkfifo(finished_run_copy / name)
    with pytest.raises(checkpoint.CorruptCheckpoint, match="a pipe"):
        checkpoint.load_manifest(str(finished_run_copy), 30)
    with pytest.raises(UsageError, match="a pipe"):
        metrics.read(str(finished_run_copy))
    with pytest.raises(UsageError, match="a pipe"):
        checkpoint.prepare(str(finished_run_copy))


@pytest.mark.slow
def test_a_changed_manifest_is_passed_over_by_every_verb(finished_run_copy: Path, tmp_path: Path, capsys) -> None:
    """Another rate in the newest is not gone on with, nor is another seed refused as another run."""
    edit(finished_run_copy, 30, assign("config", "optim", "lr", 0.9))
    assert launch.main(["eval", f"--workdir={finished_run_copy}"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint 30 of" in out
    assert "differs from its digest; skipping it" in out
    assert "checkpoint 20 of" in out
    assert launch.main(["train", f"--workdir={finished_run_copy}"]) == 0
    assert "from checkpoint 20" in capsys.readouterr().out
    assert checkpoint.load_manifest(str(finished_run_copy), 30)["config"]["optim"]["lr"] != 0.9
    edit(finished_run_copy, 30, assign("config", "seed", 3))
    assert launch.main(["eval", f"--workdir={finished_run_copy}@best"]) == 0
    assert "differs from its digest; skipping it" in capsys.readouterr().out
    more = ["--config.eval.every=None", "--config.checkpoint.every=None"]  # and the updates that are compiled already
    assert train(tmp_path / "b", *more, f"--config.init_from={finished_run_copy}") == 0
    assert f"loaded from {finished_run_copy}@20" in capsys.readouterr().out


def test_a_newer_schema_is_refused_by_name(finished_run_copy: Path) -> None:
    """Where its digest is right: it is no damage."""
    path = finished_run_copy / "checkpoints" / "30" / "manifest.json"
    content = {**json.loads(path.read_text()), "schema": 3}
    path.write_text(json.dumps({**content, "digest": manifests.manifest_digest(content)}))
    with pytest.raises(UsageError, match="has schema 3; this version reads 2 and 1"):
        checkpoint.load_manifest(str(finished_run_copy), 30)


def test_a_manifest_of_the_schema_without_digest_is_read(finished_run_copy: Path) -> None:
    """And gets its digest when it is written the next time."""
    before = checkpoint.load_manifest(str(finished_run_copy), 30)
    edit(
        finished_run_copy,
        30,
        lambda content: content.update(schema=1) or [content.pop(k) for k in ("digest", "classes")],
    )
    old = checkpoint.load_manifest(str(finished_run_copy), 30)
    assert {k: v for k, v in old.items() if k != "schema"} == {
        k: v for k, v in before.items() if k not in ("schema", "digest")
    }
    checkpoint.add_metrics(str(finished_run_copy), 30, {"loss": 0.5})
    new = checkpoint.load_manifest(str(finished_run_copy), 30)
    assert (new["schema"], new["metrics"]) == (2, {"loss": 0.5})


# The folder


def test_only_canonical_names_of_folders_are_checkpoints(finished_run_copy: Path) -> None:
    """Others are passed over by every verb, and are in no save's way."""
    home = finished_run_copy / "checkpoints"
    for name in ("²", "00006", "00099", "٣", "+5", "30 ", "1e3"):
        (home / name).mkdir()
    for name in ("³", "0007", "31"):
        (home / name).write_text("")
    assert checkpoint.steps(str(finished_run_copy)) == [10, 20, 30]
    assert checkpoint.select(str(finished_run_copy), "latest") == [30, 20, 10]
    with pytest.raises(UsageError, match="it has 10, 20, 30"):
        checkpoint.select(str(finished_run_copy), "00006")
    store = checkpoint.Store(str(finished_run_copy), keep=3, keep_best=0)
    store.save({"step": jax.numpy.int32(40)}, manifest(40), None)
    store.close()
    assert checkpoint.steps(str(finished_run_copy)) == [20, 30, 40]


@pytest.mark.parametrize("name", ["a[1]", "a]", "a[", "a\\b", "a*", "a?", "a\0b", "\udcff"])
def test_a_path_that_cannot_hold_checkpoints_is_refused(name: str, tmp_path: Path) -> None:
    """Orbax would find nothing again below it; nothing is made. A folder above counts as well."""
    for workdir in (f"{tmp_path}/{name}", f"{tmp_path}/{name}/w"):
        with pytest.raises(UsageError, match="cannot hold checkpoints"):
            checkpoint.prepare(workdir)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_found_again_is_not_committed(tmp_path: Path) -> None:
    """As below a path that Orbax takes for a pattern: the first save fails, and leaves no checkpoint."""
    workdir = tmp_path / "a[1]"
    store = checkpoint.Store(str(workdir), keep=1, keep_best=0)
    with pytest.raises(checkpoint.SaveError, match=r"checkpoint 1 could not be written to .*cannot be read back"):
        store.save({"step": jax.numpy.int32(1)}, manifest(1), None)
    assert checkpoint.steps(str(workdir)) == []


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path: Path, capsys, monkeypatch) -> None:
    """A file in its place, a file on the way there, storage that refuses."""
    home = tmp_path / "w" / "checkpoints"
    home.parent.mkdir()
    home.write_text("")
    for workdir, why in ((home.parent, "Not a directory"), (home, "File exists"), (home / "v", "Not a directory")):
        with pytest.raises(UsageError, match=f"cannot hold checkpoints: {why}: {home}"):
            checkpoint.prepare(str(workdir))

    def refuse(path: Any, content: bytes) -> None:
        raise OSError(30, os.strerror(30), str(path))

    monkeypatch.setattr(type(folder.checkpoint_dir("w")), "write_bytes", refuse)
    more = ["--config=configs/mlp.py:xor", "--config.train.steps=1", "--config.train.batch=8"]
    assert launch.main(["train", f"--workdir={tmp_path}/v", *more]) == 2
    err = capsys.readouterr().err
    assert f"cannot hold checkpoints: Read-only file system: {tmp_path}/v/trial-0" in err
    assert err.count("\n") == 1


def test_storage_that_fails_later_is_named_by_the_next_save(tmp_path: Path) -> None:
    """A folder that is gone; and a save that fails behind the run's back is seen by the next update."""
    store = checkpoint.Store(str(tmp_path), keep=2, keep_best=0)
    state = {"step": jax.numpy.int32(1)}
    store.save(state, manifest(1), None)
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    with pytest.raises(checkpoint.SaveError, match=r"checkpoint 2 could not be written to .*: No such file"):
        store.save(state, manifest(2), None)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device", "/w/x"), "No space left on device: /w/x"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing \"x\" in … [os_error_code='28']"), "No space left on device"),
        (RuntimeError("one\ntwo"), "one"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_reason_of_storage_in_a_line(error: Exception, says: str) -> None:
    assert folder.reason(error) == says
