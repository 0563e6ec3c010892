"""Detection metrics: COCO average precision, with standard errors over images.

Lin et al. 2014, arXiv:1405.0312, section 4; pycocotools matches the boxes. A detection is correct if its IoU with a box
of its class, not matched by a detection of higher score, is at least the threshold. AP is the mean, over 101 values of
recall, of the best precision at that recall or more. A class without boxes has no AP and enters no mean.
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
    100  # detections of a class per image that are scored, highest scores first; a detector outputs no more in total
)
RESAMPLES = 200  # bootstrap resamples of the images: standard errors are accurate to about 5 %
SEED = 0


class Detections(NamedTuple):
    """The detections in an image: corners in its pixels [n 4], scores [n] and classes [n]."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Matches(NamedTuple):
    """The D detections of one class in all images, highest score first, matched at T thresholds."""

    image: np.ndarray  # int [D]
    row: np.ndarray  # int [D], the index among the image's detections
    score: np.ndarray  # [D]
    true_positive: np.ndarray  # bool [T D]
    false_positive: np.ndarray  # bool [T D]; a detection that matches an ignored box is neither
    matched_box: np.ndarray  # int [D], index of the matched box at the lowest threshold, or -1
    box_counts: np.ndarray  # int [n], boxes of each image that count


def match(detections: Sequence[Detections], annotations: Sequence[BoxAnnotations], classes: int) -> list[Matches]:
    """Match detections with annotated boxes by image and class -> one Matches per class.

    Detections with non-finite boxes or scores are ignored.
    """
    finite = [(f, np.isfinite(f.scores) & np.isfinite(f.boxes).all(-1)) for f in detections]
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        ground_truth = _coco_table(
            [_coco_annotations(t.boxes, t.labels, iscrowd=t.crowd, difficult=t.difficult) for t in annotations], classes
        )
        results = _coco_table(
            [_coco_annotations(f.boxes, f.labels, where, score=f.scores) for f, where in finite], classes
        )
        coco_eval = _make_coco_eval(ground_truth, results)
        coco_eval.params.iouThrs, coco_eval.params.maxDets = IOU_THRESHOLDS, [MAX_DETECTIONS]
        coco_eval.params.areaRng, coco_eval.params.areaRngLbl = [[0, 1e10]], ["all"]
        coco_eval.evaluate()
    count = len(annotations)
    return [
        _matches_of_class(coco_eval.evalImgs[k * count : (k + 1) * count], results.anns, ground_truth.anns, count)
        for k in range(classes)
    ]


def _make_coco_eval(ground_truth: Any, results: Any) -> Any:
    """pycocotools' matching, extended by VOC's difficult boxes: matched by IoU, by any number of detections.

    For a crowd the overlap is relative to the detection's area. Source: Everingham et al. 2010,
    doi:10.1007/s11263-009-0275-4.
    """
    from pycocotools.cocoeval import COCOeval

    class VocCOCOeval(COCOeval):
        def _prepare(self) -> None:
            super()._prepare()
            for truth in (truth for some in self._gts.values() for truth in some):
                truth["ignore"] = truth["iscrowd"] or truth["difficult"]

        def evaluateImg(self, image: Any, kind: Any, *rest: Any) -> Any:
            for truth in self._gts[image, kind]:  # IoUs are computed by now; iscrowd allows several matches
                truth["iscrowd"] = truth["ignore"]
            return super().evaluateImg(image, kind, *rest)

    return VocCOCOeval(ground_truth, results, "bbox")


def _coco_annotations(
    boxes: np.ndarray, kinds: np.ndarray, where: np.ndarray | None = None, **more: np.ndarray
) -> list[Any]:
    """An image's boxes as annotations of pycocotools, with their index as `row`."""
    rows = []
    for i in range(len(kinds)) if where is None else np.flatnonzero(where):
        left, top, right, bottom = (float(x) for x in boxes[i])
        x, y = max(right - left, 0.0), max(bottom - top, 0.0)
        row = {"bbox": [left, top, x, y], "area": x * y, "category_id": int(kinds[i]), "iscrowd": 0, "row": int(i)}
        rows.append({**row, **{name: float(values[i]) for name, values in more.items()}})
    return rows


def _coco_table(images: list[list[dict[str, Any]]], classes: int) -> Any:
    """A COCO table of pycocotools. Ids start at 1, as pycocotools takes 0 for no box."""
    from pycocotools.coco import COCO

    table, rows = COCO(), [{**row, "image_id": i} for i, image in enumerate(images) for row in image]
    table.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": [{**row, "id": i} for i, row in enumerate(rows, 1)],
    }
    table.createIndex()
    return table


def _matches_of_class(matches: list[Any], results: dict[int, Any], ground_truth: dict[int, Any], count: int) -> Matches:
    """Merge one class's matches by image (None: neither boxes nor detections)."""
    evaluated = [m for m in matches if m is not None]
    ids = np.array([i for m in evaluated for i in m["dtIds"]], np.int64)
    score = np.array([s for m in evaluated for s in m["dtScores"]], np.float64)
    none = [np.zeros((len(IOU_THRESHOLDS), 0))]
    match = np.concatenate(none + [m["dtMatches"] for m in evaluated], 1)
    ignored = np.concatenate(none + [m["dtIgnore"] for m in evaluated], 1) > 0
    box_counts = np.zeros(count, np.int64)
    for m in evaluated:
        box_counts[m["image_id"]] = np.sum(np.equal(m["gtIgnore"], 0))
    order = np.argsort(-score, kind="stable")
    ids, match, ignored = ids[order], match[:, order], ignored[:, order]
    return Matches(
        np.array([results[i]["image_id"] for i in ids], np.int64),
        np.array([results[i]["row"] for i in ids], np.int64),
        score[order],
        (match > 0) & ~ignored,
        match == 0,
        np.array([ground_truth[int(i)]["row"] if i else -1 for i in match[0]], np.int64),
        box_counts,
    )


def precision_at_recalls(matches: Matches, times: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Precision at each of RECALLS and the maximum recall, with each image counted `times` [n]: [T 101], [T].

    NaN if no box counts.
    """
    times = np.ones(len(matches.box_counts)) if times is None else times
    total = float(matches.box_counts @ times)
    if not total:
        return np.full((len(IOU_THRESHOLDS), len(RECALLS)), np.nan), np.full(len(IOU_THRESHOLDS), np.nan)
    weight = times[matches.image]
    right, wrong = (np.cumsum(x * weight, 1) for x in (matches.true_positive, matches.false_positive))
    recall = right / total
    precision = right / np.maximum(right + wrong, np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    best = np.pad(best, ((0, 0), (0, 1)))  # 0 beyond the maximum recall
    at = np.stack([b[np.searchsorted(r, RECALLS)] for b, r in zip(best, recall, strict=True)])
    return at, recall.max(1, initial=0)


def to_detections(prediction: np.ndarray, dataset: DetectionDataset, size: Size) -> list[Detections]:
    """Predictions of the first n images, at the network's input size, in the images' own pixels: [n K 6] -> n items.

    Each of the K predictions is a box relative to the input, its score (0: no box) and its class.
    """
    found = []
    for i, rows in enumerate(prediction.astype(np.float64)):
        rows = rows[rows[:, 4] > 0]
        corners = to_original(rows[:, :4], size, dataset.annotations.size(i))
        found.append(Detections(corners, rows[:, 4], rows[:, 5].astype(np.int64)))
    return found


def match_predictions(
    prediction: np.ndarray, dataset: DetectionDataset, size: Size
) -> tuple[list[Detections], list[Matches]]:
    """Predictions of the first n images [n K 6] -> (detections in their pixels, matches by class)."""
    assert dataset.classes is not None
    detections = to_detections(prediction, dataset, size)
    return detections, match(detections, [dataset.annotations[i] for i in range(len(detections))], dataset.classes)


def with_precision(scores: Scores, dataset: DetectionDataset, size: Size) -> Scores:
    """Add mAP and the other COCO metrics to scores; unchanged if they have no rows."""
    if scores.rows is None or scores.rows.prediction is None:
        return scores
    more = detection_scores(match_predictions(scores.rows.prediction, dataset, size)[1], dataset.names or ())
    return scores._replace(metrics={**scores.metrics, **more.metrics}, stderr={**scores.stderr, **more.stderr})


def format_class_ap(scores: Scores, names: Sequence[str]) -> str:
    """The average precision of each class at the lowest threshold, in one line."""
    pairs = [
        (name, scores.primary_metrics.get(f"map_50/{name}"), scores.stderr.get(f"{scores.prefix}map_50/{name}"))
        for name in names
    ]
    return f"average precision at 0.5: {', '.join(f'{name} {value:.4f} ± {error:.4f}' for name, value, error in pairs)}"


def score(detections: Sequence[Detections], annotations: Sequence[BoxAnnotations], names: Sequence[str]) -> Scores:
    """mAP and the other COCO metrics of detections against annotated boxes; each image is a cluster."""
    return detection_scores(match(detections, annotations, len(names)), names)


def detection_scores(matches: Sequence[Matches], names: Sequence[str]) -> Scores:
    """The metrics of matches. Standard errors are standard deviations over RESAMPLES bootstrap samples of the images.

    `map` is the mean AP over classes and thresholds, `map_50` and `map_75` at one, `map_50/<class>` of one class, and
    `average_recall` the mean over both of the recall reached.
    """
    count = len(matches[0].box_counts)
    if not count:
        return Scores({}, {}, 0, 0)
    draw = np.random.Generator(np.random.Philox(SEED))
    metrics = _metrics(matches, names, np.ones(count))
    draws = [_metrics(matches, names, draw.multinomial(count, np.full(count, 1 / count))) for _ in range(RESAMPLES)]
    stderr = {}
    for name in metrics:
        values = np.array([d[name] for d in draws])
        real = values[np.isfinite(values)]  # a resample may lack a class
        stderr[name] = float(real.std(ddof=1)) if count > 1 and len(real) > 1 else float("nan")
    return Scores(metrics, stderr, count, count)


def _metrics(matches: Sequence[Matches], names: Sequence[str], times: np.ndarray) -> dict[str, float]:
    pairs = [precision_at_recalls(one, times.astype(np.float64)) for one in matches]
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
    """The mean of the finite values; NaN if there are none."""
    real = values[np.isfinite(values)]
    return float(real.mean()) if len(real) else float("nan")


def best_f1_threshold(matches: Sequence[Matches]) -> float:
    """The score threshold with the best F1 over all classes at the lowest IoU threshold; infinite if none is correct.

    F1 is the harmonic mean of precision and recall.
    """
    scores = np.concatenate([one.score for one in matches])
    order = np.argsort(-scores, kind="stable")
    right, wrong = (
        np.cumsum(np.concatenate([getattr(j, k)[0] for j in matches])[order])
        for k in ("true_positive", "false_positive")
    )
    total = sum(int(one.box_counts.sum()) for one in matches)
    if not len(scores) or not right[-1]:
        return float("inf")
    return float(scores[order][np.argmax(2 * right / (right + wrong + total))])
