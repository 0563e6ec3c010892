"""How a folder says that images were made ready: the same pixels as by the hub's own image processors."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.fields import object_array
from data.images.augment import ImagePipeline
from errors import UsageError
from models.pretrained import preprocessing
from models.pretrained.preprocessing import FILE, from_folder

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
TIMM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FORMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (FILE, {"image_mean": 255, "image_std": [51.0], "do_rescale": False}, {"mean": 1.0, "std": 0.2}),
    (FILE, {"do_normalize": False, "rescale_factor": 2 / 255}, {"mean": 0.0, "std": 0.5}),
    (FILE, {"image_mean": 0.5, "do_resize": False, "size": 224}, {"mean": 0.5, "std": 1.0}),
    (
        FILE,  # as microsoft/resnet-50 has it, without a type
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224, "crop_pct": 0.875, "resample": 3},
        {**HALF, "size": (224, 224), "crop_pct": 0.875, "resize_mode": "cover", "interpolation": "bicubic"},
    ),
    (
        FILE,
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": [24, 32], "resample": "lanczos"},
        {**HALF, "size": (24, 32), "crop_pct": 1.0, "resize_mode": "stretch", "interpolation": "lanczos"},
    ),
    (
        "config.json",
        {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 48], "crop_pct": 0.9}},
        {**HALF, "size": (32, 48), "crop_pct": 0.9, "resize_mode": "cover", "interpolation": "bicubic"},
    ),
    (
        "config.json",
        {"pretrained_cfg": {"input_size": [3, 32, 32], "crop_mode": "squash", "interpolation": "bilinear"}},
        {**TIMM, "size": (32, 32), "crop_pct": 0.875, "resize_mode": "stretch", "interpolation": "bilinear"},
    ),
    ("config.json", {"pretrained_cfg": {"tag": "a1"}}, TIMM),
    ("config.json", {"model_type": "vit"}, {}),
]


@pytest.mark.parametrize(("file", "settings", "want"), FORMS)
def test_what_a_folder_says_is_taken(file: str, settings: dict[str, Any], want: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps(settings))
    assert from_folder(tmp_path) == want


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit.ViT", {}),
        ("vit.ViT", {"size": {"height": 32, "width": 48}, "do_normalize": False}),
        ("vit.ViT", {"size": 32, "resample": 1, "do_center_crop": None}),
        ("vit.ViT", {"size": 32, "do_rescale": False}),
        ("vit.ViT", {"size": 32, "rescale_factor": 1 / 127}),
        ("deit.DeiT", {}),
        ("deit.DeiT", {"size": {"height": 40, "width": 40}, "crop_size": 32}),
        ("deit.DeiT", {"size": 40, "do_center_crop": False}),
        ("bit.Bit", {}),
        ("bit.Bit", {"size": {"shortest_edge": 40}, "crop_size": 32, "image_std": [0.1, 0.2, 0.3]}),
        ("clip.CLIP", {"size": 40, "crop_size": {"height": 32, "width": 32}}),
        ("convnext.ConvNext", {}),
        ("convnext.ConvNext", {"size": {"shortest_edge": 48}}),
        (
            "convnext.ConvNext",
            {"size": {"shortest_edge": 48}, "crop_pct": 0.8, "do_center_crop": True, "crop_size": 20},
        ),
        ("convnext.ConvNext", {"size": {"shortest_edge": 380}, "crop_pct": 1.0}),
    ],
)
def test_images_are_those_of_the_hubs_processor(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Wide, high, square, and one that has the wanted size already; what the file leaves out is the processor's own."""
    pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")
    package, kind = name.split(".")
    module = importlib.import_module(f"transformers.models.{package}.image_processing_pil_{package}")
    (tmp_path / FILE).write_text(json.dumps({"image_processor_type": f"{kind}ImageProcessor", **settings}))
    processor = getattr(module, f"{kind}ImageProcessorPil").from_pretrained(tmp_path)
    found, draw = from_folder(tmp_path), np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3)).astype(np.uint8))
    shapes = ((60, 90), (91, 64), (41, 41), found["size"])
    images = [np.asarray(coarse.resize((x, y), Image.Resampling.BICUBIC)) for y, x in shapes]
    got = ImagePipeline(**found)({"image": object_array(images)}, 0, np.arange(4))["image"]
    want = np.stack([np.asarray(image).transpose(1, 2, 0) for image in processor(images)["pixel_values"]])
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("timm", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"mean": 0.5, "std": 0.25},
        {
            "size": (24, 24),
            "crop_pct": 1.0,
            "resize_mode": "cover",
            "interpolation": "bicubic",
            "mean": (0.1, 0.2, 0.3),
        },
        {"size": (28, 28), "crop_pct": 0.875, "resize_mode": "cover", "interpolation": "bilinear"},
        {"size": (28, 21), "crop_pct": 0.7, "resize_mode": "stretch", "interpolation": "lanczos"},
        {"size": (28, 21), "crop_pct": 1.0, "resize_mode": "stretch", "interpolation": "box"},
    ],
)
def test_what_is_written_is_read_again(settings: dict[str, Any], timm: bool, tmp_path: Path) -> None:
    channels = np.size(settings.get("mean", 0))
    if timm:
        (tmp_path / "config.json").write_text(json.dumps(preprocessing.timm_keys(settings, channels)))
    else:
        preprocessing.write(tmp_path, settings, channels)
    assert from_folder(tmp_path) == {"mean": 0.0, "std": (1.0,) * channels if channels > 1 else 1.0, **settings}


def test_a_wide_size_that_is_covered_has_no_form(tmp_path: Path) -> None:
    settings = {"size": (28, 21), "resize_mode": "cover", "mean": 0.5}
    assert not preprocessing.is_expressible(settings)
    preprocessing.write(tmp_path, settings, 3)
    assert from_folder(tmp_path) == {"mean": (0.5,) * 3, "std": (1.0,) * 3}


@pytest.mark.parametrize(
    ("file", "settings", "says"),
    [
        (FILE, {"rescale_factor": "1/255"}, "'rescale_factor' is '1/255'; it must be a number above 0"),
        (FILE, {"rescale_factor": float("nan")}, "'rescale_factor' is nan; it must be a number above 0"),
        (FILE, {"image_mean": ["a"]}, r"'image_mean' is \['a'\]; it must be a number"),
        (FILE, {"image_std": [float("inf")]}, r"'image_std' is \[inf\]; it must be a number"),
        (FILE, {"size": True}, "'size' is True; it must be rows and columns"),
        (FILE, {"size": {"width": 3}}, "'size' is {'width': 3}; it must be rows and columns"),
        (FILE, {"size": -3}, "'size' is -3; it must be rows and columns"),
        (FILE, {"size": 8, "resample": [3]}, r"'resample' is \[3\]; legal: 0 nearest"),
        (FILE, {"size": 8, "crop_pct": "0.9"}, "'crop_pct' is '0.9'; it must be a number above 0"),
        (
            FILE,
            {"size": 8, "do_center_crop": True, "crop_size": 9},
            "images are resized to .8, 8. and cropped to .9, 9.; the crop must be smaller",
        ),
        (
            FILE,
            {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": [4, 8]},
            "images are resized to .8, 8. and cropped to .4, 8.",
        ),
        ("config.json", {"pretrained_cfg": {"input_size": [3, None, 4]}}, "'input_size' is .None, 4.; it must be rows"),
        (
            "config.json",
            {"pretrained_cfg": {"input_size": 4}},
            "'input_size' is 4; it must be channels",
        ),
        (
            "config.json",
            {"pretrained_cfg": {"input_size": [3, 4, 4], "crop_mode": "border"}},
            "'crop_mode' is 'border'",
        ),
    ],
)
def test_what_is_not_done_here_is_refused(file: str, settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=f"{file}: {says}") as error:
        from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UsageError, match=rf"{FILE} cannot be read"):
        from_folder(tmp_path)
