"""The loss of a detector, against Darknet's rules written out as loops."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.blocks.vision.detection_head import DetectorOutput
from tests.support.boxes import draw_boxes, iou_by_hand
from train.tasks import TASKS

ANCHORS = (((0.2, 0.3), (0.5, 0.4)), ((0.1, 0.2),))
PLANES = ((2, 3, 2), (4, 6, 1))
C = 3


def squash(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def value_for(exclusive: bool, seed: int = 0) -> DetectorOutput:
    draw = np.random.default_rng(seed)
    maps = [jnp.asarray(draw.normal(size=(3, y, x, q, 5 + C)).astype("f4")) for y, x, q in PLANES]
    return DetectorOutput(tuple(maps), ANCHORS, softmax_classes=exclusive, ignore_iou=0.3)


def batch_for(seed: int = 1) -> dict[str, np.ndarray]:
    """Images of 4, 2 and no boxes; two of the first have one cell and anchor."""
    draw = np.random.default_rng(seed)
    boxes = draw_boxes(draw, 3, 5)
    boxes[0, 2] = boxes[0, 0] * np.array([1, 1, 1.01, 0.99], np.float32)
    boxes[1, 1, :2] = 1.0  # at the very corner
    boxes[1, 0, 2:] = 1e-6
    kinds = draw.integers(0, C, (3, 5)).astype(np.int32)
    kinds[0, 2] = (kinds[0, 0] + 1) % C
    there = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)
    boxes[2], boxes[1, 2] = 0, (0.5, 0.5, 0, 0)
    there[1, 2] = 1  # a box without an area is none
    return {"boxes": boxes, "box_labels": kinds, "box_mask": there, "weight": np.array([1, 0.5, 2], np.float32)}


def entropy(p: float) -> float:
    return -sum(x * np.log(x) for x in (p, 1 - p) if x > 0)


def cross(t: float, target: float) -> float:
    return -target * np.log(squash(t)) - (1 - target) * np.log(1 - squash(t)) - entropy(target)


def answers_of(
    value: DetectorOutput, batch: dict[str, np.ndarray], n: int
) -> tuple[list[Any], dict[tuple[int, ...], list[Any]]]:
    """The boxes of one image, and those that each prediction answers for, as (box, kind)."""
    maps = [np.asarray(one[n], np.float64) for one in value.maps]
    truths = [
        (batch["boxes"][n, m].astype(np.float64), int(batch["box_labels"][n, m]))
        for m in range(batch["boxes"].shape[1])
        if batch["box_mask"][n, m] and batch["boxes"][n, m, 2:].min() > 0
    ]
    answers: dict[tuple[int, ...], list[Any]] = {}
    for box, kind in truths:
        best, where = -1.0, (0, 0)
        for s, anchors in enumerate(ANCHORS):
            for q, (w, h) in enumerate(anchors):
                likeness = iou_by_hand(np.array([0, 0, w, h]), np.array([0, 0, *box[2:]]))
                if likeness > best:
                    best, where = likeness, (s, q)
        s, q = where
        Y, X = maps[s].shape[:2]
        slot = (s, min(int(box[1] * Y), Y - 1), min(int(box[0] * X), X - 1), q)
        answers.setdefault(slot, []).append((box, kind))
    return truths, answers


def box_of(t: np.ndarray, anchor: tuple[float, float], place: tuple[int, ...], plane: tuple[int, ...]) -> np.ndarray:
    """A prediction's box."""
    (y, x), (Y, X), (w, h) = place, plane, anchor
    return np.array([(x + squash(t[0])) / X, (y + squash(t[1])) / Y, w * np.exp(t[2]), h * np.exp(t[3])])


def by_loops(value: DetectorOutput, batch: dict[str, np.ndarray], n: int) -> dict[str, float]:
    """The terms of one image."""
    maps = [np.asarray(one[n], np.float64) for one in value.maps]
    truths, answers = answers_of(value, batch, n)
    terms = {"box_loss": 0.0, "objectness_loss": 0.0, "class_loss": 0.0, "iou": 0.0, "count": 0.0}
    for s, one in enumerate(maps):
        Y, X, Q = one.shape[:3]
        for y, x, q in np.ndindex(Y, X, Q):
            t, (w, h) = one[y, x, q], ANCHORS[s][q]
            box = box_of(t, (w, h), (y, x), (Y, X))
            if (s, y, x, q) not in answers:
                if all(iou_by_hand(box, truth) <= value.ignore_iou for truth, _ in truths):
                    terms["objectness_loss"] += squash(t[4]) ** 2 / 2 if value.softmax_classes else cross(t[4], 0)
                continue
            mine = answers[s, y, x, q]
            truth, kind = mine[-1]
            target = np.array([truth[0] * X - x, truth[1] * Y - y, np.log(truth[2] / w), np.log(truth[3] / h)])
            fit = iou_by_hand(box, truth)
            terms["iou"] += fit
            terms["count"] += 1
            weight, sizes = 2 - truth[2] * truth[3], np.sum((t[2:4] - target[2:]) ** 2) / 2
            if value.softmax_classes:
                terms["box_loss"] += weight * (np.sum((squash(t[:2]) - target[:2]) ** 2) / 2 + sizes)
                terms["objectness_loss"] += 5 * (squash(t[4]) - fit) ** 2 / 2
                terms["class_loss"] += -np.log(np.exp(t[5 + kind]) / np.exp(t[5:]).sum())
            else:
                terms["box_loss"] += weight * (sum(cross(t[i], target[i]) for i in (0, 1)) + sizes)
                terms["objectness_loss"] += cross(t[4], 1)
                kinds = {k for _, k in mine}
                terms["class_loss"] += sum(cross(t[5 + k], float(k in kinds)) for k in range(C))
    return terms


terms_of = jax.jit(TASKS["detection"].terms)
slope_of = jax.jit(jax.grad(lambda value, batch: jnp.sum(TASKS["detection"].terms(value, batch)["loss"][0])))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_is_that_of_loops(exclusive: bool, seed: int) -> None:
    """Each term of each image, v3's and v2's; a row counts by its weight."""
    value, batch = value_for(exclusive, seed), batch_for(seed + 10)
    terms = jax.device_get(terms_of(value, batch))
    assert set(terms) == {"loss", "box_loss", "objectness_loss", "class_loss", "iou"}
    for n, w in enumerate(batch["weight"]):
        want = by_loops(value, batch, n)
        for name in ("box_loss", "objectness_loss", "class_loss", "iou"):
            np.testing.assert_allclose(terms[name][0][n], w * want[name], rtol=2e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            terms["loss"][0][n], w * (want["box_loss"] + want["objectness_loss"] + want["class_loss"]), rtol=2e-5
        )
        assert float(terms["loss"][1][n]) == w
        assert float(terms["iou"][1][n]) == w * want["count"]


def test_of_two_boxes_with_one_prediction_the_last_is_learnt() -> None:
    """Its place and size; of v3's classes both, of v2's the last one."""
    batch, turned = batch_for(), batch_for()
    for name in ("boxes", "box_labels"):
        turned[name][0, :3] = batch[name][0, 2::-1]
    for exclusive in (False, True):
        one, two = (terms_of(value_for(exclusive), b) for b in (batch, turned))
        assert float(one["box_loss"][0][0]) != float(two["box_loss"][0][0])
        same = float(one["class_loss"][0][0]) == pytest.approx(float(two["class_loss"][0][0]), rel=1e-5)
        assert same == (not exclusive)


def deltas(value: DetectorOutput, batch: dict[str, np.ndarray], n: int) -> list[np.ndarray]:
    """The slopes at one image's raw maps, as Darknet's layers write them out, of the other sign."""
    truths, answers = answers_of(value, batch, n)
    found = []
    for s, one in enumerate(np.asarray(one[n], np.float64) for one in value.maps):
        Y, X, Q = one.shape[:3]
        d = np.zeros_like(one)
        for y, x, q in np.ndindex(Y, X, Q):
            t, at, (w, h) = one[y, x, q], d[y, x, q], ANCHORS[s][q]
            p = squash(t)
            bend = p * (1 - p) if value.softmax_classes else np.ones_like(p)  # region's squares are of what is squashed
            box = box_of(t, (w, h), (y, x), (Y, X))
            mine = answers.get((s, y, x, q))
            if mine is None:
                free = all(iou_by_hand(box, truth) <= value.ignore_iou for truth, _ in truths)
                at[4] = p[4] * bend[4] * free
                continue
            truth, kind = mine[-1]
            weight = 2 - truth[2] * truth[3]
            at[:2] = weight * (p[:2] - (truth[0] * X - x, truth[1] * Y - y)) * bend[:2]
            at[2:4] = weight * (t[2:4] - np.log((truth[2] / w, truth[3] / h)))
            if value.softmax_classes:
                at[4] = 5 * (p[4] - iou_by_hand(box, truth)) * bend[4]
                at[5:] = np.exp(t[5:]) / np.exp(t[5:]).sum() - np.eye(C)[kind]
            else:
                at[4] = p[4] - 1
                at[5:] = p[5:] - np.isin(np.arange(C), [k for _, k in mine])
        found.append(d)
    return found


@pytest.mark.parametrize("exclusive", [False, True])
def test_slopes_are_darknets(exclusive: bool) -> None:
    """At every raw number of every image: with boxes, with two of one prediction, and with none."""
    value, batch = value_for(exclusive), batch_for()
    slope = jax.device_get(slope_of(value, batch))
    for n, weight in enumerate(batch["weight"]):
        for got, want in zip(slope.maps, deltas(value, batch, n), strict=True):
            np.testing.assert_allclose(got[n], weight * want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exclusive", [False, True])
def test_gradients_are_finite(exclusive: bool) -> None:
    """At boxes of no and of almost no area and at the border; an image that weighs nothing has none."""
    batch, value = batch_for(), value_for(exclusive)
    slope = slope_of(value, batch)
    assert all(np.isfinite(one).all() for one in slope.maps)
    slope = slope_of(value, {**batch, "weight": np.float32([1, 0, 0])})
    assert all(not np.asarray(one[1:]).any() for one in slope.maps)
