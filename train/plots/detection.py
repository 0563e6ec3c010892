"""Plots of a detector's evaluation: images with boxes, and precision against recall."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.images.detection import BoxAnnotations, DetectionDataset
from train.evaluate.coco_map import (
    RECALLS,
    Detections,
    Matches,
    best_f1_threshold,
    match_predictions,
    precision_at_recalls,
)
from train.evaluate.evaluate import Rows
from train.plots.classification import draw_precision_recall, start_plots
from train.plots.curves import HELD, INK, RIGHT, add_title, class_label, make_figure, save_figure
from train.setup.inputs import detection_size
from train.setup.setup import Setup

WORST, TYPICAL = 8, 4  # numbers of images on a figure
COLUMNS = 4


def draw(setup: Setup, source: DetectionDataset, rows: Rows, workdir: str, n: int) -> list[Path]:
    """Draw boxes and precision into `W/plots/eval-<n>-*` -> files. Plots of an earlier evaluation are removed."""
    title, start = start_plots(setup, workdir, n)
    assert rows.prediction is not None
    detections, matches = match_predictions(rows.prediction, source, detection_size(setup.config))
    sheet = draw_boxes(source, detections, matches, title, Path(f"{start}-boxes.png"))
    return [sheet, draw_curves(matches, source.names or (), title, Path(f"{start}-precision.png"))]


class ImageMatches(NamedTuple):
    """Indices of an image's correct and wrong detections, and of its missed boxes."""

    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @property
    def mistake_count(self) -> int:
        """The number of wrong detections and missed boxes."""
        return len(self.wrong) + len(self.missed)


def match_images(
    matches: Sequence[Matches], annotations: Sequence[BoxAnnotations], threshold: float
) -> list[ImageMatches]:
    """The matches of each image for detections of at least a score, at the lowest IoU threshold."""
    found: list[list[ImageMatches]] = [[] for _ in annotations]
    for one in matches:
        shown = one.score >= threshold
        for i in np.unique(one.image[shown]):
            here = shown & (one.image == i)
            right, wrong = here & one.true_positive[0], here & one.false_positive[0]
            found[i].append(ImageMatches(one.row[right], one.row[wrong], one.matched_box[right]))
    none = ImageMatches(*[np.zeros(0, np.int64)] * 3)
    whole = [ImageMatches(*map(np.concatenate, zip(none, *some, strict=True))) for some in found]
    return [
        tally._replace(missed=np.setdiff1d(np.flatnonzero(truth.is_valid), tally.missed))
        for tally, truth in zip(whole, annotations, strict=True)
    ]


def pick_images(mistakes: np.ndarray) -> np.ndarray:
    """The images to show [at most 12]: those with the most mistakes, then some with a median number."""
    order = np.argsort(-mistakes, kind="stable")
    rest = order[WORST:]
    start = max(0, (len(rest) - TYPICAL) // 2)
    return np.concatenate([order[:WORST], rest[start : start + TYPICAL]])


def draw_boxes(
    source: DetectionDataset, detections: Sequence[Detections], matches: Sequence[Matches], title: str, path: Path
) -> Path:
    """Draw the images with the most mistakes and some typical ones, with boxes and detections -> path.

    Detections are shown down to the score with the best F1. `found` may cover the source's first images only.
    """
    threshold = best_f1_threshold(matches)
    annotations = [source.annotations[i] for i in range(len(detections))]
    image_matches = match_images(matches, annotations, threshold)
    rows = pick_images(np.array([t.mistake_count for t in image_matches]))
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    images = source.__getitems__(rows)["image"]
    shape = max(image.shape[0] / image.shape[1] for image in images)
    figure = make_figure(3.6 * columns, (3.6 * min(shape, 1.5) + 0.25) * lines + 0.6)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, i, image in zip(grid, rows, images, strict=False):
        axes.imshow(image, interpolation="antialiased")
        _draw_image(axes, detections[i], annotations[i], image_matches[i], source.names or ())
        count = int(annotations[i].is_valid.sum())
        what = f"image {i:,}: {len(image_matches[i].missed)} of {count} missed, {len(image_matches[i].wrong)} wrong"
        axes.set_title(what, loc="left", color=INK, fontsize=8, pad=3)
    how = "blue: correct; orange: wrong; orange, dashed: missed; white, dotted: boxes that are found, or do not count"
    shown = (
        f"Scores from {threshold:.2f} on, where F1 is best"
        if np.isfinite(threshold)
        else "No detection is correct, and none is shown"
    )
    add_title(figure, title, f"{how}. {shown}")
    return save_figure(figure, path)


def _draw_image(
    axes: Any, detections: Detections, annotations: BoxAnnotations, matches: ImageMatches, names: Sequence[str]
) -> None:
    """Draw the boxes and detections of one image."""
    for i in set(range(len(annotations.labels))) - set(matches.missed.tolist()):
        _draw_box(axes, annotations.boxes[i], "white", lw=0.7, ls=":")
    for i in matches.missed:
        _draw_box(axes, annotations.boxes[i], HELD, class_label(names, annotations.labels[i], 12), lw=1.0, ls="--")
    for rows, colour in ((matches.right, RIGHT), (matches.wrong, HELD)):
        for i in rows:
            text = f"{class_label(names, detections.labels[i], 12)} {detections.scores[i]:.2f}"
            _draw_box(axes, detections.boxes[i], colour, text, lw=1.2)


def _draw_box(axes: Any, corners: np.ndarray, colour: str, text: str = "", **line: Any) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = (float(x) - 0.5 for x in corners)  # imshow puts the first pixel's centre at 0
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, **line))
    if text:
        label = dict(facecolor=colour, edgecolor="none", pad=0.6, alpha=0.8)
        side = "bottom" if top > axes.get_ylim()[0] / 20 else "top"  # inside the box at the upper edge
        style = dict(color="white", fontsize=4.5, bbox=label, clip_on=True, parse_math=False)
        axes.text(left, top, text, va=side, **style)


def draw_curves(matches: Sequence[Matches], names: Sequence[str], title: str, path: Path) -> Path:
    """Draw precision against recall at an IoU of 0.5, one curve per class and their mean -> path."""
    lines = np.array([precision_at_recalls(one)[0][0] for one in matches])  # [classes 101]
    return draw_precision_recall(RECALLS, lines, lines.mean(1), names, title, path)
