"""YOLO: a one-stage detector that predicts boxes and classes on grids of one or several scales.

Legend: B batch, Y X image rows and columns, C classes, Q anchors per cell.
Source: Redmon, Farhadi 2016, "YOLO9000: better, faster, stronger", arXiv:1612.08242 (v2); 2018, "YOLOv3: an incremental
improvement", arXiv:1804.02767 (v3, tables 1 and 3); both as in Darknet's configuration files.
"""

import math
from dataclasses import dataclass
from itertools import chain

import jax.numpy as jnp

from models.blocks.vision import darknet
from models.blocks.vision.darknet import Conv, Head, Layer, MaxPool, Reorg, Route, Shortcut, Upsample
from models.blocks.vision.detection_head import Anchors, DetectorOutput
from models.core.checks import COMPUTE, one_of, positive, probability, refuse
from models.core.spec import Outputs, Place, unsharded
from models.core.types import Array, Fields, Inputs, Specs, Variables

TRAITS = frozenset({"detector", "running_stats", "batch_coupled"})
INPUT = "image"
ZERO_GRAD: dict[str, str] = {}
HEADS = ("yolo", "region")


def _darknet19() -> list[Layer]:
    """Darknet-19 without its last layer (v2, table 6): widths 32 to 1024, 1 x 1 convolutions between 3 x 3 ones."""
    layers: list[Layer] = []
    for i, count in enumerate((1, 1, 3, 3, 5, 5)):
        width = 32 * 2**i
        layers += [MaxPool()] if i else []
        for k in range(count):
            layers.append(Conv(width // 2, 1) if k % 2 else Conv(width))
    return layers


def _darknet53() -> list[Layer]:
    """Darknet-53 without its last layers (v3, table 1): residual blocks and five convolutions of stride 2."""
    layers: list[Layer] = [Conv(32)]
    for i, count in enumerate((1, 2, 8, 8, 4)):
        width = 64 * 2**i
        residual: list[Layer] = [Conv(width // 2, 1), Conv(width), Shortcut(-3)]
        layers += [Conv(width, stride=2), *(count * residual)]
    return layers


def _tiny_backbone() -> list[Layer]:
    """The backbone of the tiny networks: six times a convolution and a pool, then a last convolution."""
    layers: list[Layer] = []
    for i in range(6):
        layers += [Conv(16 * 2**i), MaxPool(2, 2 if i < 5 else 1)]
    return [*layers, Conv(1024)]


def _head(*mask: int) -> list[Layer]:
    return [Conv(None, 1, norm=False, activation="linear"), Head(mask)]


def _upsample_branch(width: int, layer: int) -> list[Layer]:
    """From four layers back, upsampled and concatenated with an earlier layer's finer grid."""
    return [Route((-4,)), Conv(width, 1), Upsample(), Route((-1, layer))]


def _v2() -> tuple[Layer, ...]:
    finer: list[Layer] = [Route((-9,)), Conv(64, 1), Reorg(), Route((-1, -4))]
    return (*_darknet19(), Conv(1024), Conv(1024), *finer, Conv(1024), *_head(0, 1, 2, 3, 4))


def _v3(pyramid: bool = False) -> tuple[Layer, ...]:
    """Three grids; `pyramid` adds spatial pyramid pooling before the first (He et al. 2014, arXiv:1406.4729)."""
    windows: list[Layer] = [MaxPool(5, 1), Route((-2,)), MaxPool(9, 1), Route((-4,)), MaxPool(13, 1)]
    windows += [Route((-1, -3, -5, -6))]
    layers = _darknet53()
    for i, (width, source) in enumerate(((512, None), (256, 61), (128, 36))):
        pair: list[Layer] = [Conv(width, 1), Conv(2 * width)]
        layers += _upsample_branch(width, source) if source else []
        layers += [*pair, Conv(width, 1), *windows, *pair] if pyramid and not i else 2 * pair
        layers += [*pair, *_head(*range(6 - 3 * i, 9 - 3 * i))]
    return tuple(layers)


def _v3_tiny() -> tuple[Layer, ...]:
    finer = [*_upsample_branch(128, 8), Conv(256), *_head(0, 1, 2)]
    return (*_tiny_backbone(), Conv(256, 1), Conv(512), *_head(3, 4, 5), *finer)


def _from_cells(*anchors: tuple[float, float]) -> Anchors:
    """Anchors in pixels from v2's anchors in cells of 32 pixels."""
    return tuple((32 * w, 32 * h) for w, h in anchors)


ANCHORS3 = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
ANCHORS3_TINY = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
ANCHORS2 = _from_cells(
    (0.57273, 0.677385), (1.87446, 2.06253), (3.33843, 5.47434), (7.88282, 3.52778), (9.77052, 9.16828)
)
ANCHORS2_VOC = _from_cells((1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (9.42, 5.11), (16.62, 10.52))

SIZES: dict[str, Fields] = {  # of any input size; published with COCO's 80 classes, or VOC's 20
    "yolov2": dict(layers=_v2(), anchors=ANCHORS2, head="region", ignore_thresh=0.6),
    "yolov2_tiny_voc": dict(
        layers=(*_tiny_backbone(), Conv(1024), *_head(0, 1, 2, 3, 4)),
        anchors=ANCHORS2_VOC,
        head="region",
        ignore_thresh=0.6,
        classes=20,
    ),
    "yolov3": dict(layers=_v3(), anchors=ANCHORS3),
    "yolov3_tiny": dict(layers=_v3_tiny(), anchors=ANCHORS3_TINY),
    "yolov3_spp": dict(layers=_v3(pyramid=True), anchors=ANCHORS3),
}


@dataclass(frozen=True)
class Config:
    """A network of Darknet's layers with one or more heads."""

    layers: tuple[Layer, ...] = _v3_tiny()
    inputs: tuple[int, ...] = (416, 416, 3)  # Y X C
    anchors: tuple[tuple[float, float], ...] = ANCHORS3_TINY  # widths and heights in pixels of the input
    head: str = "yolo"  # yolo: v3's, a sigmoid per class; region: v2's, a softmax over the classes
    classes: int = 80
    ignore_thresh: float = 0.7  # IoU with a true box above which a prediction is no negative; 0.5 in v3's paper
    momentum: float = 0.99  # decay of the running moments per update
    compute: str = "float32"

    def __post_init__(self) -> None:
        positive(self, "inputs", "classes")
        probability(self, "momentum")
        if not 0 <= self.ignore_thresh <= 1:
            refuse(self, "ignore_thresh", "from 0 to 1")
        if not all(map(_is_pair, self.anchors)):
            refuse(self, "anchors", "pairs of positive numbers")
        one_of(self, head=HEADS, compute=COMPUTE)
        if len(self.inputs) != 3:
            refuse(self, "inputs", "three numbers: rows, columns, channels")
        masks = [layer.mask for layer in self.layers if isinstance(layer, Head)]
        used = list(chain(*masks))
        if not used or not all(masks):
            refuse(self, "layers", "of Darknet, with a head that has anchors")
        if max(used) >= len(self.anchors):
            refuse(self, "anchors", f"those that heads name, {sorted(used)}")
        if self.head != "yolo" and len(masks) > 1:
            refuse(self, "head", "yolo where several layers are heads")
        stride = darknet.total_stride(self.layers)
        if any(n % stride for n in self.inputs[:2]):
            refuse(self, "inputs", f"sides that {stride} divides")
        darknet.sizes(self.layers, self.image, 5 + self.classes)

    @property
    def image(self) -> darknet.Size:
        """Rows, columns and channels of the input."""
        Y, X, C = self.inputs
        return Y, X, C


def _is_pair(sides: tuple[float, ...]) -> bool:
    return len(sides) == 2 and all(0 < side < math.inf for side in sides)


def fit(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields that the data determine: `inputs`, from the shape of a row."""
    return {"inputs": shapes["image"]} if "image" in shapes else {}


def specs(c: Config) -> Specs:
    """Specs of the parameters and running moments, by layer number."""
    table = darknet.specs(c.layers, c.image, 5 + c.classes)
    return {part: {"layers": leaves} for part, leaves in table.items()}


def apply(
    variables: Variables,
    inputs: Inputs,
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: None = None,
    place: Place = unsharded,
) -> Outputs:
    """Raw maps of each scale: image [B Y X 3] in [0, 1] -> DetectorOutput of [B Y' X' Q 5+C] float32.

    In training also the new running moments. Raises UsageError where the image is not of the config's size.
    """
    image = inputs["image"]
    if image.shape[1:] != c.inputs:
        refuse(c, "inputs", f"the size of the image, {image.shape[1:]}")
    parts = {part: variables.get(part, {}).get("layers", {}) for part in ("params", "stats")}
    x = image.astype(COMPUTE[c.compute])
    found, stats = darknet.run(c.layers, parts, x, train=train, momentum=c.momentum, place=place)
    Y, X, _ = c.inputs
    maps, anchors = [], []
    for layer, x in zip(c.layers, found, strict=True):
        if isinstance(layer, Head):
            shape = (*x.shape[:3], len(layer.mask), 5 + c.classes)
            rows = place("batch rows columns")
            x = jnp.reshape(x, shape, out_sharding=rows)  # of one row and one anchor it would drop the mesh axis
            maps.append(x.astype(jnp.float32))
            own = [c.anchors[i] for i in layer.mask]
            anchors.append(tuple((w / X, h / Y) for w, h in own))
    value = DetectorOutput(tuple(maps), tuple(anchors), softmax_classes=c.head == "region", ignore_iou=c.ignore_thresh)
    return Outputs(value, stats={"layers": stats})
