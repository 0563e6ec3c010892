"""Boxes, grids and what is kept of them, against numpy and OpenCV."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.vision import boxes, detection_head
from models.blocks.vision.detection_head import DetectorOutput
from tests.support.boxes import draw_boxes, iou_by_hand


def kept_by_hand(found: np.ndarray, scores: np.ndarray, threshold: float, most: float) -> list[tuple[int, int]]:
    """Greedily, class by class; then (box, class) of all classes, the best first."""
    kept = []
    for kind in range(scores.shape[1]):
        mine: list[int] = []
        for i in sorted(np.flatnonzero(scores[:, kind] > threshold), key=lambda i: -scores[i, kind]):
            if all(iou_by_hand(found[i], found[j]) <= most for j in mine):
                mine.append(int(i))
        kept += [(i, kind) for i in mine]
    return sorted(kept, key=lambda pair: -scores[pair])


def test_iou_is_that_of_loops() -> None:
    """Boxes apart, one in another, equal ones, and two without any area."""
    draw = np.random.default_rng(0)
    a, b = draw_boxes(draw, 2, 5), draw_boxes(draw, 2, 4)
    a[0, 0], b[0, 0], b[0, 1], a[1, 1], b[1, 1] = (0.1, 0.1, 0.1, 0.1), (0.9, 0.9, 0.1, 0.1), a[0, 2], 0, 0
    want = [[[iou_by_hand(x, y) for y in b[n]] for x in a[n]] for n in range(2)]
    np.testing.assert_allclose(boxes.box_iou(jnp.asarray(a), jnp.asarray(b)), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(boxes.cxcywh_to_xyxy(jnp.array([0.5, 0.4, 0.2, 0.6])), [0.4, 0.1, 0.6, 0.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("threshold", "most", "limit"), [(0.3, 0.45, 200), (0.0, 0.9, 200), (0.7, 0.1, 200), (0.3, 0.45, 5)]
)
def test_suppression_is_greedy_by_class(threshold: float, most: float, limit: int) -> None:
    """As a loop does it, and class by class as OpenCV does; a limit keeps the best of all classes."""
    draw = np.random.default_rng(1)
    found, scores = draw_boxes(draw, 60), draw.random((60, 3)).astype(np.float32)
    rows, points, kinds, there = jax.jit(boxes.nms, static_argnums=(2, 3, 4))(found, scores, threshold, most, limit)
    want = kept_by_hand(found, scores, threshold, most)[:limit]
    assert int(there.sum()) == len(want)
    for row, score, kind, (i, k) in zip(rows, points, kinds, want, strict=False):
        np.testing.assert_array_equal(row, found[i])
        assert (float(score), int(kind)) == (float(scores[i, k]), k)
    for beyond in (rows, points, kinds):
        assert not np.asarray(beyond)[len(want) :].any()
    if limit < 200:
        return
    cv2 = pytest.importorskip("cv2")
    left_top = np.concatenate([found[:, :2] - found[:, 2:] / 2, found[:, 2:]], 1)
    for kind in range(3):
        kept = cv2.dnn.NMSBoxes(left_top.astype(float).tolist(), scores[:, kind].tolist(), threshold, most)
        assert [i for i, k in want if k == kind] == list(np.ravel(kept))


def test_empty_boxes_are_kept_once() -> None:
    """A box without area does not even overlap itself, and is still found once."""
    found, scores = jnp.zeros((2, 4)), jnp.array([[0.9, 0.1], [0.8, 0.0]])
    _, points, kinds, there = boxes.nms(found, scores, 0.05, 0.5, 5)
    np.testing.assert_allclose(points, [0.9, 0.8, 0.1, 0, 0])
    np.testing.assert_array_equal(kinds, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(there, [True, True, True, False, False])


def value_for(exclusive: bool) -> DetectorOutput:
    draw = np.random.default_rng(2)
    maps = tuple(jnp.asarray(draw.normal(size=(2, y, x, q, 8)).astype("f4")) for y, x, q in ((2, 3, 2), (4, 6, 1)))
    return DetectorOutput(maps, (((0.2, 0.3), (0.5, 0.4)), ((0.1, 0.2),)), softmax_classes=exclusive)


@pytest.mark.parametrize("exclusive", [False, True])
def test_grids_are_decoded_cell_by_cell(exclusive: bool) -> None:
    """The papers' equations, in the order of maps, rows, columns, anchors."""
    value = value_for(exclusive)
    found, scores, objects = detection_head.decode(value)
    squash = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    n = 0
    for one, anchors in zip(value.maps, value.anchors, strict=True):
        one = np.asarray(one, np.float64)
        for y, x, q in np.ndindex(one.shape[1:4]):
            t, (w, h) = one[:, y, x, q], anchors[q]
            centre = (x + squash(t[:, 0])) / one.shape[2], (y + squash(t[:, 1])) / one.shape[1]
            want = np.stack([*centre, w * np.exp(t[:, 2]), h * np.exp(t[:, 3])], -1)
            np.testing.assert_allclose(found[:, n], want, rtol=1e-5)
            np.testing.assert_allclose(objects[:, n], squash(t[:, 4]), rtol=1e-5)
            kinds = np.exp(t[:, 5:]) / np.exp(t[:, 5:]).sum(-1, keepdims=True) if exclusive else squash(t[:, 5:])
            np.testing.assert_allclose(scores[:, n], squash(t[:, 4:5]) * kinds, rtol=1e-5)
            n += 1
    assert found.shape == (2, n, 4)


def test_detections_are_those_of_each_image() -> None:
    """The suppression of what is decoded, image by image, under jit."""
    value = value_for(False)
    found, scores, _ = map(np.asarray, detection_head.decode(value))
    rows, points, kinds, there = jax.jit(lambda v: detection_head.detections(v, 0.3, 0.45, 50))(value)
    assert (rows.shape, points.shape, kinds.dtype) == ((2, 50, 4), (2, 50), jnp.int32)
    for n in range(2):
        want = kept_by_hand(found[n], scores[n], 0.3, 0.45)
        assert int(there[n].sum()) == len(want) > 5
        np.testing.assert_allclose(rows[n][: len(want)], [found[n, i] for i, _ in want], rtol=1e-6)
        np.testing.assert_array_equal(kinds[n][: len(want)], [k for _, k in want])
