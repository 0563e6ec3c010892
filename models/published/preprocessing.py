"""How images were made ready for a published network, as its folder says: preprocessor_config.json, or timm's own.

Where a network's own pipeline resizes an image to a square whatever its shape, here its middle is cut out instead; and
images are resized bilinearly.
"""

import json
import math
from pathlib import Path
from typing import Any

from errors import UsageError

FILE = "preprocessor_config.json"


def of_folder(folder: str | Path) -> dict[str, Any]:
    """Settings by the names of the knobs of `data`: mean, deviation, size (rows, columns), crop; {} if none is told.

    Raises UsageError for a file that cannot be read.
    """
    own = _read(Path(folder) / FILE)
    if own:
        return _of_hub(own)
    timm = _read(Path(folder) / "config.json").get("pretrained_cfg")
    return _of_timm(timm) if isinstance(timm, dict) else {}


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds no settings by name")
    return found


def _of_hub(told: dict[str, Any]) -> dict[str, Any]:
    mean, deviation = told.get("image_mean"), told.get("image_std")
    if not told.get("do_normalize", True):
        mean, deviation = None, None
    scale = 255 * (told.get("rescale_factor") or 1 / 255) if told.get("do_rescale", True) else 255.0
    if not math.isclose(scale, 1):  # pixels are from 0 to `scale` there when they are normalised
        mean, deviation = ([x / scale for x in one] for one in (mean or [0.0], deviation or [1.0]))
    found = _moments(mean, deviation)
    size, cut = told.get("size"), told.get("crop_size") if told.get("do_center_crop") else None
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    plane = _plane(cut) or _plane(size)
    if told.get("do_resize", True) and plane:
        found["size"] = plane
        share = told.get("crop_pct") or (min(plane) / shortest if cut and isinstance(shortest, int) else None)
        found |= {"crop": min(float(share), 1.0)} if share else {}
    return found


def _of_timm(told: dict[str, Any]) -> dict[str, Any]:
    found = _moments(told.get("mean"), told.get("std"))
    plane = told.get("input_size")
    if isinstance(plane, list) and len(plane) == 3:
        found["size"] = (int(plane[1]), int(plane[2]))
        found |= {"crop": float(told["crop_pct"])} if told.get("crop_pct") else {}
    return found


def _moments(mean: Any, deviation: Any) -> dict[str, Any]:
    pairs = (("mean", mean), ("deviation", deviation))
    return {name: tuple(map(float, given)) for name, given in pairs if isinstance(given, list) and given}


def _plane(size: Any) -> tuple[int, int] | None:
    """Rows and columns that a size says, be it a number, the shorter side, or both."""
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = (size.get("height", side), size.get("width", side))
    elif isinstance(size, int):
        size = (size, size)
    both = size if isinstance(size, tuple) else None
    return (both[0], both[1]) if both and all(isinstance(n, int) and n > 0 for n in both) else None
