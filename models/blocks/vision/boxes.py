"""Boxes: intersection over union (IoU), and non-maximum suppression.

A box is (x, y, w, h): its centre and its size, relative to the image.
Legend: N, M boxes, C classes, K detections.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MIN_UNION = 1e-12  # instead of 0, the union of two empty boxes


def cxcywh_to_xyxy(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """(x, y, w, h) -> (left, top, right, bottom): [... 4] -> [... 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def paired_iou(a: Float[Array, "*n 4"], b: Float[Array, "*m 4"]) -> Float[Array, "*k"]:
    """IoU of boxes pair by pair: [... 4], [... 4] -> [...]; 0 where both are empty."""
    corners_a, corners_b = cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)
    sides = jnp.minimum(corners_a[..., 2:], corners_b[..., 2:]) - jnp.maximum(corners_a[..., :2], corners_b[..., :2])
    intersection = jnp.prod(jnp.maximum(sides, 0), -1)
    union = jnp.prod(a[..., 2:], -1) + jnp.prod(b[..., 2:], -1) - intersection
    return intersection / jnp.maximum(union, MIN_UNION)


def box_iou(a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"]) -> Float[Array, "*b n m"]:
    """IoU of each box of a with each box of b: [... N 4], [... M 4] -> [... N M]."""
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n c"],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Float[Array, "k 4"], Float[Array, "k"], Int[Array, "k"], Bool[Array, "k"]]:
    """Greedy non-maximum suppression, class by class.

    boxes [N 4], scores [N C] -> boxes [K 4], scores [K], classes [K], valid [K]: at most K = `max_detections` of all
    classes together, with scores above `score_threshold`, in descending order. No box overlaps a better one of its
    class by an IoU above `iou_threshold`. No candidates are dropped beforehand: each of K rounds takes the best
    remaining box, and removes those of its class that overlap it. Entries that are not valid are 0.
    """
    classes = scores.shape[1]

    def take_best(remaining: Array, _: None) -> tuple[Array, tuple[Array, ...]]:
        best = jnp.argmax(remaining)  # the first of equals
        box, label = boxes[best // classes], best % classes
        score = remaining.reshape(-1)[best]
        overlaps = paired_iou(boxes, box[None]) > iou_threshold
        overlaps |= jnp.arange(len(boxes)) == best // classes  # an empty box has an IoU of 0 with itself
        removed = overlaps[:, None] & (jnp.arange(classes) == label)[None]
        return jnp.where(removed, -jnp.inf, remaining), (box, score, label.astype(jnp.int32), score > score_threshold)

    _, (kept, kept_scores, labels, valid) = jax.lax.scan(take_best, scores, None, max_detections)
    return jnp.where(valid[:, None], kept, 0), jnp.where(valid, kept_scores, 0), jnp.where(valid, labels, 0), valid
