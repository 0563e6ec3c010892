"""Boxes: overlap, and the suppression of those that tell of one thing twice.

A box is (x, y, w, h): its centre and its size, as shares of the image's.
Legend: N, M boxes, C classes, K boxes kept.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MIN_UNION = 1e-12  # what an empty union is taken for


def cxcywh_to_xyxy(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """(x, y, w, h) -> (left, top, right, bottom): [... 4] -> [... 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def paired_iou(a: Float[Array, "*n 4"], b: Float[Array, "*m 4"]) -> Float[Array, "*k"]:
    """Intersection over union of each box with its fellow: [... 4], [... 4] -> [...]; 0 where both are empty."""
    one, two = cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)
    sides = jnp.minimum(one[..., 2:], two[..., 2:]) - jnp.maximum(one[..., :2], two[..., :2])
    inside = jnp.prod(jnp.maximum(sides, 0), -1)
    return inside / jnp.maximum(jnp.prod(a[..., 2:], -1) + jnp.prod(b[..., 2:], -1) - inside, MIN_UNION)


def box_iou(a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"]) -> Float[Array, "*b n m"]:
    """Intersection over union of each box with each: [... N 4], [... M 4] -> [... N M]."""
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n c"],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Float[Array, "k 4"], Float[Array, "k"], Int[Array, "k"], Bool[Array, "k"]]:
    """The best boxes of each class, none of which overlaps a better one of its class by more than `iou_threshold`.

    boxes [N 4], scores [N C] -> boxes [K 4], scores [K], classes [K], valid [K]: at most K = `max_detections` of all
    classes together, with scores above the threshold, in descending order. Nothing is cut off before: each of K rounds
    takes the best remaining box, and removes what overlaps it.
    """
    classes = scores.shape[1]

    def round_(left: Array, _: None) -> tuple[Array, tuple[Array, ...]]:
        best = jnp.argmax(left)  # of equals the first
        box, kind = boxes[best // classes], best % classes
        score = left.reshape(-1)[best]
        again = paired_iou(boxes, box[None]) > iou_threshold
        again |= jnp.arange(len(boxes)) == best // classes  # an empty box overlaps nothing, itself neither
        gone = again[:, None] & (jnp.arange(classes) == kind)[None]
        return jnp.where(gone, -jnp.inf, left), (box, score, kind.astype(jnp.int32), score > score_threshold)

    _, found = jax.lax.scan(round_, scores, None, max_detections)
    valid = found[3]
    return jnp.where(valid[:, None], found[0], 0), jnp.where(valid, found[1], 0), jnp.where(valid, found[2], 0), valid
