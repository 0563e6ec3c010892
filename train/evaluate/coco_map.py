"""How well boxes are found: average precision as COCO counts it, with standard errors over images.

Lin et al. 2014, arXiv:1405.0312, section 4; boxes are matched by pycocotools. A box is right where it overlaps a truth
of its class, which no surer one has, by at least the threshold. Precision is read at 101 values of recall, the best at
that recall or more, and averaged over them: AP. A class without truths has none, and enters no mean.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np

from data.images.detection import BoxAnnotations, DetectionDataset
from data.images.letterbox import to_original
from data.images.resize import Size
from train.evaluate.evaluate import Scores

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # thresholds, intersection over union
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = (
    100  # boxes of a class that are judged in one image, the surest; a detector tells no more of all classes
)
RESAMPLES = 200  # of the images, for standard errors: these are right to a twentieth or so
SEED = 0


class Detections(NamedTuple):
    """The boxes a detector finds in an image: corners in its pixels [n 4], scores [n], and classes [n]."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Matches(NamedTuple):
    """What is found of one class in all images, the surest first, [D] in all; T thresholds."""

    image: np.ndarray  # int [D]
    row: np.ndarray  # int [D], which of the image's boxes
    score: np.ndarray  # [D]
    true_positive: np.ndarray  # bool [T D]
    false_positive: np.ndarray  # bool [T D]; neither where what it overlaps does not count
    matched_box: np.ndarray  # int [D], the image's truth that it overlaps at the least threshold, or -1
    box_counts: np.ndarray  # int [n], of each image, that count


def match(found: Sequence[Detections], truths: Sequence[BoxAnnotations], classes: int) -> list[Matches]:
    """Match what is found with the truth, image by image and class by class.

    Boxes that are not finite, as of a model gone astray, are passed over.
    """
    finite = [(f, np.isfinite(f.scores) & np.isfinite(f.boxes).all(-1)) for f in found]
    with redirect_stdout(io.StringIO()):  # it talks
        told = _coco_table(
            [_coco_annotations(t.boxes, t.labels, iscrowd=t.crowd, difficult=t.difficult) for t in truths], classes
        )
        seen = _coco_table(
            [_coco_annotations(f.boxes, f.labels, where, score=f.scores) for f, where in finite], classes
        )
        match = _make_coco_eval(told, seen)
        match.params.iouThrs, match.params.maxDets = IOU_THRESHOLDS, [MAX_DETECTIONS]
        match.params.areaRng, match.params.areaRngLbl = [[0, 1e10]], ["all"]
        match.evaluate()
    count = len(truths)
    return [
        _matches_of_class(match.evalImgs[k * count : (k + 1) * count], seen.anns, told.anns, count)
        for k in range(classes)
    ]


def _make_coco_eval(told: Any, seen: Any) -> Any:
    """pycocotools' matching, with VOC's difficult boxes: found by intersection over union, and any number of times.

    A crowd's overlap is over the find alone. Source: Everingham et al. 2010, doi:10.1007/s11263-009-0275-4.
    """
    from pycocotools.cocoeval import COCOeval

    class Match(COCOeval):
        def _prepare(self) -> None:
            super()._prepare()
            for truth in (truth for some in self._gts.values() for truth in some):
                truth["ignore"] = truth["iscrowd"] or truth["difficult"]

        def evaluateImg(self, image: Any, kind: Any, *rest: Any) -> Any:
            for truth in self._gts[image, kind]:  # overlaps are known by now, and here a crowd is what finds may share
                truth["iscrowd"] = truth["ignore"]
            return super().evaluateImg(image, kind, *rest)

    return Match(told, seen, "bbox")


def _coco_annotations(
    boxes: np.ndarray, kinds: np.ndarray, where: np.ndarray | None = None, **more: np.ndarray
) -> list[Any]:
    """An image's boxes as pycocotools has them, each with its place among the image's."""
    rows = []
    for i in range(len(kinds)) if where is None else np.flatnonzero(where):
        left, top, right, bottom = (float(x) for x in boxes[i])
        x, y = max(right - left, 0.0), max(bottom - top, 0.0)
        row = {"bbox": [left, top, x, y], "area": x * y, "category_id": int(kinds[i]), "iscrowd": 0, "row": int(i)}
        rows.append({**row, **{name: float(values[i]) for name, values in more.items()}})
    return rows


def _coco_table(images: list[list[dict[str, Any]]], classes: int) -> Any:
    """A table of pycocotools; it takes an id of 0 for no box, so ids count from 1."""
    from pycocotools.coco import COCO

    table, rows = COCO(), [{**row, "image_id": i} for i, image in enumerate(images) for row in image]
    table.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": [{**row, "id": i} for i, row in enumerate(rows, 1)],
    }
    table.createIndex()
    return table


def _matches_of_class(matches: list[Any], seen: dict[int, Any], told: dict[int, Any], count: int) -> Matches:
    """One class's matches, image by image (None where it has neither truth nor find), in one table."""
    some = [m for m in matches if m is not None]
    ids = np.array([i for m in some for i in m["dtIds"]], np.int64)
    score = np.array([s for m in some for s in m["dtScores"]], np.float64)
    none = [np.zeros((len(IOU_THRESHOLDS), 0))]
    match = np.concatenate(none + [m["dtMatches"] for m in some], 1)
    ignored = np.concatenate(none + [m["dtIgnore"] for m in some], 1) > 0
    truths = np.zeros(count, np.int64)
    for m in some:
        truths[m["image_id"]] = np.sum(np.equal(m["gtIgnore"], 0))
    order = np.argsort(-score, kind="stable")
    ids, match, ignored = ids[order], match[:, order], ignored[:, order]
    return Matches(
        np.array([seen[i]["image_id"] for i in ids], np.int64),
        np.array([seen[i]["row"] for i in ids], np.int64),
        score[order],
        (match > 0) & ~ignored,
        match == 0,
        np.array([told[int(i)]["row"] if i else -1 for i in match[0]], np.int64),
        truths,
    )


def precision_at_recalls(judged: Matches, times: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Precision at each of RECALLS, and the recall reached, of the images, each counted `times` [n]: [T 101], [T].

    NaN where there is no truth.
    """
    times = np.ones(len(judged.box_counts)) if times is None else times
    total = float(judged.box_counts @ times)
    if not total:
        return np.full((len(IOU_THRESHOLDS), len(RECALLS)), np.nan), np.full(len(IOU_THRESHOLDS), np.nan)
    weight = times[judged.image]
    right, wrong = (np.cumsum(x * weight, 1) for x in (judged.true_positive, judged.false_positive))
    recall = right / total
    share = right / np.maximum(right + wrong, np.spacing(1))
    best = np.maximum.accumulate(share[:, ::-1], 1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))  # beyond the recall reached: 0
    at = np.stack([b[np.searchsorted(r, RECALLS)] for b, r in zip(best, recall, strict=True)])
    return at, recall.max(1, initial=0)


def to_detections(guess: np.ndarray, scenes: DetectionDataset, size: Size) -> list[Detections]:
    """What a detector tells of the first n images, as it sees them at a size, in their own pixels: [n K 6] -> n Founds.

    Each of K rows is a box as shares, its score (0 of none) and its class.
    """
    found = []
    for i, rows in enumerate(guess.astype(np.float64)):
        rows = rows[rows[:, 4] > 0]
        corners = to_original(rows[:, :4], size, scenes.annotations.size(i))
        found.append(Detections(corners, rows[:, 4], rows[:, 5].astype(np.int64)))
    return found


def match_predictions(
    guess: np.ndarray, scenes: DetectionDataset, size: Size
) -> tuple[list[Detections], list[Matches]]:
    """What is told of the first n images [n K 6], in their pixels, and class by class how right it is."""
    assert scenes.classes is not None
    found = to_detections(guess, scenes, size)
    return found, match(found, [scenes.annotations[i] for i in range(len(found))], scenes.classes)


def with_precision(scores: Scores, scenes: DetectionDataset, size: Size) -> Scores:
    """Scores with mAP and its kin; as they are where nothing was measured."""
    if scores.rows is None or scores.rows.prediction is None:
        return scores
    more = detection_scores(match_predictions(scores.rows.prediction, scenes, size)[1], scenes.names or ())
    return scores._replace(metrics={**scores.metrics, **more.metrics}, stderr={**scores.stderr, **more.stderr})


def format_class_ap(scores: Scores, names: Sequence[str]) -> str:
    """The average precision of each class at the least threshold, in one line."""
    pairs = [
        (name, scores.primary_metrics.get(f"map_50/{name}"), scores.stderr.get(f"{scores.prefix}map_50/{name}"))
        for name in names
    ]
    return f"average precision at 0.5: {', '.join(f'{name} {value:.4f} ± {error:.4f}' for name, value, error in pairs)}"


def score(found: Sequence[Detections], truths: Sequence[BoxAnnotations], names: Sequence[str]) -> Scores:
    """mAP and its kin of what is found in images, against their truths; an image is a cluster."""
    return detection_scores(match(found, truths, len(names)), names)


def detection_scores(judged: Sequence[Matches], names: Sequence[str]) -> Scores:
    """The metrics of what was judged; standard errors are the spread over RESAMPLES draws of as many images.

    `map` is the mean AP over classes and thresholds, `map_50` and `map_75` at one, `map_50/<class>` of one class, and
    `average_recall` the mean over both of the recall reached.
    """
    count = len(judged[0].box_counts)
    if not count:
        return Scores({}, {}, 0, 0)
    draw = np.random.Generator(np.random.Philox(SEED))
    metrics = _metrics(judged, names, np.ones(count))
    draws = [_metrics(judged, names, draw.multinomial(count, np.full(count, 1 / count))) for _ in range(RESAMPLES)]
    stderr = {}
    for name in metrics:
        values = np.array([d[name] for d in draws])
        real = values[np.isfinite(values)]  # a draw may lack a class
        stderr[name] = float(real.std(ddof=1)) if count > 1 and len(real) > 1 else float("nan")
    return Scores(metrics, stderr, count, count)


def _metrics(judged: Sequence[Matches], names: Sequence[str], times: np.ndarray) -> dict[str, float]:
    pairs = [precision_at_recalls(one, times.astype(np.float64)) for one in judged]
    by_class = np.array([at.mean(1) for at, _ in pairs])  # [classes T]
    reached = np.array([recall.mean() for _, recall in pairs])
    at_half, at_three_quarters = by_class[:, 0], by_class[:, 5]
    found = {
        "map": _finite_mean(by_class.mean(1)),
        "map_50": _finite_mean(at_half),
        "map_75": _finite_mean(at_three_quarters),
        "average_recall": _finite_mean(reached),
    }
    return found | {f"map_50/{name}": float(value) for name, value in zip(names, at_half, strict=True)}


def _finite_mean(values: np.ndarray) -> float:
    """The mean of what is a number; NaN where nothing is."""
    real = values[np.isfinite(values)]
    return float(real.mean()) if len(real) else float("nan")


def best_f1_threshold(judged: Sequence[Matches]) -> float:
    """The score down to which finds of all classes have the best F1 at the least threshold; infinite if none is right.

    F1 is the harmonic mean of precision and recall.
    """
    scores = np.concatenate([one.score for one in judged])
    order = np.argsort(-scores, kind="stable")
    right, wrong = (
        np.cumsum(np.concatenate([getattr(j, k)[0] for j in judged])[order])
        for k in ("true_positive", "false_positive")
    )
    total = sum(int(one.box_counts.sum()) for one in judged)
    if not len(scores) or not right[-1]:
        return float("inf")
    return float(scores[order][np.argmax(2 * right / (right + wrong + total))])
