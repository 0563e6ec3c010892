"""How a folder says that images were made ready."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.augment import Images
from data.kinds import of_any_size
from errors import UsageError
from models.published import preprocessing
from models.published.preprocessing import FILE, of_folder

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
MOMENTS = {"mean": (0.5, 0.5, 0.5), "deviation": (0.25, 0.25, 0.25)}
SQUARE = {"fit": "stretch", "crop": 1.0, "resample": "bilinear"}
CONV_NEXT = {"image_processor_type": "ConvNextImageProcessor"}
FORMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (FILE, {**HALF, "size": 224}, {**MOMENTS, **SQUARE, "size": (224, 224)}),
    (FILE, {**HALF, "size": {"height": 32, "width": 48}}, {**MOMENTS, **SQUARE, "size": (32, 48)}),
    (
        FILE,
        {**HALF, "size": 224, "crop_pct": 0.9, "resample": 5, "feature_extractor_type": "ConvNextFeatureExtractor"},
        {**MOMENTS, "size": (224, 224), "crop": 0.9, "fit": "cover", "resample": "hamming"},
    ),
    (FILE, {**CONV_NEXT, "size": 400}, {**SQUARE, "size": (400, 400), "resample": "bicubic"}),
    (FILE, {**CONV_NEXT, "size": 48}, {"size": (48, 48), "crop": 0.875, "fit": "cover", "resample": "bicubic"}),
    (
        FILE,
        {**HALF, "size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
        {**MOMENTS, "size": (224, 224), "crop": 0.875, "fit": "cover", "resample": "bilinear"},
    ),
    (FILE, {"image_mean": 255, "image_std": [51.0], "do_rescale": False}, {"mean": (1.0,), "deviation": (0.2,)}),
    (FILE, {"do_normalize": False, "rescale_factor": 2 / 255}, {"mean": (0.0,), "deviation": (0.5,)}),
    (FILE, {**HALF, "rescale_factor": 0.00392156862745098}, MOMENTS),
    (FILE, {**HALF, "do_normalize": False, "do_resize": False, "size": 224}, {}),
    (
        "config.json",
        {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 32, 48], "crop_pct": 0.9}},
        {**MOMENTS, "size": (32, 48), "crop": 0.9, "fit": "cover"},
    ),
    (
        "config.json",
        {"pretrained_cfg": {"input_size": [3, 32, 32], "crop_mode": "squash", "interpolation": "bicubic"}},
        {"size": (32, 32), "fit": "stretch", "resample": "bicubic"},
    ),
    ("config.json", {"model_type": "vit"}, {}),
]


@pytest.mark.parametrize(("file", "told", "want"), FORMS)
def test_what_a_folder_says_is_taken(file: str, told: dict[str, Any], want: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps(told))
    assert of_folder(tmp_path) == want


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("vit.image_processing_pil_vit.ViT", dict(size={"height": 32, "width": 48})),
        ("vit.image_processing_pil_vit.ViT", dict(size=32, resample=1)),
        ("deit.image_processing_pil_deit.DeiT", dict(size={"height": 40, "width": 40}, crop_size=32)),
        ("bit.image_processing_pil_bit.Bit", dict(size={"shortest_edge": 40}, crop_size=32)),
        ("convnext.image_processing_pil_convnext.ConvNext", dict(size={"shortest_edge": 48}, crop_pct=0.8)),
        ("convnext.image_processing_pil_convnext.ConvNext", dict(size={"shortest_edge": 384})),
    ],
)
def test_images_are_those_of_the_hubs_processor(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    """Wide, high, square, and one that has the wanted size already; what is saved says all that we need."""
    pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")
    module, name = name.rsplit(".", 1)
    processor = getattr(importlib.import_module(f"transformers.models.{module}"), f"{name}ImageProcessorPil")(**how)
    processor.save_pretrained(tmp_path)
    told, draw = of_folder(tmp_path), np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3)).astype(np.uint8))
    shapes = ((60, 90), (91, 64), (41, 41), told["size"])
    images = [np.asarray(coarse.resize((x, y), Image.Resampling.BICUBIC)) for y, x in shapes]
    got = Images(**told)({"image": of_any_size(images)}, 0, np.arange(4))["image"]
    want = np.stack([np.asarray(image).transpose(1, 2, 0) for image in processor(images)["pixel_values"]])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("timm", [False, True])
@pytest.mark.parametrize(
    "told",
    [
        {"mean": (0.5,), "deviation": (0.25,)},
        {
            "size": (24, 24),
            "fit": "cover",
            "resample": "bicubic",
            "mean": (0.1, 0.2, 0.3),
            "deviation": (1.0, 2.0, 3.0),
        },
        {"size": (28, 28), "crop": 0.875, "fit": "cover", "resample": "bilinear"},
        {"size": (28, 21), "crop": 0.7, "fit": "stretch", "resample": "lanczos"},
        {"size": (28, 21), "crop": 1.0, "fit": "stretch", "resample": "box"},
    ],
)
def test_what_is_written_is_read_again(told: dict[str, Any], timm: bool, tmp_path: Path) -> None:
    """Moments of one number come back for each channel; with timm a size that is not told says nothing of the rest."""
    channels = len(told.get("mean", (0,)))
    keys = preprocessing.write(tmp_path, told, channels, timm)
    assert bool(keys) == timm
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert of_folder(tmp_path) == {"mean": (0.0,), "deviation": (1.0,), **told}


def test_a_wide_size_that_is_covered_has_no_form(tmp_path: Path) -> None:
    preprocessing.write(tmp_path, {"size": (28, 21), "fit": "cover", "mean": 0.5}, 3)
    assert of_folder(tmp_path) == {"mean": (0.5,) * 3, "deviation": (1.0,) * 3}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UsageError, match=rf"{FILE} cannot be read"):
        of_folder(tmp_path)
