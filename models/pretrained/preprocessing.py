"""How images were made ready for a published network, as its folder says: preprocessor_config.json, or timm's own.

What a file of the hub leaves out is what its image processor does by itself; a size of one number is a square's or the
shorter side's, as that processor has it.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from documents import read_settings
from errors import UsageError

FILE = "preprocessor_config.json"
HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
CENTER_CROP: dict[str, Any] = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3}
DEFAULTS: dict[str, Any] = {  # what is done where neither a file nor its processor says it
    **{"do_normalize": True, "image_mean": 0.0, "image_std": 1.0, "do_rescale": True, "rescale_factor": 1 / 255},
    **{"do_resize": True, "resample": 2, "do_center_crop": False, "crop_pct": 0.875},
}
PROCESSORS: dict[str, dict[str, Any]] = {  # by how the name begins; a size's keys tell how one number is read
    "ConvNext": HALF | {"size": {"shortest_edge": 384}, "resample": 3},
    "Bit": CLIP | CENTER_CROP,
    "CLIP": CLIP | CENTER_CROP,
    "DeiT": HALF | CENTER_CROP | {"size": {"height": 256, "width": 256}},
    "ViT": HALF | {"size": {"height": 224, "width": 224}, "resample": 2},
}
WARP_SIZE = 384  # from this size on ConvNext's processor cuts nothing off
TIMM: dict[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
MODES = {"center": "cover", "squash": "stretch"}  # by timm's crop_mode
RESAMPLINGS: dict[Any, str] = {way.value: way.name.lower() for way in Image.Resampling}


def from_folder(folder: str | Path) -> dict[str, Any]:
    """Settings by the names of data's knobs: mean, std, size (rows, columns), crop_pct, resize_mode, interpolation.

    Those that are not told are left out. Raises UsageError for a file that cannot be read, and for what is done to
    images there and not here.
    """
    own, other = Path(folder) / FILE, Path(folder) / "config.json"
    told, timm = _read(own), _read(other).get("pretrained_cfg")
    try:
        return _from_hub(told) if told else _from_timm(timm) if isinstance(timm, dict) else {}
    except UsageError as error:
        raise UsageError(f"{own if told else other}: {error}") from None


def is_expressible(told: dict[str, Any]) -> bool:
    """Whether a preprocessor_config.json can say how images take their size: not where one not square is covered."""
    return "size" not in told or told.get("resize_mode") == "stretch" or told["size"][0] == told["size"][1]


def write(folder: str | Path, told: dict[str, Any], channels: int) -> None:
    """Write a preprocessor_config.json of such settings, for images of so many channels; no size that has no form."""
    sized = "size" in told and is_expressible(told)
    found: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _per_channel(told.get("mean", 0.0), channels),
        "image_std": _per_channel(told.get("std", 1.0), channels),
        "do_convert_rgb": channels == 3,
        "do_resize": sized,
        "do_center_crop": sized,
    }
    if sized:
        rows, columns = (math.floor(side / told.get("crop_pct", 1.0) + 1e-6) for side in told["size"])
        found["size"] = (
            {"height": rows, "width": columns} if told.get("resize_mode") == "stretch" else {"shortest_edge": rows}
        )
        found["crop_size"] = dict(zip(("height", "width"), told["size"], strict=True))
        ways = {name: value for value, name in RESAMPLINGS.items()}
        found["resample"] = ways[told.get("interpolation", "bilinear")]
    (Path(folder) / FILE).write_text(json.dumps(found, indent=2) + "\n")


def timm_keys(told: dict[str, Any], channels: int) -> dict[str, Any]:
    """What such settings become in a config.json of timm, which takes 224 x 224 for a size that is not told."""
    modes = {fit: mode for mode, fit in MODES.items()}
    found = {
        "mean": _per_channel(told.get("mean", 0.0), channels),
        "std": _per_channel(told.get("std", 1.0), channels),
        "interpolation": told.get("interpolation", "bilinear"),
        "crop_mode": modes[told.get("resize_mode", "cover")],
        "crop_pct": told.get("crop_pct", 1.0),
    }
    return {"pretrained_cfg": found | ({"input_size": [channels, *told["size"]]} if "size" in told else {})}


def _per_channel(given: Any, channels: int) -> list[float]:
    """One number a channel."""
    return [float(x) for x in np.broadcast_to(np.asarray(given, float), (channels,))]


def _read(file: Path) -> dict[str, Any]:
    return read_settings(file) if file.is_file() else {}


def _from_hub(told: dict[str, Any]) -> dict[str, Any]:
    kind = str(told.get("image_processor_type") or told.get("feature_extractor_type") or "")
    name = next((n for n in PROCESSORS if kind.startswith(n)), "ConvNext" if "crop_pct" in told else None)
    own = PROCESSORS[name] if name else {}
    told = DEFAULTS | own | {key: value for key, value in told.items() if value is not None or key.startswith("do_")}
    moments = told if told["do_normalize"] else DEFAULTS
    mean, deviation = (np.asarray(_numbers(moments, key)) for key in ("image_mean", "image_std"))
    scale = 255 * _number(told, "rescale_factor") if told["do_rescale"] else 255.0
    scale = 1.0 if math.isclose(scale, 1) else scale  # pixels are from 0 to `scale` there when they are normalised
    found = {"mean": _scalar_or_tuple(mean / scale), "std": _scalar_or_tuple(deviation / scale)}
    if not told["do_resize"] or "size" not in told:
        return found
    return found | _resize_and_crop(told, name == "ConvNext", "shortest_edge" in own.get("size", {}))


def _resize_and_crop(told: dict[str, Any], warps: bool, shorter: bool) -> dict[str, Any]:
    """How images take their size, of a processor for which one number is that of the shorter side, or a square's."""
    size = told["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size} if shorter else size
    covers = isinstance(size, dict) and "shortest_edge" in size
    resized = _rows_and_columns(size["shortest_edge"] if covers else size, "size")
    way = told["resample"]
    if (way := RESAMPLINGS.get(way, way) if isinstance(way, int | str) else way) not in RESAMPLINGS.values():
        raise UsageError(f"'resample' is {way!r}; legal: {', '.join(f'{n} {w}' for n, w in RESAMPLINGS.items())}")
    covers &= not (warps and resized[0] >= WARP_SIZE)
    share = _number(told, "crop_pct") if warps and covers else 1.0
    cut = (
        _rows_and_columns(told["crop_size"], "crop_size") if told["do_center_crop"] and "crop_size" in told else resized
    )
    shares = {c / r for c, r in zip(cut, resized, strict=True)}
    if max(shares) > 1 or len(shares) > 1:
        raise UsageError(f"images are resized to {resized} and cut to {cut}: no part of that shape, which is not done")
    return {
        "size": cut,
        "interpolation": way,
        "resize_mode": "cover" if covers else "stretch",
        "crop_pct": share * max(shares),
    }


def _from_timm(told: dict[str, Any]) -> dict[str, Any]:
    told = TIMM | {key: value for key, value in told.items() if value is not None}
    found = {"mean": _scalar_or_tuple(_numbers(told, "mean")), "std": _scalar_or_tuple(_numbers(told, "std"))}
    if "input_size" not in told:
        return found
    if not isinstance(told["input_size"], list) or len(told["input_size"]) != 3:
        raise UsageError(f"'input_size' is {told['input_size']!r}, not channels, rows and columns")
    way, mode = told["interpolation"], told["crop_mode"]
    way = "bilinear" if way == "random" else way  # of training, there
    for key, given, legal in (("interpolation", way, RESAMPLINGS.values()), ("crop_mode", mode, MODES)):
        if given not in legal:
            raise UsageError(f"{key!r} is {given!r}; legal: {', '.join(legal)}")
    share = _number(told, "crop_pct")
    plane = _rows_and_columns(told["input_size"][1:], "input_size")
    return found | {"size": plane, "interpolation": way, "resize_mode": MODES[mode], "crop_pct": share}


def _number(told: dict[str, Any], key: str) -> float:
    """A number above 0. Raises UsageError for another thing."""
    given = told[key]
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise UsageError(f"{key!r} is {given!r}, not a number above 0")
    return float(given)


def _numbers(told: dict[str, Any], key: str) -> list[float]:
    """Numbers, of which a file may hold a single one. Raises UsageError for another thing."""
    given = told[key]
    found = given if isinstance(given, list) and given else [given]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in found):
        raise UsageError(f"{key!r} is {given!r}, not numbers")
    return found


def _scalar_or_tuple(numbers: Any) -> float | tuple[float, ...]:
    """One number where there is one, as a knob has it."""
    several = tuple(float(x) for x in np.atleast_1d(numbers))
    return several if len(several) > 1 else several[0]


def _rows_and_columns(size: Any, key: str) -> tuple[int, int]:
    """Rows and columns, of a number, a list, or by their names. Raises UsageError for another thing."""
    both = [size.get("height"), size.get("width")] if isinstance(size, dict) else size
    both = [both, both] if isinstance(both, int) else both
    if not isinstance(both, list) or len(both) != 2 or not all(type(n) is int and n > 0 for n in both):
        raise UsageError(f"{key!r} is {size!r}, not rows and columns")
    return both[0], both[1]
