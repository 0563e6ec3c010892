"""Folders of images in a plan, a mixture and a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import launch
from data import loader, sources
from data.images import augment, mixup
from data.sampler import BatchSampler, Phase
from data.sources import tfds as prepared_sets
from data.types import ExampleSource
from errors import UsageError
from tests.support.configs import config
from tests.support.image_folders import classes, save
from tests.support.runs import runtime
from train.setup import setup

pytestmark = pytest.mark.usefixtures("no_plots")


def plan(root: Path) -> BatchSampler:
    images = augment.ImagePipeline(0, augment.parse("random_resized_crop,flip,randaugment:1:9"), size=(8, 8))
    corpus = ExampleSource(sources.load(str(root), "train"))
    return BatchSampler((corpus,), (Phase(0, 6),), 0, images, mixup.Mixup(0, (("mixup", 0.2), ("cutmix", 1.0))))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_folders_are_read_ahead(workers: int, tmp_path: Path) -> None:
    """In a thread or in processes: the plan's batches, in order; a damaged image is named there too."""
    made = plan(classes(tmp_path))
    got = list(loader.batches(made, [0, 4], 1, 6, workers=workers, prefetch=2))
    assert len(got) == 5
    for step, batch in zip(range(1, 6), got, strict=True):
        want = made.batch(step)
        assert batch.keys() == want.keys()
        for name in want:
            np.testing.assert_array_equal(batch[name], want[name][[0, 4]])
    for path in (tmp_path / "eel").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"eel/.*cannot be read as an image"):
        list(loader.batches(made, list(range(6)), 0, 6, workers=workers, prefetch=2))


def test_prepared_images_of_any_size() -> None:
    """A set of TFDS whose images have sizes of their own gives them as they are."""

    class Rows(list):
        def __getitems__(self, wanted: list[int]) -> list[dict[str, Any]]:
            return [self[i] for i in wanted]

    features = {"image": SimpleNamespace(shape=(None, None, 3))}
    label = prepared_sets.LabelFeature("label", False, 2, ("a", "b"))
    rows = Rows({"image": np.full((4 + i, 5, 3), i, np.uint8), "label": i % 2} for i in range(4))
    source = prepared_sets._image_examples(rows, features, label, {"name": "made", "split": "train"})
    got = source.__getitems__([3, 0])
    assert got["image"].dtype == object
    assert [image.shape for image in got["image"]] == [(7, 5, 3), (4, 5, 3)]
    assert list(got["label"]) == [1, 0]


def test_mixtures_of_any_sizes_have_the_same_channels(tmp_path: Path) -> None:
    """Two folders of varying sizes mix; where one is grey, the message says so."""
    for name, mode in (("one", "RGB"), ("two", "RGB"), ("grey", "L")):
        for i in range(4):
            save(tmp_path / name / f"class{i % 2}" / f"{i}.png", (8 + i, 6), mode)
    one, two, grey = (ExampleSource(sources.load(str(tmp_path / n), "train")) for n in ("one", "two", "grey"))
    phases = (Phase(0, 8, (1.0, 1.0)),)
    assert BatchSampler((one, two), phases, 0, augment.ImagePipeline(size=(4, 4))).batch(0)["image"].shape == (
        8,
        4,
        4,
        3,
    )
    with pytest.raises(UsageError, match=r"uint8\[\*, \*, 3\].*uint8\[\*, \*, 1\]"):
        BatchSampler((one, grey), phases, 0)


def test_mixtures_of_sizes_are_united_by_one(tmp_path: Path) -> None:
    """Sets of one size, of another, and of any size mix by the size that is wanted, each row as in its own set."""
    for name, sizes in (("one", (12, 12)), ("two", (16, 16)), ("any", (14, 18))):
        for i in range(4):
            save(tmp_path / name / f"class{i % 2}" / f"{i}.png", (sizes[i // 2], 10), level=60 + i)
    corpora = tuple(ExampleSource(sources.load(str(tmp_path / n), "train")) for n in ("one", "two", "any"))
    images = augment.ImagePipeline(0, (("flip",),), size=(8, 8))
    plan = BatchSampler(corpora, (Phase(0, 30, (1.0, 1.0, 1.0)),), 0, images)
    whole, part = plan.batch(2), plan.batch(2, [7, 4, 21])
    assert whole["image"].shape == (30, 8, 8, 3)
    np.testing.assert_array_equal(part["image"], whole["image"][[7, 4, 21]])
    with pytest.raises(UsageError, match=r"same fields.*12, 10.*16, 10"):
        BatchSampler(corpora[:2], (Phase(0, 8, (1.0, 1.0)),), 0, augment.ImagePipeline())
    with pytest.raises(UsageError, match=r"different sizes: set data\.size"):
        BatchSampler(corpora, (Phase(0, 8, (1.0, 1.0, 1.0)),), 0, augment.ImagePipeline())


def test_a_run_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From its command to the worst mistakes; without a size, one line."""
    root = classes(tmp_path / "pets")
    args = [
        "train",
        f"--workdir={tmp_path}/w",
        "--config=configs/mlp.py:digits",
        f"--config.data.name={root}",
        "--config.model.inputs=192",
        "--config.train.steps=2",
        "--config.train.batch=8",
    ]
    assert launch.main(args) == 2
    assert "the images have different sizes: set data.size" in capsys.readouterr().err
    more = ["--config.data.size=8", "--config.data.augment=random_resized_crop,flip,mixup:0.2", "--config.eval.batch=2"]
    (root / "cat" / "x.png").write_bytes((root / "cat" / "00.png").read_bytes()[:50])
    assert launch.main([*args, *more]) == 2  # all are read before the run, which leaves nothing
    assert "cat/x.png cannot be read as an image (" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    (root / "cat" / "x.png").unlink()
    assert launch.main([*args, *more, "--config.data.mean=(0.5, 0.4, 0.3)"]) == 0
    assert "data    pets (33 examples), split train; held out: test (3)" in capsys.readouterr().out
    assert launch.main(["eval", f"--workdir={tmp_path}/w"]) == 0
    assert "3 examples; ± standard error" in capsys.readouterr().out
    (root / "cat" / "x.png").write_bytes((root / "cat" / "00.png").read_bytes())
    assert launch.main([*args, *more, "--config.data.mean=(0.5, 0.4, 0.3)"]) == 2
    assert f"in another --workdir with --config.init_from={tmp_path}/w" in capsys.readouterr().err


def test_a_class_that_cannot_be_learnt_ends_a_run_before_it_begins(tmp_path: Path, capsys) -> None:
    """One without an image in the training split; without one in the other, a note says so."""
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog", "test/eel"):
        save(tmp_path / "pets" / folder / "1.png")
    args = ["train", f"--workdir={tmp_path}/w", "--config=configs/mlp.py:digits", f"--config.data.name={tmp_path}/pets"]
    args += [
        "--config.model.inputs=144",
        "--config.train.steps=1",
        "--config.train.batch=8",
        "--config.log.table=false",
    ]
    assert launch.main(args) == 2
    assert "split 'train' has no example of 1 of the data's 3 classes: eel" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    (tmp_path / "pets" / "test").rename(tmp_path / "test")
    (tmp_path / "pets" / "train").rename(tmp_path / "pets" / "test")
    (tmp_path / "test").rename(tmp_path / "pets" / "train")
    assert launch.main(args) == 0
    assert "        split 'test' has no image of eel\n" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "classes_"), [({}, 3), ({"classes": 7}, 7)])
def test_a_published_size_takes_the_classes_of_the_data(more: dict[str, int], classes_: int, tmp_path: Path) -> None:
    """CIFAR's ten are the size's own; what the config says goes before both."""
    source = sources.load(str(classes(tmp_path / "pets", 3)), "train")
    settings = {"data.size": (16, 16), "data.mean": 0.5, "data.std": 0.5}
    cfg = config("resnet", "fashion").replace({**settings, **{f"model.{k}": v for k, v in more.items()}})
    assert setup.set_up(cfg, runtime(), source, None).model.config.classes == classes_
