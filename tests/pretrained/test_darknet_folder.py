"""A folder with Darknet's two files: opened as one of the hub is, measured, carried over and written."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import launch
import models
from errors import UsageError
from models import pretrained
from models.core.spec import flatten
from models.pretrained import class_names
from models.pretrained.layouts import darknet
from tests.support.boxed_folders import coco, write_coco
from tests.support.cases import random_variables, tiny_model

pytestmark = pytest.mark.usefixtures("no_plots")

ANCHORS = ((4, 4), (6, 6), (8, 12), (12, 8), (16, 16), (24, 24))


def folder_of(path: Path, model: models.Model) -> Path:
    """A folder with a network's files, under names of their own."""
    path.mkdir()
    darknet.save(model, random_variables(model), path / "cells.cfg", path / "cells.weights")
    return path


def test_a_folder_is_read_and_written(tmp_path: Path) -> None:
    """By the calls for the hub's folders; what is there is not written over."""
    made = folder_of(tmp_path / "a", tiny_model("yolo"))
    assert pretrained.is_pretrained(made)
    model, variables = models.load_pretrained(made)
    assert model.config.layers == tiny_model("yolo").config.layers
    models.save_pretrained(model, variables, tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["yolo.cfg", "yolo.weights"]
    assert (tmp_path / "b" / "yolo.weights").read_bytes() == (made / "cells.weights").read_bytes()
    for ending in ("cfg", "weights"):
        (tmp_path / "b" / f"yolo.{ending}").rename(tmp_path / "b" / f"yolo.{ending.upper()}")
    again, found = models.load_pretrained(tmp_path / "b", momentum=0.5)
    assert again.config.momentum == 0.5
    for path, leaf in flatten(found).items():
        np.testing.assert_array_equal(leaf, flatten(variables)[path])
    with pytest.raises(UsageError, match=r"has yolo\.CFG already"):
        models.save_pretrained(model, variables, tmp_path / "b")
    with pytest.raises(UsageError, match=r"written without a config.json: no place for \['eos_token_id'\]"):
        models.save_pretrained(model, variables, tmp_path / "c", eos_token_id=2)
    assert not (tmp_path / "c").exists()


def test_a_folder_amiss_is_refused(tmp_path: Path) -> None:
    """Several descriptions, no numbers, and keys to pass over where there are none."""
    made = folder_of(tmp_path / "a", tiny_model("yolo"))
    with pytest.raises(UsageError, match=r"'novelty' names a key of config\.json, but .*a has cells\.cfg"):
        models.load_pretrained(made, ignore=["novelty"])
    shutil.copy(made / "cells.cfg", made / "other.cfg")
    with pytest.raises(UsageError, match=r"must have one \.cfg file of Darknet's, not 2: cells\.cfg, other\.cfg"):
        models.load_pretrained(made)
    (made / "other.cfg").unlink()
    (made / "cells.weights").unlink()
    with pytest.raises(UsageError, match=r"must have one \.weights file of Darknet's, not 0"):
        models.load_pretrained(made)


def test_names_of_classes_are_read(tmp_path: Path) -> None:
    """Of the .names file beside the .cfg; of several, of that in a .data file, or that is called as the .cfg."""
    made = folder_of(tmp_path / "a", tiny_model("yolo"))
    assert class_names.read(made) is None
    (made / "coco.names").write_bytes("\ufeffcat\r\nbig dog\r\nbird\r\n\r\n".encode())
    for hidden in ("._coco.names", "._cells.cfg", "._cells.safetensors"):
        (made / hidden).write_bytes(b"\0\5\x16\7")
    assert class_names.read(made) == ("cat", "big dog", "bird")
    (made / "obj.names").write_text("bird\ncat\ndog\n")
    with pytest.raises(
        UsageError, match=r"a has coco\.names, obj\.names: keep one, or name one with `names = ` in a \.data"
    ):
        class_names.read(made)
    (made / "obj.data").write_text("classes= 3\ntrain = data/train.txt\nnames = data/obj.names\n")
    assert class_names.read(made) == ("bird", "cat", "dog")
    (made / "obj.data").unlink()
    (made / "cells.names").write_text("ant\nbee\nfly")
    assert class_names.read(made) == ("ant", "bee", "fly")
    for text in ("ant\nbee\n", "ant\n\nbee\n", ""):
        (made / "cells.names").write_text(text)
        with pytest.raises(
            UsageError, match=r"cells\.names must have 3 names, one per line, for the classes of cells\.cfg"
        ):
            class_names.read(made)
    (made / "cells.names").write_bytes("größe\nb\nc\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"cells\.names is not UTF-8 text"):
        class_names.read(made)
    model, variables = models.load_pretrained(made)
    models.save_pretrained(model, variables, tmp_path / "b", classes=["one", "the other", "猫"])
    assert class_names.read(tmp_path / "b") == ("one", "the other", "猫")


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder measures as its checkpoint does; the export has the same bytes; training starts from it."""
    write_coco(tmp_path / "set", coco(), split="val")
    write_coco(tmp_path / "set", coco(), split="train")
    size = dict(size="yolov3_tiny", classes=2, inputs=(32, 64, 3), anchors=ANCHORS)
    made = folder_of(tmp_path / "a", models.build("yolo", **size))

    def said(*args: str) -> str:
        assert launch.main([*args]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    data = f"--dataset={tmp_path}/set"
    first = said("eval", f"--pretrained={made}", data)
    assert "data.size = (32, 64)" in first
    (made / "obj.names").write_text("cat\nbird\n")  # the data have bird before cat
    assert launch.main(["eval", f"--pretrained={made}", data]) == 2
    assert "has the classes cat, bird; " in capsys.readouterr().err
    (made / "obj.names").write_text("bird\ncat\n")
    assert "checkpoint 0 in" in said("convert", f"--pretrained={made}", f"--workdir={tmp_path}/w")
    then = said("eval", f"--workdir={tmp_path}/w", data)
    figures = next(line for line in first.splitlines() if "map_50" in line).partition(": ")[2]
    assert figures in then
    said("convert", f"--workdir={tmp_path}/w", f"--export={tmp_path}/b")
    for ours, theirs in (("yolo.weights", "cells.weights"), ("yolo.cfg", "cells.cfg"), ("obj.names", "obj.names")):
        assert (tmp_path / "b" / ours).read_bytes() == (made / theirs).read_bytes()
    more = [f"--config.data.name={tmp_path}/set", "--config.data.size=(32, 64)", "--config.eval.split=val"]
    more += [f"--config.init_from={tmp_path}/b", "--config.train.steps=1", "--config.schedule.warmup=0"]
    begun = said("train", "--config=configs/yolo.py:bccd", f"--workdir={tmp_path}/v", *more)
    wide = folder_of(tmp_path / "c", models.build("yolo", **{**size, "classes": 5}))
    output = said(
        "eval", f"--pretrained={wide}", data, "--config.model.inputs=(64, 64, 3)", "--config.model.ignore_thresh=0.9"
    )
    assert "data.size = (64, 64)" in output
    assert "the 2 classes of" in output
    said("convert", f"--pretrained={wide}", f"--workdir={tmp_path}/x", "--config.model.inputs=(64, 64, 3)")
    assert "data.size = (64, 64)" in said("eval", f"--pretrained={made}", data, "--config.model.inputs=(64, 64, 3)")
    assert f"59 leaves loaded from {tmp_path}/b; fresh: none; ignored: none" in begun


def test_a_set_that_is_not_prepared_is_reported_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no split is given, it knows none to choose from."""
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    made = folder_of(tmp_path / "a", tiny_model("yolo"))
    assert launch.main(["eval", f"--pretrained={made}", "--dataset=bccd"]) == 2
    assert "data set 'bccd' is not prepared" in capsys.readouterr().err


def test_layers_that_no_size_has_make_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = folder_of(tmp_path / "a", tiny_model("yolo"))
    assert launch.main(["convert", f"--pretrained={made}", f"--workdir={tmp_path}/w"]) == 2
    assert "its layers match none of the sizes of yolo, yolov2, " in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
