"""Image preprocessing of pretrained models: reads and writes preprocessor_config.json (hub) and timm's pretrained_cfg.

Keys that a file of the hub lacks have the defaults of its image processor. A size of one number is a square or the
shorter side, depending on that processor.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from documents import Json, read_settings
from errors import UsageError

FILE = "preprocessor_config.json"
HALF: Json = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP: Json = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
CENTER_CROP: Json = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3}
DEFAULTS: Json = {  # for keys that neither a file nor its processor sets
    **{"do_normalize": True, "image_mean": 0.0, "image_std": 1.0, "do_rescale": True, "rescale_factor": 1 / 255},
    **{"do_resize": True, "resample": 2, "do_center_crop": False, "crop_pct": 0.875},
}
PROCESSORS: dict[str, Json] = {  # by prefix of the name; a size's keys say what a size of one number means
    "ConvNext": HALF | {"size": {"shortest_edge": 384}, "resample": 3},
    "Bit": CLIP | CENTER_CROP,
    "CLIP": CLIP | CENTER_CROP,
    "DeiT": HALF | CENTER_CROP | {"size": {"height": 256, "width": 256}},
    "ViT": HALF | {"size": {"height": 224, "width": 224}, "resample": 2},
}
WARP_SIZE = 384  # from this size on ConvNext's processor stretches instead of cropping
TIMM: Json = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
MODES = {"center": "cover", "squash": "stretch"}  # timm's crop_mode -> data.resize_mode
Settings = dict[str, Any]  # by the names of data's knobs
RESAMPLINGS: dict[int | str, str] = {filter_.value: filter_.name.lower() for filter_ in Image.Resampling}


def from_folder(folder: str | Path) -> Settings:
    """Settings by the names of data's knobs: mean, std, size (rows, columns), crop_pct, resize_mode, interpolation.

    Unknown settings are absent. Raises UsageError for a file that cannot be read, and for preprocessing that Canon does
    not have.
    """
    own, other = Path(folder) / FILE, Path(folder) / "config.json"
    settings = _read(own)
    timm = _read(other).get("pretrained_cfg")
    try:
        return _from_hub(settings) if settings else _from_timm(timm) if isinstance(timm, dict) else {}
    except UsageError as error:
        raise UsageError(f"{own if settings else other}: {error}") from None


def is_expressible(settings: Settings) -> bool:
    """Whether a preprocessor_config.json can express the resizing: all but covering a size that is not square."""
    return (
        "size" not in settings or settings.get("resize_mode") == "stretch" or settings["size"][0] == settings["size"][1]
    )


def write(folder: str | Path, settings: Settings, channels: int) -> None:
    """Write settings as a preprocessor_config.json for images of `channels`; without a size if not expressible."""
    sized = "size" in settings and is_expressible(settings)
    found: Json = {
        "image_processor_type": "BitImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _per_channel(settings.get("mean", 0.0), channels),
        "image_std": _per_channel(settings.get("std", 1.0), channels),
        "do_convert_rgb": channels == 3,
        "do_resize": sized,
        "do_center_crop": sized,
    }
    if sized:
        rows, columns = (math.floor(side / settings.get("crop_pct", 1.0) + 1e-6) for side in settings["size"])
        stretches = settings.get("resize_mode") == "stretch"
        found["size"] = {"height": rows, "width": columns} if stretches else {"shortest_edge": rows}
        found["crop_size"] = dict(zip(("height", "width"), settings["size"], strict=True))
        numbers = {name: value for value, name in RESAMPLINGS.items()}
        found["resample"] = numbers[settings.get("interpolation", "bilinear")]
    (Path(folder) / FILE).write_text(json.dumps(found, indent=2) + "\n")


def timm_keys(settings: Settings, channels: int) -> Json:
    """Settings as the pretrained_cfg of timm's config.json, which takes 224 x 224 if there is no size."""
    modes = {ours: theirs for theirs, ours in MODES.items()}
    found = {
        "mean": _per_channel(settings.get("mean", 0.0), channels),
        "std": _per_channel(settings.get("std", 1.0), channels),
        "interpolation": settings.get("interpolation", "bilinear"),
        "crop_mode": modes[settings.get("resize_mode", "cover")],
        "crop_pct": settings.get("crop_pct", 1.0),
    }
    return {"pretrained_cfg": found | ({"input_size": [channels, *settings["size"]]} if "size" in settings else {})}


def _per_channel(given: float | Sequence[float], channels: int) -> list[float]:
    """One number per channel."""
    return [float(x) for x in np.broadcast_to(np.asarray(given, float), (channels,))]


def _read(file: Path) -> Json:
    return read_settings(file) if file.is_file() else {}


def _from_hub(settings: Json) -> Settings:
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    name = next((n for n in PROCESSORS if kind.startswith(n)), "ConvNext" if "crop_pct" in settings else None)
    own = PROCESSORS[name] if name else {}
    given = {key: value for key, value in settings.items() if value is not None or key.startswith("do_")}
    settings = DEFAULTS | own | given
    moments = settings if settings["do_normalize"] else DEFAULTS
    mean, deviation = (np.asarray(_numbers(moments, key)) for key in ("image_mean", "image_std"))
    scale = 255 * _number(settings, "rescale_factor") if settings["do_rescale"] else 255.0
    scale = 1.0 if math.isclose(scale, 1) else scale  # the processor's pixels are in [0, scale] before normalisation
    found = {"mean": _scalar_or_tuple(mean / scale), "std": _scalar_or_tuple(deviation / scale)}
    if not settings["do_resize"] or "size" not in settings:
        return found
    return found | _resize_and_crop(settings, name == "ConvNext", "shortest_edge" in own.get("size", {}))


def _resize_and_crop(settings: Json, warps: bool, shorter: bool) -> Settings:
    """Size and crop; `warps`: ConvNext's processor; `shorter`: a size of one number is the shorter side's."""
    size = settings["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size} if shorter else size
    covers = isinstance(size, dict) and "shortest_edge" in size
    resized = _rows_and_columns(size["shortest_edge"] if covers else size, "size")
    resample = settings["resample"]
    interpolation = RESAMPLINGS.get(resample, resample) if isinstance(resample, int | str) else resample
    if interpolation not in RESAMPLINGS.values():
        legal = ", ".join(f"{number} {name}" for number, name in RESAMPLINGS.items())
        raise UsageError(f"'resample' is {interpolation!r}; legal: {legal}")
    covers &= not (warps and resized[0] >= WARP_SIZE)
    crop_pct = _number(settings, "crop_pct") if warps and covers else 1.0
    cropped = resized
    if settings["do_center_crop"] and "crop_size" in settings:
        cropped = _rows_and_columns(settings["crop_size"], "crop_size")
    ratios = {c / r for c, r in zip(cropped, resized, strict=True)}
    if max(ratios) > 1 or len(ratios) > 1:
        raise UsageError(
            f"images are resized to {resized} and cropped to {cropped}; the crop must be smaller, of the same shape"
        )
    return {
        "size": cropped,
        "interpolation": interpolation,
        "resize_mode": "cover" if covers else "stretch",
        "crop_pct": crop_pct * max(ratios),
    }


def _from_timm(settings: Json) -> Settings:
    settings = TIMM | {key: value for key, value in settings.items() if value is not None}
    found = {"mean": _scalar_or_tuple(_numbers(settings, "mean")), "std": _scalar_or_tuple(_numbers(settings, "std"))}
    if "input_size" not in settings:
        return found
    if not isinstance(settings["input_size"], list) or len(settings["input_size"]) != 3:
        raise UsageError(f"'input_size' is {settings['input_size']!r}; it must be channels, rows and columns")
    interpolation = settings["interpolation"]
    mode = settings["crop_mode"]
    interpolation = "bilinear" if interpolation == "random" else interpolation  # random is for training
    for key, given, legal in (("interpolation", interpolation, RESAMPLINGS.values()), ("crop_mode", mode, MODES)):
        if given not in legal:
            raise UsageError(f"{key!r} is {given!r}; legal: {', '.join(legal)}")
    crop_pct = _number(settings, "crop_pct")
    size = _rows_and_columns(settings["input_size"][1:], "input_size")
    return found | {"size": size, "interpolation": interpolation, "resize_mode": MODES[mode], "crop_pct": crop_pct}


def _number(settings: Json, key: str) -> float:
    """A number above 0. Raises UsageError for another value."""
    given = settings[key]
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise UsageError(f"{key!r} is {given!r}; it must be a number above 0")
    return float(given)


def _numbers(settings: Json, key: str) -> list[float]:
    """A list of numbers, from a list or a single number. Raises UsageError for another value."""
    given = settings[key]
    found = given if isinstance(given, list) and given else [given]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in found):
        raise UsageError(f"{key!r} is {given!r}; it must be a number or a list of numbers")
    return found


def _scalar_or_tuple(numbers: np.ndarray | list[float]) -> float | tuple[float, ...]:
    """A single number as a float, several as a tuple, as in knobs."""
    several = tuple(float(x) for x in np.atleast_1d(numbers))
    return several if len(several) > 1 else several[0]


def _rows_and_columns(size: object, key: str) -> tuple[int, int]:
    """Rows and columns, from a number, a list, or height and width. Raises UsageError for another value."""
    both = [size.get("height"), size.get("width")] if isinstance(size, dict) else size
    both = [both, both] if isinstance(both, int) else both
    if not isinstance(both, list) or len(both) != 2 or not all(type(n) is int and n > 0 for n in both):
        raise UsageError(f"{key!r} is {size!r}; it must be rows and columns")
    return both[0], both[1]
