"""VGG and ResNet against transformers, and against torch.nn modules that bear torchvision's and timm's names."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import models
from errors import UsageError
from models import pretrained
from models.pretrained import class_names, preprocessing

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")

from tests.support.cases import random_variables  # noqa: E402
from tests.support.choices import left_out, noted, seeds  # noqa: E402
from tests.support.hub import assert_close  # noqa: E402  (needs both)
from tests.support.torch_convnets import CLASSES, ResNet, Vgg, compare, randomise, strict_both_ways, write  # noqa: E402

VGGS, RESNETS = (1, 2, 108), (7, 125, 102)  # the first by default, the others slow

# VGG


def vgg_fields(draw: Any) -> dict[str, Any]:
    stages = int(draw.integers(2, 4))
    return dict(
        inputs=int(draw.integers(1, 4)),
        channels=tuple(int(n) for n in draw.integers(3, 9, stages)),
        depths=tuple(int(n) for n in draw.integers(1, 3, stages)),
        norm=str(draw.choice(["batch", "none"])),
        pool=int(draw.integers(1, 5)),
        hidden=tuple(int(n) for n in draw.integers(6, 12, draw.integers(0, 3))),
        classes=CLASSES,
    )


def random_vgg(seed: int, **more: Any) -> models.Model:
    return models.build("vgg", **{**vgg_fields(np.random.default_rng(seed)), **more})


def test_the_configs_of_vgg_hold_every_choice() -> None:
    assert not left_out(noted(vgg_fields, VGGS))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("seed", seeds(*VGGS, weekly=8))
def test_vgg_is_torchvisions(seed: int, train: bool, tmp_path: Path) -> None:
    """Also of maps that are smaller than what the perceptron takes, so that the pool repeats pixels."""
    model = random_vgg(seed, dropout=0.0)
    compare(randomise(Vgg(model), seed), model, int(np.random.default_rng(seed).choice([8, 13, 26])), tmp_path, train)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_vgg_is_timms(norm: str, tmp_path: Path) -> None:
    model = random_vgg(3, norm=norm, hidden=(7, 9))
    module = randomise(Vgg(model, timm=True), 3)
    compare(module, model, 24, tmp_path, False)
    (tmp_path / "again").mkdir()
    strict_both_ways(module, model, tmp_path / "again", "timm")


@pytest.mark.parametrize("seed", seeds(*VGGS, weekly=8))
def test_vggs_files_are_torchvisions(seed: int, tmp_path: Path) -> None:
    model = random_vgg(seed)
    strict_both_ways(randomise(Vgg(model), seed), model, tmp_path, None)


# ResNet


def resnet_config(draw: Any) -> Any:
    """A bottleneck of one channel has gradients of 0, since a norm takes its scale."""
    stages = int(draw.integers(2, 4))
    block = str(draw.choice(["basic", "bottleneck"]))
    return transformers.ResNetConfig(
        num_channels=int(draw.integers(1, 4)),
        embedding_size=int(draw.choice([4, 8])),
        hidden_sizes=[int(n) for n in draw.choice([16, 24, 32], stages)],
        depths=[int(n) for n in draw.integers(1, 4, stages)],
        layer_type=block,
        hidden_act=str(draw.choice(["relu", "silu"])),
        downsample_in_first_stage=bool(draw.integers(2)),
        downsample_in_bottleneck=bool(draw.integers(2)),
        num_labels=CLASSES,
    )


def random_resnet(seed: int) -> Any:
    """Their model of a random config."""
    config = resnet_config(np.random.default_rng(seed))
    return randomise(transformers.ResNetForImageClassification(config), seed)


def test_the_configs_of_resnets_hold_every_choice() -> None:
    assert not left_out(noted(resnet_config, RESNETS))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("seed", seeds(*RESNETS, weekly=8))
def test_resnet_is_transformers(seed: int, train: bool, tmp_path: Path) -> None:
    module = random_resnet(seed)
    module.save_pretrained(tmp_path / "theirs")
    model, _ = models.load_pretrained(tmp_path / "theirs")
    compare(module, model, 33, tmp_path, train)


@pytest.mark.parametrize("seed", seeds(*RESNETS, weekly=8))
def test_folders_of_resnets_are_strict_both_ways(seed: int, tmp_path: Path) -> None:
    """Theirs loads ours with nothing missing, nothing over; and we load what we wrote."""
    module = random_resnet(seed)
    strict_both_ways(module, models.load_pretrained(write(module, tmp_path / "first", None))[0], tmp_path, None)
    model, variables = models.load_pretrained(tmp_path / "first")
    names = [f"kind {i}" for i in range(model.config.classes)]
    models.save_pretrained(model, variables, tmp_path / "ours", classes=names)
    with pytest.raises(UsageError, match=r"classes = \['one'\] has 1 names; the model has \d+ classes"):
        models.save_pretrained(model, variables, tmp_path / "not", classes=["one"])
    theirs, loading_info = transformers.ResNetForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(loading_info[k] for k in ("unexpected_keys", "mismatched_keys"))
    assert all(name.endswith("num_batches_tracked") for name in loading_info["missing_keys"])
    assert [theirs.config.id2label[i] for i in range(len(names))] == names
    assert tuple(names) == class_names.read(tmp_path / "ours")
    assert class_names.read(tmp_path / "first") is None
    image = np.random.default_rng(seed).normal(size=(2, 32, 32, model.config.inputs)).astype(np.float32)
    with torch.no_grad():
        want = theirs.eval()(torch.tensor(image.transpose(0, 3, 1, 2))).logits
    assert_close(jax.jit(model.predict)(variables, image), want)
    again, back = models.load_pretrained(tmp_path / "ours")
    assert again.config == model.config
    for path, leaf in pretrained.leaves(variables).items():
        np.testing.assert_array_equal(leaf, pretrained.leaves(back)[path])


def test_a_bare_resnet_gives_the_mean_over_its_last_map(tmp_path: Path) -> None:
    module = random_resnet(0).resnet
    model, variables = models.load_pretrained(write(module, tmp_path / "theirs", None))
    image = np.random.default_rng(0).normal(size=(2, 40, 40, model.config.inputs)).astype(np.float32)
    with torch.no_grad():
        want = module.eval()(torch.tensor(image.transpose(0, 3, 1, 2))).pooler_output.flatten(1)
    assert_close(jax.jit(model.predict)(variables, image), want)
    models.save_pretrained(model, variables, tmp_path / "ours")
    assert models.load_pretrained(tmp_path / "ours")[0].config == model.config


TORCHVISIONS: dict[str, dict[str, Any]] = {
    "option_a": dict(stem="cifar", stem_channels=4, channels=(4, 8), depths=(2, 3), shortcut="identity"),
    "wide": dict(block="bottleneck", stem_channels=4, channels=(8, 16), depths=(2, 1), widening=2),
    "wide_basic": dict(stem="cifar", stem_channels=4, channels=(4, 8), depths=(1, 2), widening=2),
    "paper": dict(block="bottleneck", stem_channels=6, channels=(8, 12), depths=(1, 2), stride_first=True),
}


@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "name", ["option_a", *(pytest.param(n, marks=pytest.mark.slow) for n in list(TORCHVISIONS)[1:])]
)
def test_resnet_is_torchvisions(name: str, train: bool, tmp_path: Path) -> None:
    model = models.build("resnet", classes=CLASSES, **TORCHVISIONS[name])
    module = randomise(ResNet(model), 1)
    compare(module, model, 17, tmp_path, train)
    (tmp_path / "again").mkdir()
    strict_both_ways(module, model, tmp_path / "again", "timm")


# Folders of timm


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "size", "made"),
    [
        ("resnet", "resnet18", ResNet),
        ("resnet", "resnet50", ResNet),
        ("vgg", "vgg11_bn", lambda model: Vgg(model, timm=True)),
    ],
)
def test_a_folder_of_timm(family: str, size: str, made: Any, tmp_path: Path) -> None:
    """By its config.json, which names an architecture, and back."""
    settings = {"architecture": size, "num_classes": 3, "num_features": 512, "pretrained_cfg": {"tag": "a1"}}
    wanted = models.build(family, size=size, classes=3)
    module = randomise(made(wanted), 0).eval()
    model, variables = models.load_pretrained(write(module, tmp_path / "theirs", settings))
    assert model == wanted
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        assert_close(jax.jit(model.predict)(variables, image), module(torch.tensor(image.transpose(0, 3, 1, 2))))
    names, images = (
        ("eel", "ant", "bee"),
        {"size": (64, 48), "resize_mode": "stretch", "interpolation": "box", "crop_pct": 0.9},
    )
    models.save_pretrained(model, variables, tmp_path / "ours", dialect="timm", classes=names, images=images)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architecture"] == size
    assert class_names.read(tmp_path / "ours") == names
    assert preprocessing.from_folder(tmp_path / "ours").items() >= images.items()
    assert models.load_pretrained(tmp_path / "ours")[0] == model


def timms(**more: Any) -> dict[str, Any]:
    return {"architecture": "resnet18", **more}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (timms(architecture="resnet19"), "unknown model_type of config.json 'resnet19'"),
        (timms(model_args={"output_stride": 8}), "unknown key in model_args of config.json 'output_stride'"),
        (timms(global_pool="max"), "global_pool = 'max'"),
        (timms(num_classes="x"), "num_classes = 'x'"),
        (timms(novelty=3), "novelty = 3"),
        ({"model_type": "resnet", "architectures": ["ResNetBackbone"]}, "ResNetBackbone"),
        ({"model_type": "resnet", "layer_type": "x"}, "layer_type of config.json 'x'"),
        ({"model_type": "resnet", "depths": [3, 4]}, "one for each of channels"),
        ({"model_type": "resnet", "depths": [2, 2, 2, 10**9]}, "too few"),
    ],
)
def test_folders_that_are_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = write(torch.nn.Linear(2, 2), tmp_path / "H", settings)
    with pytest.raises(UsageError) as caught:
        models.load_pretrained(folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "fields", "dialect", "says"),
    [
        ("resnet", dict(size="resnet20", depths=(1, 1, 1)), None, "has stem = 'imagenet', not 'cifar'"),
        ("resnet", dict(size="resnet20", depths=(1, 1, 1)), "timm", "timm has resnet18"),
        ("vgg", dict(channels=(4,), depths=(1,), hidden=()), None, "timm has vgg11"),
        ("resnet", dict(stem_channels=4, channels=(4,), depths=(1,)), "keras", "unknown dialect of resnet 'keras'"),
    ],
)
def test_networks_without_a_published_form(family: str, fields: Any, dialect: Any, says: str, tmp_path: Path) -> None:
    model = models.build(family, **fields)
    with pytest.raises(UsageError) as caught:
        models.save_pretrained(model, random_variables(model), tmp_path / "H", dialect=dialect)
    assert says in str(caught.value)
    assert not (tmp_path / "H").exists()
