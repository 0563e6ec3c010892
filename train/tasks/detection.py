"""The loss of a detector: the assignment of predictions to boxes, and its terms.

A batch has `boxes` [B M 4] (x, y, w, h relative to the image), `box_labels` [B M], `box_mask` [B M] and `weight` [B].
Boxes without area are ignored. The loss has the gradients that Darknet writes by hand: where Darknet uses the
difference of prediction and target, the loss is the cross-entropy less the target's entropy, or half the square.
Legend: B batch, M boxes of an image, N predictions of all grids, A anchors of all grids, C classes.
Source: Redmon, Farhadi 2016, arXiv:1612.08242, section 2; 2018, arXiv:1804.02767, sections 2.1 to 2.3; Darknet's region
and yolo layers. Deviations: v2's first 12,800 images do not pull boxes to their anchors; an anchor in two grids belongs
to the first; a box is assigned to the best of the anchors that heads use, also if an unused anchor matches better,
where Darknet learns nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.blocks.vision.boxes import box_iou, paired_iou
from models.blocks.vision.detection_head import DetectorOutput, anchor_grid, concat_maps, decode_boxes, detections
from train.tasks.forward import Batch, WeightedSums
from train.tasks.task import SingleForwardTask

MIN_SCORE, NMS_IOU, MAX_DETECTIONS = (
    0.005,
    0.45,
    100,
)  # a detector's least score, overlap of one class, and boxes, as in Darknet
OBJECT_WEIGHT = 5.0  # v2's weight of the objectness loss of assigned predictions; 1 for the others


@dataclass(frozen=True)
class Detection(SingleForwardTask):
    """Detection of boxes and their classes."""

    output_kind, target_field, unit = "detector", "boxes", "nats"

    def terms(self, value: DetectorOutput, batch: Batch) -> WeightedSums:
        """Loss in nats per image with its parts, and IoU."""
        return detection(value, batch)

    def predictions(self, value: DetectorOutput, batch: Batch) -> dict[str, Array]:
        """`prediction` [B MAX_DETECTIONS 6]: boxes, scores (0: no box) and classes."""
        boxes, scores, kinds, _ = detections(value, MIN_SCORE, NMS_IOU, MAX_DETECTIONS)
        return {"prediction": jnp.concatenate([boxes, scores[..., None], kinds[..., None].astype(boxes.dtype)], -1)}


class Assignment(NamedTuple):
    """The prediction that is assigned to each box, [B M ...]."""

    slot: Int[Array, "b m"]  # index among the predictions of an image
    cell: Float[Array, "b m 2"]  # column, row
    grid_size: Float[Array, "b m 2"]  # columns, rows of the grid
    anchor: Float[Array, "b m 2"]
    shares_slot: Bool[Array, "b m m2"]  # whether two real boxes have the same slot
    responsible: Float[Array, "b m"]  # 1 for a real box that is the last one with its slot


def assign_predictions(value: DetectorOutput, boxes: Float[Array, "b m 4"], box_mask: Bool[Array, "b m"]) -> Assignment:
    """Assign each box the prediction in its centre's cell with the anchor most similar in shape -> [B M ...].

    If several boxes share a prediction, it learns the last one, as in Darknet.
    """
    found, start = [], 0
    for one, anchors in zip(value.maps, value.anchors, strict=True):
        _, Y, X, Q, _ = one.shape
        found += [(start + q, Q, X, Y, *anchor) for q, anchor in enumerate(anchors)]
        start += Y * X * Q
    table = np.array(found, np.float32)  # [A 6]
    shapes = jnp.asarray(np.pad(table[:, 4:], ((0, 0), (2, 0))))  # all centres at 0
    similarity = paired_iou(jnp.where(np.arange(4)[None, None] < 2, 0, boxes)[:, :, None], shapes[None, None])
    best = jnp.argmax(similarity, -1)  # the first of equal ones
    chosen = best[..., None] == jnp.arange(len(table))[None, None]
    row = jnp.sum(jnp.where(chosen[..., None], table[None, None], 0), -2)  # [B M 6]
    cells, anchor = row[..., 2:4], row[..., 4:]
    cell = jnp.clip(jnp.floor(boxes[..., :2] * cells), 0, cells - 1)
    first, count, columns = (row[..., i].astype(jnp.int32) for i in range(3))
    at = cell.astype(jnp.int32)
    slot = first + (at[..., 1] * columns + at[..., 0]) * count
    same = (slot[:, :, None] == slot[:, None, :]) & box_mask[:, :, None] & box_mask[:, None, :]
    later = jnp.any(same & jnp.asarray(np.triu(np.ones((boxes.shape[1],) * 2, bool), 1))[None], -1)
    return Assignment(slot, cell, cells, anchor, same, (box_mask & ~later).astype(jnp.float32))


def detection(value: DetectorOutput, batch: Batch) -> WeightedSums:
    """Detection: loss in nats per image, its parts (box, objectness, class), and the IoU of the assigned predictions.

    The box loss has weight 2 - w*h. Unassigned predictions that overlap a box by more than `ignore` have no objectness
    loss. v3 uses a sigmoid per class, with the labels of all boxes that share the prediction. v2 uses a softmax over
    classes, and squared errors for the box and for the objectness, whose target is the IoU.
    """
    truth = batch["boxes"]
    is_box = (batch["box_mask"] > 0) & (truth[..., 2] > 0) & (truth[..., 3] > 0)
    truth = jnp.where(is_box[..., None], truth, 0.5)
    raw, match = concat_maps(value), assign_predictions(value, truth, is_box)
    mine = jnp.take_along_axis(raw, match.slot[..., None], 1)
    iou = paired_iou(decode_boxes(jax.lax.stop_gradient(mine), match.cell, match.grid_size, match.anchor), truth)

    all_boxes = decode_boxes(jax.lax.stop_gradient(raw), *(jnp.asarray(x)[None] for x in anchor_grid(value)))
    ignored = jnp.where(is_box[:, None, :], box_iou(all_boxes, truth), 0) > value.ignore_iou
    assigned = (match.slot[:, None, :] == jnp.arange(raw.shape[1])[None, :, None]) & is_box[:, None, :]
    unassigned = 1 - jnp.any(ignored | assigned, -1).astype(jnp.float32)

    inside = truth[..., :2] * match.grid_size - match.cell
    size = jnp.log(truth[..., 2:] / match.anchor)
    kind = batch["box_labels"][..., None] == jnp.arange(raw.shape[-1] - 5)[None, None]
    if value.softmax_classes:
        centre = half_squared_error(jax.nn.sigmoid(mine[..., :2]) - inside)
        empty = half_squared_error(jax.nn.sigmoid(raw[..., 4]))
        full = OBJECT_WEIGHT * half_squared_error(jax.nn.sigmoid(mine[..., 4]) - iou)
        classes = -jnp.sum(jnp.where(kind, jax.nn.log_softmax(mine[..., 5:], -1), 0), -1)
    else:
        centre = binary_kl(mine[..., :2], jnp.clip(inside, 0, 1))
        empty, full = jax.nn.softplus(raw[..., 4]), jax.nn.softplus(-mine[..., 4])
        kinds = jnp.any(match.shares_slot[..., None] & kind[:, None], 2).astype(jnp.float32)
        classes = jnp.sum(binary_kl(mine[..., 5:], kinds), -1)
    box = (2 - truth[..., 2] * truth[..., 3]) * jnp.sum(centre + half_squared_error(mine[..., 2:4] - size), -1)

    w, alone = batch["weight"], match.responsible
    parts = {
        "box_loss": jnp.sum(box * alone, -1),
        "objectness_loss": jnp.sum(empty * unassigned, -1) + jnp.sum(full * alone, -1),
        "class_loss": jnp.sum(classes * alone, -1),
    }
    terms = {"loss": (sum(parts.values(), jnp.zeros_like(w)) * w, w)} | {k: (v * w, w) for k, v in parts.items()}
    return terms | {"iou": (jnp.sum(iou * alone, -1) * w, jnp.sum(alone, -1) * w)}


def half_squared_error(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Half the square, whose derivative is x: [...] -> [...]."""
    return 0.5 * jnp.square(x)


def binary_kl(logit: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, "..."]:
    """KL divergence of Bernoulli distributions: logit, target in [0, 1] [...] -> nats [...].

    The minimum is 0, the derivative sigmoid(logit) - target.
    """
    own = jax.scipy.special.xlogy(target, target) + jax.scipy.special.xlog1py(1 - target, -target)
    return jax.nn.softplus(logit) - target * logit + jax.lax.stop_gradient(own)
