"""What the checkpoints of a run survive, and by what they are known."""

from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from errors import UsageError
from tests.runs import config_of, host, train
from train import checkpoint, mesh, restored, setup
from train.record import metrics


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
def test_a_damaged_newest_checkpoint_is_named_and_passed_over(trained: Path, capsys) -> None:
    for file in array_files(trained, 30):
        flip(file, file.stat().st_size // 2)
    assert launch.main(["eval", f"--workdir={trained}"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint 30 " in out
    assert "damaged" in out
    assert "checkpoint 20 of" in out
    assert launch.main(["eval", f"--workdir={trained}@30"]) == 1
    straight = checkpoint.load_manifest(str(trained), 30)["state"]
    assert train(trained) == 0
    assert "resuming" in capsys.readouterr().out
    assert checkpoint.load_manifest(str(trained), 30)["state"] == straight
    assert (trained / "damaged" / "30").is_dir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops futures when it fails
def test_no_flipped_bit_is_ever_restored(trained: Path) -> None:
    cfg = config_of(trained, 30)
    whole = checkpoint.load_manifest(str(trained), 30)["state"]
    setup_host = host()
    source = setup.load_source(cfg, setup_host, "digits", "test")
    made = setup.set_up(cfg, setup_host, source, None)
    draw = np.random.default_rng(0)
    caught = 0
    for _ in range(48):  # many of them in files that hold no array
        files = array_files(trained, 30)
        file = files[draw.integers(len(files))]
        saved = file.read_bytes()
        flip(file, int(draw.integers(len(saved))))
        try:
            got = checkpoint.digests(restored.restore_state(made, str(trained), 30))
            assert all(whole[name]["digest"] == code for name, code in got.items())
        except checkpoint.Damaged:
            caught += 1
        file.write_bytes(saved)
    assert caught > 0


def test_a_checkpoint_without_manifest_is_damaged(trained: Path, capsys) -> None:
    """It is named and passed over by eval, counts for nothing in @best, and is out of the way when training goes on."""
    (trained / "checkpoints" / "30" / "manifest.json").unlink()
    assert launch.main(["eval", f"--workdir={trained}"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint 30 of" in out
    assert "passing over it" in out
    assert "checkpoint 20 of" in out
    assert checkpoint.select(str(trained), "best")[0] in (10, 20)
    assert launch.main(["eval", f"--workdir={trained}@all"]) == 1
    assert "checkpoint 20 of" in capsys.readouterr().out
    assert train(trained) == 0
    assert checkpoint.load_manifest(str(trained), 30)["step"] == 30
    assert [p.name for p in (trained / "damaged").iterdir()] == ["30"]


def test_a_run_is_known_by_its_checkpoints(trained: Path, capsys) -> None:
    """Without config.json another run is refused all the same; extending once does not extend ever after."""
    (trained / "config.json").unlink()
    assert train(trained, "--config.seed=7") == 2
    assert "seed: 0 -> 7" in capsys.readouterr().err
    assert train(trained, "--config.train.steps=32", "--config.resume=extend") == 0
    assert train(trained, "--config.train.steps=34") == 2
    history = checkpoint.load_manifest(str(trained), 32)["history"]
    assert history == [{"from_step": 30, "changes": ["train.steps: 30 -> 32"]}]
    assert any("train.steps: 30 -> 32" in line.get("note", "") for line in metrics.read(str(trained)))


def test_restore_is_strict_about_dtype_shape_and_names(finished: Path) -> None:
    cfg = config_of(finished, 30)
    one = mesh.place_on(mesh.make_mesh("dp:1", jax.devices()[:1]), {}).whole
    manifest = checkpoint.load_manifest(str(finished), 30)["state"]

    def target(**changes):
        leaves = {"kernel": ((128, 16), "float32"), "bias": ((16,), "float32")} | changes
        head = {k: jax.ShapeDtypeStruct(s, d, sharding=one) for k, (s, d) in leaves.items()}
        hidden = {
            k: jax.ShapeDtypeStruct(manifest[f"params/hidden/0/{k}"]["shape"], "float32", sharding=one)
            for k in ("kernel", "bias")
        }
        return {"params": {"head": head, "hidden": {"0": hidden}}}

    assert checkpoint.restore(str(finished), 30, target())["params"]["head"]["bias"].shape == (16,)
    for changes, message in (
        ({"kernel": ((128, 16), "bfloat16")}, "bfloat16"),
        ({"kernel": ((64, 16), "float32")}, "64, 16"),
        ({"scale": ((16,), "float32")}, "head/scale is not in it"),
    ):
        with pytest.raises(UsageError, match=message):
            checkpoint.restore(str(finished), 30, target(**changes))
    missing = target()
    del missing["params"]["head"]["bias"]
    with pytest.raises(UsageError, match="head/bias"):
        checkpoint.restore(str(finished), 30, missing)
    assert cfg.model.family == "mlp"


def test_best_is_the_checkpoint_of_least_held_out_loss(finished: Path) -> None:
    losses = {n: checkpoint.load_manifest(str(finished), n)["metrics"]["loss"] for n in (10, 20, 30)}
    assert checkpoint.select(str(finished), "best") == [min(losses, key=losses.__getitem__)]
    with pytest.raises(UsageError, match="10, 20, 30"):
        checkpoint.select(str(finished), "11")


def test_retention_keeps_newest_and_best(tmp_path: Path) -> None:
    store = checkpoint.Store(str(tmp_path), keep=2, keep_best=1)
    for n, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 4.0)):
        scores = None if loss is None else {"loss": loss}
        store.save({"step": jax.numpy.int32(n)}, {"step": n, "metrics": scores}, None)
    store.close()
    assert checkpoint.steps(str(tmp_path)) == [2, 4, 5]


def test_a_second_run_in_the_same_workdir_is_refused(trained: Path) -> None:
    with checkpoint.lock(str(trained)), pytest.raises(UsageError, match="another run"), checkpoint.lock(str(trained)):
        pass
