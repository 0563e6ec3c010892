"""The head of a detector: its raw maps, and the boxes and scores decoded from them.

Legend: B batch, Y X rows and columns of cells, Q anchors per cell, C classes, N = the Y*X*Q of all maps, K detections.
Source: Redmon, Farhadi 2016, arXiv:1612.08242, figure 3; 2018, arXiv:1804.02767, section 2.1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from models.blocks.vision.boxes import nms
from models.core.types import Leaf

Anchors = tuple[tuple[float, float], ...]  # widths and heights, relative to the image


@struct.dataclass
class DetectorOutput:
    """A map [B Y X Q 5+C] for each scale, float32: logits of x, y, w, h, objectness and classes."""

    maps: tuple[Leaf, ...]
    anchors: tuple[Anchors, ...] = struct.field(pytree_node=False)  # of each map
    softmax_classes: bool = struct.field(pytree_node=False, default=False)  # False: an independent sigmoid per class
    ignore_iou: float = struct.field(pytree_node=False, default=0.5)  # above it a prediction is no negative of the loss


class AnchorGrid(NamedTuple):
    """Cell and anchor of every prediction, in the order of `concat_maps`: float32 [N ...]."""

    cell: np.ndarray  # column and row [N 2]
    grid_size: np.ndarray  # columns and rows of its map [N 2]
    anchor: np.ndarray  # [N 2]


def anchor_grid(value: DetectorOutput) -> AnchorGrid:
    """The cells and anchors of all predictions -> [N ...]."""
    grids = []
    for raw, anchors in zip(value.maps, value.anchors, strict=True):
        shape = raw.shape[1:4]
        row, column, index = np.indices(shape).reshape(3, -1)
        grid_size = np.broadcast_to(shape[1::-1], (row.size, 2))
        grids.append((np.stack([column, row], -1), grid_size, np.array(anchors).reshape(-1, 2)[index]))
    return AnchorGrid(*(np.concatenate(parts).astype(np.float32) for parts in zip(*grids, strict=True)))


def concat_maps(value: DetectorOutput) -> Float[Array, "b n d"]:
    """The predictions of all maps, concatenated -> [B N 5+C]."""
    return jnp.concatenate([raw.reshape(raw.shape[0], -1, raw.shape[-1]) for raw in value.maps], 1)


def decode_boxes(
    raw: Float[Array, "b n d"],
    cell: Float[Array, "c n 2"],
    grid_size: Float[Array, "c n 2"],
    anchor: Float[Array, "c n 2"],
) -> Float[Array, "b n 4"]:
    """The boxes of predictions: raw [B N 5+C]; cell, grid_size, anchor [B or 1, N 2] -> [B N 4]."""
    centre = (cell + jax.nn.sigmoid(raw[..., :2])) / grid_size
    return jnp.concatenate([centre, anchor * jnp.exp(raw[..., 2:4])], -1)


def decode(value: DetectorOutput) -> tuple[Float[Array, "b n 4"], Float[Array, "b n c"], Float[Array, "b n"]]:
    """Boxes [B N 4]; scores [B N C], which are objectness times class probability; and objectness [B N]."""
    raw = concat_maps(value)
    boxes = decode_boxes(raw, *(jnp.asarray(x)[None] for x in anchor_grid(value)))
    objectness = jax.nn.sigmoid(raw[..., 4])
    classes = jax.nn.softmax(raw[..., 5:], -1) if value.softmax_classes else jax.nn.sigmoid(raw[..., 5:])
    return boxes, objectness[..., None] * classes, objectness


def detections(
    value: DetectorOutput, score_threshold: float = 0.25, iou_threshold: float = 0.45, max_detections: int = 100
) -> tuple[Float[Array, "b k 4"], Float[Array, "b k"], Int[Array, "b k"], Bool[Array, "b k"]]:
    """Detections by descending score: boxes [B K 4], scores [B K], classes [B K], valid [B K]; K = `max_detections`.

    Scores are above `score_threshold`. Boxes of a class overlap by an IoU of at most `iou_threshold`. Entries that are
    not valid are 0.
    """
    boxes, scores, _ = decode(value)
    suppress = partial(nms, score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections)
    return jax.vmap(suppress)(boxes, scores)
