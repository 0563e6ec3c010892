"""How images were made ready for a published network, as its folder says: preprocessor_config.json, or timm's own.

Each image processor of the hub has settings of its own where the file has none, and reads a size of one number in its
own way: as a square's, or as the shorter side's.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from errors import UsageError

FILE = "preprocessor_config.json"


class Processor(NamedTuple):
    """What an image processor does where its file says nothing."""

    resample: str
    shorter: bool  # whether a size of one number is that of the shorter side


PROCESSORS = {  # by how its name begins
    "ConvNext": Processor("bicubic", True),  # ResNets have it
    "Bit": Processor("bicubic", True),
    "CLIP": Processor("bicubic", True),
    "DeiT": Processor("bicubic", False),
    "ViT": Processor("bilinear", False),
}
WARPED = 384  # from this size on ConvNext's processor cuts nothing off


def of_folder(folder: str | Path) -> dict[str, Any]:
    """Settings by the names of the knobs of `data`: mean, deviation, size (rows, columns), crop, fit, resample.

    Those that are not told are left out; a crop, where the shorter side is resized and nothing cut off.

    Raises UsageError for a file that cannot be read.
    """
    own = _read(Path(folder) / FILE)
    if own:
        return _of_hub(own)
    timm = _read(Path(folder) / "config.json").get("pretrained_cfg")
    return _of_timm(timm) if isinstance(timm, dict) else {}


def write(folder: str | Path, told: dict[str, Any], channels: int, timm: bool = False) -> dict[str, Any]:
    """Write a preprocessor_config.json of such settings, for images of so many channels -> {}.

    For timm nothing is written, but a key of config.json returned. On the hub a size that is not square and is covered
    has no form and is left out.
    """
    if timm:
        return _timm_keys(told, channels)
    size, share, stretched = told.get("size"), told.get("crop"), told.get("fit") == "stretch"
    whole = size is None or not (stretched or size[0] == size[1])
    found: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _each(told.get("mean", 0.0), channels),
        "image_std": _each(told.get("deviation", 1.0), channels),
        "do_convert_rgb": channels == 3,
        "do_resize": not whole,
        "do_center_crop": not whole and share is not None,
    }
    if size is not None and not whole:
        rows, columns = (math.floor(side / (share or 1.0) + 1e-6) for side in size)
        found["size"] = {"height": rows, "width": columns} if stretched else {"shortest_edge": rows}
        found["resample"] = Image.Resampling[told.get("resample", "bilinear").upper()].value
        found["crop_size"] = {"height": size[0], "width": size[1]}
    (Path(folder) / FILE).write_text(json.dumps(found, indent=2) + "\n")
    return {}


def _timm_keys(told: dict[str, Any], channels: int) -> dict[str, Any]:
    """What such settings become in a config.json of timm."""
    found: dict[str, Any] = {
        "mean": _each(told.get("mean", 0.0), channels),
        "std": _each(told.get("deviation", 1.0), channels),
        "interpolation": told.get("resample", "bilinear"),
        "crop_mode": "squash" if told.get("fit") == "stretch" else "center",
        "crop_pct": told.get("crop"),
    }
    if told.get("size"):
        found["input_size"] = [channels, *told["size"]]
    return {"pretrained_cfg": {key: value for key, value in found.items() if value is not None}}


def _each(given: Any, channels: int) -> list[float]:
    """One number a channel."""
    return [float(x) for x in np.broadcast_to(np.asarray(given, float), (channels,))]


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
    mean, deviation = (_listed(told.get(key)) for key in ("image_mean", "image_std"))
    if not told.get("do_normalize", True):
        mean, deviation = None, None
    scale = 255 * (told.get("rescale_factor") or 1 / 255) if told.get("do_rescale", True) else 255.0
    if not math.isclose(scale, 1):  # pixels are from 0 to `scale` there when they are normalised
        mean, deviation = ([x / scale for x in one] for one in (mean or [0.0], deviation or [1.0]))
    found = _moments(mean, deviation)
    return found | _framed(told) if told.get("do_resize", True) else found


def _framed(told: dict[str, Any]) -> dict[str, Any]:
    """How images take their size."""
    name = str(told.get("image_processor_type") or told.get("feature_extractor_type") or "")
    name = next((n for n in PROCESSORS if name.startswith(n)), "ConvNext" if "crop_pct" in told else "ViT")
    processor, size = PROCESSORS[name], told.get("size")
    if isinstance(size, int):
        size = {"shortest_edge": size} if processor.shorter else {"height": size, "width": size}
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    cut = told.get("crop_size") if told.get("do_center_crop") else None
    plane, resized = _plane(cut) or _plane(size), _plane(size)
    if not plane or not resized:
        return {}
    way = next((way.name.lower() for way in Image.Resampling if way == told.get("resample")), processor.resample)
    found = {"size": plane, "resample": way}
    if name == "ConvNext" and not cut:
        warped = resized[0] >= WARPED
        return found | _cropped(1.0 if warped else told.get("crop_pct") or 0.875, "stretch" if warped else "cover")
    share = min(p / r for p, r in zip(plane, resized, strict=True)) if cut or not edge else None
    return found | _cropped(share, "cover" if edge else "stretch")


def _of_timm(told: dict[str, Any]) -> dict[str, Any]:
    found = _moments(told.get("mean"), told.get("std"))
    plane = told.get("input_size")
    if isinstance(plane, list) and len(plane) == 3:
        found["size"] = (int(plane[1]), int(plane[2]))
        found |= _cropped(told.get("crop_pct"), "stretch" if told.get("crop_mode") == "squash" else "cover")
        how = told.get("interpolation")
        found |= {"resample": how} if how in [r.name.lower() for r in Image.Resampling] else {}
    return found


def _cropped(share: Any, fit: str) -> dict[str, Any]:
    """Which part of a resized image is kept, of its sides; all where the whole is smaller."""
    return {"fit": fit, **({"crop": min(float(share), 1.0)} if isinstance(share, int | float) and share > 0 else {})}


def _moments(mean: Any, deviation: Any) -> dict[str, Any]:
    pairs = (("mean", _listed(mean)), ("deviation", _listed(deviation)))
    return {name: tuple(map(float, given)) for name, given in pairs if given}


def _listed(given: Any) -> list[float] | None:
    """Numbers, of which a file may hold a single one; None for what is none."""
    given = [given] if isinstance(given, int | float) else given
    return given if isinstance(given, list) and all(isinstance(x, int | float) for x in given) else None


def _plane(size: Any) -> tuple[int, int] | None:
    """Rows and columns that a size says, be it a number, the shorter side, or both."""
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = (size.get("height", side), size.get("width", side))
    elif isinstance(size, int):
        size = (size, size)
    both = size if isinstance(size, tuple) else None
    return (both[0], both[1]) if both and all(isinstance(n, int) and n > 0 for n in both) else None
