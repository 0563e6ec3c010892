"""How a folder says that images were made ready."""

import json
from pathlib import Path
from typing import Any

import pytest

from errors import UsageError
from models.published.preprocessing import FILE, of_folder

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
MOMENTS = {"mean": (0.5, 0.5, 0.5), "deviation": (0.25, 0.25, 0.25)}
FORMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (FILE, {**HALF, "size": 224}, {**MOMENTS, "size": (224, 224)}),
    (FILE, {**HALF, "size": {"height": 32, "width": 48}}, {**MOMENTS, "size": (32, 48)}),
    (FILE, {**HALF, "size": 224, "crop_pct": 0.875}, {**MOMENTS, "size": (224, 224), "crop": 0.875}),
    (
        FILE,
        {**HALF, "size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
        {**MOMENTS, "size": (224, 224), "crop": 0.875},
    ),
    (FILE, {"image_mean": [255.0], "image_std": [51.0], "do_rescale": False}, {"mean": (1.0,), "deviation": (0.2,)}),
    (FILE, {"do_normalize": False, "rescale_factor": 2 / 255}, {"mean": (0.0,), "deviation": (0.5,)}),
    (FILE, {**HALF, "rescale_factor": 0.00392156862745098}, MOMENTS),
    (FILE, {**HALF, "do_normalize": False, "do_resize": False, "size": 224}, {}),
    (
        "config.json",
        {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 32, 48], "crop_pct": 0.9}},
        {**MOMENTS, "size": (32, 48), "crop": 0.9},
    ),
    ("config.json", {"model_type": "vit"}, {}),
]


@pytest.mark.parametrize(("file", "told", "want"), FORMS)
def test_what_a_folder_says_is_taken(file: str, told: dict[str, Any], want: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps(told))
    assert of_folder(tmp_path) == want


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UsageError, match=rf"{FILE} cannot be read"):
        of_folder(tmp_path)
