"""What a config and a network say of images: grey ones where the network has three channels, and numbered classes."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import launch
import models
from configs.knobs import DataConfig, RunConfig
from data import sources
from data.fields import object_array
from data.images import augment
from data.sampler import BatchSampler, Phase
from data.types import ExampleSource
from errors import UsageError
from tests.support.configs import config
from tests.support.image_folders import save
from tests.support.runs import runtime
from train.setup import inputs, setup
from train.verbs import load_model


@pytest.mark.parametrize("ways", [None, "random_resized_crop,flip,randaugment:2:9,jitter:0.5,erase:1"])
def test_grey_images_are_three_equal_channels(ways: str | None) -> None:
    """To all that follows they are what a copy in colours would be, of one size or of many."""
    grey = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 1)).astype(np.uint8)
    do = augment.ImagePipeline(0, augment.parse(ways), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (6, 6), channels=3)
    want = do({"image": np.concatenate([grey] * 3, -1)}, 1, np.arange(5))["image"]
    assert want.shape == (5, 6, 6, 3)
    for given in (grey, object_array([*grey])):
        np.testing.assert_array_equal(do({"image": given}, 1, np.arange(5))["image"], want)
    one = dataclasses.replace(do, operations=(), mean=0.1, std=1.0, channels=1)
    assert one({"image": grey}, 0, np.arange(5))["image"].shape == (5, 6, 6, 1)


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ({"family": "cnn", "inputs": (16, 16, 3)}, 3),
        ({"family": "resnet", "inputs": 3}, 3),
        ({"family": "resnet", "size": "resnet20"}, None),
        ({"family": "mlp", "inputs": 3}, None),
        ({"family": "none", "inputs": 3}, None),
    ],
)
def test_channels_of_a_config(model: dict[str, Any], channels: int | None) -> None:
    cfg = RunConfig().replace({f"model.{name}": value for name, value in model.items()})
    assert inputs.image_channels(cfg) == channels


def grey_and_coloured(root: Path, names: tuple[str, ...] = ("a", "b")) -> tuple[Path, Path]:
    """Two folders that differ by their images' mode alone."""
    grey, coloured = root / "grey", root / "coloured"
    for i, name in enumerate(names):
        for k in range(2):
            path = save(grey / name / f"{k}.png", (9, 8), "L", level=20 * i + k)
            (coloured / name).mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.convert("RGB").save(coloured / name / f"{k}.png")
    return grey, coloured


def test_a_network_of_three_channels_takes_grey_images(tmp_path: Path) -> None:
    """Alone, with a mean for each channel, and in a mixture with images in colours."""
    grey, coloured = (sources.load(str(root), "train") for root in grey_and_coloured(tmp_path))
    cfg = config("resnet", "fashion").replace({"data.mean": (0.1, 0.2, 0.3), "data.std": 0.5, "model.inputs": 3})
    made = setup.set_up(cfg, runtime(), grey, None)
    want, got = (made.eval_transform(s.__getitems__([0, 1]), 0, np.arange(2))["image"] for s in (coloured, grey))
    np.testing.assert_array_equal(got, want)
    prepare = inputs.train_transform(cfg, made.task, channels=inputs.image_channels(cfg, made.model))
    phases = (Phase(0, 8, (1.0, 1.0)),)
    both = BatchSampler((ExampleSource(grey), ExampleSource(coloured)), phases, 0, prepare)
    assert both.batch(0)["image"].shape == (8, 9, 8, 3)
    cfg = replace(cfg, model=replace(cfg.model, fields={k: v for k, v in cfg.model.fields.items() if k != "inputs"}))
    with pytest.raises(UsageError, match=r"the images have 1 channel"):
        setup.set_up(cfg, runtime(), grey, None)
    cfg = load_model.with_inputs(cfg, {"inputs": 3})  # as of a run on coloured ones
    assert setup.set_up(cfg, runtime(), grey, None).model.config.inputs == 3


def test_a_folder_of_the_hub_is_measured_on_grey_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on their copies in colours. Numbered classes with gaps are refused where it does not name its own."""
    shape: dict[str, Any] = dict(inputs=(8, 8, 3), patch=4, width=16, depth=1, heads=2, classes=12)
    model = models.build("vit", **shape, pool="first", class_token=True, position="learned")
    models.save_pretrained(model, model.init(jax.random.key(0)), tmp_path / "H", images={"mean": 0.5, "size": (8, 8)})
    said = []
    for root in grey_and_coloured(tmp_path, tuple(map(str, range(12)))):
        assert launch.main(["eval", f"--pretrained={tmp_path}/H", f"--dataset={root}", "--config.eval.batch=8"]) == 0
        said.append(capsys.readouterr().out.split(", test: ")[1])
    assert said[0] == said[1]
    (tmp_path / "grey" / "3").rename(tmp_path / "grey" / "12")
    assert (
        launch.main(["eval", f"--pretrained={tmp_path}/H", f"--dataset={tmp_path}/grey", "--config.eval.batch=8"]) == 2
    )
    assert "are numbers from 0 to 12 with gaps" in capsys.readouterr().err


def test_titles_have_the_last_part_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of TFDS stay whole."""
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, title in (
        (f"{tmp_path}/pets", "pets"),
        ("/gone/book.txt", "book.txt"),
        ("~/photos", "photos"),
        ("./pets", "pets"),
        ("glue/sst2", "glue/sst2"),
        (f"mnist,{tmp_path}/pets/", "mnist, pets"),
    ):
        assert setup.dataset_title(RunConfig(data=DataConfig(name=name))) == title
