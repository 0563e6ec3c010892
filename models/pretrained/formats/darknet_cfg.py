"""Reads and writes Darknet's .cfg files, which describe a network as sections of settings.

Every setting must be known: settings of the computation are read or must have the value that Canon supports; settings
of Darknet's training are ignored. Errors give file and line.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from documents import reject_lfs_pointer
from errors import UsageError, quote, unknown
from models.blocks.vision import darknet
from models.blocks.vision.darknet import ACTIVATIONS, Conv, Head, Layer, MaxPool, Reorg, Route, Shortcut, Upsample
from models.core.types import Fields
from models.families.yolo import Config

T = TypeVar("T")
ALIASES = {"network": "net", "conv": "convolutional", "max": "maxpool", "conn": "connected", "avg": "avgpool"} | {
    "soft": "softmax"
}
SECTIONS = (  # some of them are not layers of a detector: they are only parsed
    *("net", "convolutional", "maxpool", "route", "shortcut", "upsample", "reorg", "yolo", "region"),
    *("connected", "avgpool", "dropout", "softmax", "crop", "cost", "local", "detection", "batchnorm"),
)
_LAYERWISE = "stopbackward onlyforward learning_rate dont_update burnin_update train_only_bn grad_centr smooth".split()
TRAINING = {  # settings of Darknet's training, which are ignored
    **dict.fromkeys(SECTIONS, _LAYERWISE),
    "net": (
        "batch subdivisions momentum decay adam B1 B2 eps learning_rate burn_in max_batches policy step steps scales "
        "power gamma angle saturation exposure hue aspect max_crop min_crop max_ratio min_ratio center flip letter_box "
        "mosaic mosaic_bound cutmix mixup blur gaussian_noise clip resize_step label_smooth_eps adversarial_lr "
        "contrastive contrastive_jit_flip contrastive_color unsupervised loss_scale dynamic_minibatch ema_alpha "
        "learning_rate_min batches_per_cycle batches_cycle_mult seq_scales max_chart_loss workspace_size_limit_MB "
        "optimized_memory use_cuda_graph try_fix_nan weights_reject_freq equidistant_point augment_speed "
        "badlabels_rejection_percentage num_sigmas_reject_badlabels badlabels_reject_threshold"
    ).split(),
    "yolo": (
        "jitter random max truth_thresh map resize iou_loss iou_thresh iou_thresh_kind iou_normalizer obj_normalizer "
        "cls_normalizer delta_normalizer max_delta focal_loss label_smooth_eps objectness_smooth counters_per_class "
        "show_details beta_nms"  # read with nms_kind=diounms only
    ).split()
    + _LAYERWISE,
    "region": (
        "jitter random max log bias_match rescore absolute object_scale noobject_scale class_scale coord_scale "
        "mask_scale focal_loss counters_per_class"
    ).split()
    + _LAYERWISE,
}
FIXED: dict[str, dict[str, tuple[float, float]]] = {  # setting -> its default, and the only supported value
    "convolutional": dict(groups=(1, 1), dilation=(1, 1), binary=(0, 0), xnor=(0, 0), flipped=(0, 0)),
    "upsample": dict(scale=(1, 1)),
    "reorg": dict(reverse=(0, 0), extra=(0, 0), flatten=(0, 0)),
    "yolo": dict(scale_x_y=(1, 1), new_coords=(0, 0)),
    "region": dict(coords=(4, 4), softmax=(0, 1)),
}
GREEDY = ("default", "greedynms")  # the non-maximum suppression of models/blocks/vision/boxes.py
OUR_LOSS = {  # settings of [region] for the loss of train/tasks/detection.py
    **dict(bias_match=1, rescore=1, absolute=1),
    **dict(object_scale=5, noobject_scale=1, class_scale=1, coord_scale=1),
}


@dataclass
class Section:
    """A section: its kind, file and line, its settings as (text, line), and the settings that were read."""

    kind: str
    file: Path
    line: int
    settings: dict[str, tuple[str, int]] = field(default_factory=dict)
    read_keys: set[str] = field(default_factory=set)

    def error(self, says: str, key: str = "") -> UsageError:
        """A UsageError with the line of the section, or of one of its settings."""
        return UsageError(f"{self.file}:{self.settings[key][1] if key in self.settings else self.line}: {says}")

    def quoted(self, key: str) -> str:
        """The text of a setting, escaped for a message."""
        return quote(self.settings[key][0])[1:-1]

    def take(self, key: str, kind: Callable[[str], T], default: T, least: float | None = None) -> T:
        """A setting, converted by `kind`. Raises UsageError for a text that is no such value, or below `least`."""
        self.read_keys.add(key)
        if key not in self.settings:
            return default
        text = self.settings[key][0]
        try:
            value = kind(text)
        except ValueError:
            raise self.error(f"{key} = {self.quoted(key)} must be {_KINDS[kind]}", key) from None
        if least is not None and not value >= least:  # type: ignore[operator]
            raise self.error(f"{key} = {self.quoted(key)} must be {least} or more", key)
        return value

    def build(self, make: Callable[..., T], *args: Any) -> T:
        """make(*args), with the section's line in a UsageError."""
        try:
            return make(*args)
        except UsageError as error:
            raise self.error(str(error)) from None

    def refuse_unread(self) -> None:
        """Raise UsageError for a setting that is unknown, or has an unsupported value."""
        for key, (default, supported) in FIXED.get(self.kind, {}).items():
            if self.take(key, float, default) != supported:
                raise self.error(f"[{self.kind}] is supported only with {key} = {supported:g}", key)
        known = {*self.read_keys, *TRAINING.get(self.kind, ())}
        for key in self.settings:
            if key not in known:
                raise self.error(str(unknown(f"setting of [{self.kind}]", key, known)), key)


def integers(text: str) -> tuple[int, ...]:
    """`6,7,8` -> (6, 7, 8)."""
    return tuple(int(part) for part in text.removesuffix(",").split(","))


def floats(text: str) -> tuple[float, ...]:
    """`10,13, 16.5,30` -> (10.0, 13.0, 16.5, 30.0)."""
    return tuple(float(part) for part in text.removesuffix(",").split(","))


_KINDS: dict[Callable[[str], object], str] = {
    **{int: "an integer", float: "a number", str: "a text"},
    **{integers: "a list of integers", floats: "a list of numbers"},
}


def sections(file: str | Path) -> list[Section]:
    """The sections of a file, of any of Darknet's networks, without comments, which begin with # or ;.

    If a section has a key more than once, the first value counts, as in Darknet's `option_find`.
    Raises UsageError with the line of the first mistake.
    """
    file = Path(file)
    found = list[Section]()
    reject_lfs_pointer(file)
    try:
        text = file.read_bytes().decode("utf-8-sig", errors="replace")  # comments have any encoding
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    for n, raw in enumerate(re.split("\r\n?|\n", text), 1):
        line = "".join(re.split("[#;]", raw)[0].split())
        if not line:
            continue
        if line[0] == "[":
            kind = line.strip("[]").lower()
            if ALIASES.get(kind, kind) not in SECTIONS or line[-1] != "]":
                raise UsageError(f"{file}:{n}: {unknown('section', line.strip('[]'), SECTIONS)}")
            found.append(Section(ALIASES.get(kind, kind), file, n))
            continue
        key, equals, value = line.partition("=")
        if not (key and equals and value):
            raise UsageError(f"{file}:{n}: {quote(raw.strip())} is no setting; it must be key = value")
        if not found:
            raise UsageError(f"{file}:{n}: {key} is set before the first section")
        found[-1].settings.setdefault(key, (value, n))
    if not found or found[0].kind != "net":
        raise UsageError(f"{file} must begin with [net]")
    return found


def fields(file: str | Path) -> Fields:
    """The fields of a detector's Config from a file. Raises UsageError with the line of the first mistake."""
    net, *rest = sections(file)
    Y, X, C = (net.take(key, int, 0, least=1) for key in ("height", "width", "channels"))
    net.refuse_unread()
    if not Y * X * C:
        raise net.error("[net] must have height, width and channels")
    layers: list[Layer] = []
    common: Fields = {}
    for at, section in enumerate(rest):
        if section.kind not in _LAYERS:
            raise section.error(f"[{section.kind}] is no layer of a detector; legal: {', '.join(_LAYERS)}")
        if section.kind not in ("yolo", "region"):
            layers.append(_LAYERS[section.kind](section, at))
            section.refuse_unread()
            _output_sizes(section, layers, (Y, X, C), common)
            continue
        head, settings = _head(section)
        if common and section.kind == "region":
            raise section.error("[region] must be the only head")
        if common and settings != common:
            names = ", ".join(key for key in settings if settings[key] != common[key])
            raise section.error(f"all heads must agree; this one differs from the first in {names}")
        common = settings
        before = layers[-1:]
        filters = len(head.mask) * (5 + settings["classes"])
        if before and isinstance(before[0], Conv):
            if before[0].filters != filters:
                raise rest[at - 1].error(f"filters = {before[0].filters} must be {filters}, for the head after it")
            layers[-1] = replace(before[0], filters=None)
        layers.append(head)
        shapes = _output_sizes(section, layers, (Y, X, C), common)
        if section.kind == "region":  # its anchors are in cells
            stride = Y // shapes[-1][0]
            common["anchors"] = tuple((stride * w, stride * h) for w, h in common["anchors"])
    if not common:
        raise UsageError(f"{file} is no detector: it has neither [yolo] nor [region]")
    stride = darknet.total_stride(tuple(layers))
    for key, side in (("height", Y), ("width", X)):
        if side % stride:
            raise net.error(f"{key} = {side} must be a multiple of {stride}, the network's stride", key)
    return {"layers": tuple(layers), "inputs": (Y, X, C), **common}


def _output_sizes(section: Section, layers: list[Layer], image: darknet.Size, common: Fields) -> list[darknet.Size]:
    """The sizes of the outputs so far. Raises UsageError, with the section's line, for an impossible layer."""
    return section.build(darknet.sizes, tuple(layers), image, 5 + common.get("classes", 0))


def _activation(section: Section, default: str) -> str:
    name = section.take("activation", str, default)
    if name not in ACTIVATIONS:
        raise section.error(str(unknown("activation", name, ACTIVATIONS)), "activation")
    return name


def _conv(section: Section, at: int) -> Conv:
    filters, size, stride = (section.take(key, int, 1, least=1) for key in ("filters", "size", "stride"))
    padding = section.take("padding", int, 0, least=0)
    padding = size // 2 if section.take("pad", int, 0) else padding
    norm = bool(section.take("batch_normalize", int, 0))
    activation = _activation(section, "logistic")
    return Conv(filters, size, stride, norm, activation, None if padding == size // 2 else padding)


def _maxpool(section: Section, at: int) -> MaxPool:
    stride = section.take("stride", int, 1, least=1)
    size = section.take("size", int, stride, least=1)
    if (padding := section.take("padding", int, size - 1)) != size - 1:
        raise section.error(
            f"[maxpool] is supported only with padding = size - 1 = {size - 1}, not {padding}", "padding"
        )
    return MaxPool(size, stride)


def _route(section: Section, at: int) -> Route:
    named = _sources(section, at, "layers")
    groups = section.take("groups", int, 1, least=1)
    group = section.take("group_id", int, 0, least=0)
    return section.build(Route, named, groups, group)


def _shortcut(section: Section, at: int) -> Shortcut:
    named = _sources(section, at, "from")
    if len(named) > 1:
        raise section.error(f"[shortcut] adds one layer, not {len(named)}", "from")
    return Shortcut(named[0], _activation(section, "linear"))


def _sources(section: Section, at: int, key: str) -> tuple[int, ...]:
    if key not in section.settings:
        raise section.error(f"[{section.kind}] must have {key}")
    named = section.take(key, integers, tuple[int, ...]())
    if any(not -at <= i < at for i in named):
        raise section.error(f"layer {at} can take layers from {-at} to {at - 1}, not {section.quoted(key)}", key)
    return named


_LAYERS: dict[str, Callable[[Section, int], Layer]] = {
    "convolutional": _conv,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": lambda section, at: Upsample(section.take("stride", int, 2, least=1)),
    "reorg": lambda section, at: Reorg(section.take("stride", int, 1, least=1)),
    "yolo": lambda section, at: _head(section)[0],
    "region": lambda section, at: _head(section)[0],
}


def _head(section: Section) -> tuple[Head, Fields]:
    """A head, and the fields that must be equal in all heads."""
    classes = section.take("classes", int, 20, least=1)
    count = section.take("num", int, 1, least=1)
    if "anchors" not in section.settings:
        raise section.error(f"[{section.kind}] must have anchors")
    flat = section.take("anchors", floats, tuple[float, ...]())
    if len(flat) != 2 * count:
        raise section.error(f"num = {count} anchors need {2 * count} numbers, not {len(flat)}")
    if not all(0 < side < math.inf for side in flat):
        raise section.error(f"anchors = {section.quoted('anchors')} must be positive", "anchors")
    mask = tuple(range(count))
    mask = section.take("mask", integers, mask) if section.kind == "yolo" else mask
    if any(i not in range(count) for i in mask):
        raise section.error(f"mask must name anchors from 0 to {count - 1}, not {quote(mask)}", "mask")
    if (suppression := section.take("nms_kind", str, GREEDY[0])) not in GREEDY:
        raise section.error(f"nms_kind = {suppression} is not supported; legal: {', '.join(GREEDY)}", "nms_kind")
    overlap = "ignore_thresh" if section.kind == "yolo" else "thresh"
    ignore = section.take(overlap, float, 0.5)
    if not 0 <= ignore <= 1:
        raise section.error(f"{overlap} = {ignore} must be from 0 to 1", overlap)
    section.refuse_unread()
    anchors = tuple(zip(flat[::2], flat[1::2], strict=True))
    return Head(mask), dict(anchors=anchors, head=section.kind, classes=classes, ignore_thresh=ignore)


def to_text(c: Config) -> str:
    """The text of a .cfg file for a Config of family yolo."""
    shapes = darknet.sizes(c.layers, c.image, 5 + c.classes)
    parts: list[tuple[str, dict[str, object]]] = [
        ("net", dict(zip(("height", "width", "channels"), c.inputs, strict=True)))
    ]
    for at, layer in enumerate(c.layers):
        stride = c.inputs[0] // shapes[at][0]
        parts.append(_settings(layer, shapes[at][2], stride, c))
    blocks = []
    for kind, settings in parts:
        lines = [f"{key}={_format_value(value)}" for key, value in settings.items()]
        blocks.append("\n".join([f"[{kind}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _settings(layer: Layer, channels: int, stride: int, c: Config) -> tuple[str, dict[str, object]]:
    match layer:
        case Conv():
            norm = {"batch_normalize": 1} if layer.norm else {}
            sides = dict(filters=channels, size=layer.size, stride=layer.stride, padding=layer.pad_pixels)
            return "convolutional", {**norm, **sides, "activation": layer.activation}
        case MaxPool():
            return "maxpool", dict(size=layer.size, stride=layer.stride)
        case Route():
            groups = dict(groups=layer.groups, group_id=layer.group) if layer.groups > 1 else {}
            return "route", dict(layers=layer.sources, **groups)
        case Shortcut():
            return "shortcut", {"from": layer.source, "activation": layer.activation}
        case Upsample():
            return "upsample", dict(stride=layer.stride)
        case Reorg():
            return "reorg", dict(stride=layer.stride)
    unit = stride if c.head == "region" else 1
    pairs = [c.anchors[i] for i in layer.mask] if c.head == "region" else c.anchors  # [region] has no mask
    anchors = [side / unit for pair in pairs for side in pair]
    common: dict[str, object] = dict(anchors=anchors, num=len(pairs), classes=c.classes)
    if c.head == "yolo":
        return "yolo", {"mask": layer.mask, **common, "ignore_thresh": c.ignore_thresh, "truth_thresh": 1}
    return "region", {
        **common,
        "thresh": c.ignore_thresh,
        **{key: supported for key, (_, supported) in FIXED["region"].items()},
        **OUR_LOSS,
    }


def _format_value(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_format_value, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
