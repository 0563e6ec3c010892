"""What an evaluation of a detector leaves to look at: images with boxes drawn in, and precision against recall."""

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

WORST, TYPICAL = 8, 4  # images on the sheet
COLUMNS = 4


def draw(setup: Setup, source: DetectionDataset, rows: Rows, workdir: str, n: int) -> list[Path]:
    """Draw boxes and precision into `W/plots/eval-<n>-*` -> the files. What an earlier evaluation left goes."""
    title, start = start_plots(setup, workdir, n)
    assert rows.prediction is not None
    found, judged = match_predictions(rows.prediction, source, detection_size(setup.cfg))
    sheet = draw_boxes(source, found, judged, title, Path(f"{start}-boxes.png"))
    return [sheet, draw_curves(judged, source.names or (), title, Path(f"{start}-precision.png"))]


class ImageMatches(NamedTuple):
    """Of one image, which of its finds are right and which wrong, and which of its truths are missed."""

    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @property
    def mistake_count(self) -> int:
        """Boxes that are wrong or missed."""
        return len(self.wrong) + len(self.missed)


def match_images(judged: Sequence[Matches], truths: Sequence[BoxAnnotations], least: float) -> list[ImageMatches]:
    """What finds of at least a score come to, at the least threshold, image by image."""
    found: list[list[ImageMatches]] = [[] for _ in truths]
    for one in judged:
        shown = one.score >= least
        for i in np.unique(one.image[shown]):
            here = shown & (one.image == i)
            right, wrong = here & one.true_positive[0], here & one.false_positive[0]
            found[i].append(ImageMatches(one.row[right], one.row[wrong], one.matched_box[right]))
    none = ImageMatches(*[np.zeros(0, np.int64)] * 3)
    whole = [ImageMatches(*map(np.concatenate, zip(none, *some, strict=True))) for some in found]
    return [
        tally._replace(missed=np.setdiff1d(np.flatnonzero(truth.is_valid), tally.missed))
        for tally, truth in zip(whole, truths, strict=True)
    ]


def pick_images(mistakes: np.ndarray) -> np.ndarray:
    """Which images to show: those of most mistakes, then some of a middling number [at most 12]."""
    order = np.argsort(-mistakes, kind="stable")
    rest = order[WORST:]
    start = max(0, (len(rest) - TYPICAL) // 2)
    return np.concatenate([order[:WORST], rest[start : start + TYPICAL]])


def draw_boxes(
    source: DetectionDataset, found: Sequence[Detections], judged: Sequence[Matches], title: str, path: Path
) -> Path:
    """Draw the images of most mistakes and some typical ones, with truths and finds, on a sheet -> path.

    Finds are shown down to the score of the best F1. `found` may be of the source's first images only.
    """
    least = best_f1_threshold(judged)
    truths = [source.annotations[i] for i in range(len(found))]
    tally = match_images(judged, truths, least)
    rows = pick_images(np.array([t.mistake_count for t in tally]))
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
        _draw_image(axes, found[i], truths[i], tally[i], source.names or ())
        count = int(truths[i].is_valid.sum())
        what = f"image {i:,}: {len(tally[i].missed)} of {count} missed, {len(tally[i].wrong)} wrong"
        axes.set_title(what, loc="left", color=INK, fontsize=8, pad=3)
    how = "blue: right; orange: wrong; orange, dashed: missed; white, dotted: truths that are found, or do not count"
    shown = (
        f"Scores from {least:.2f} on, where F1 is best" if np.isfinite(least) else "No find is right, and none is shown"
    )
    add_title(figure, title, f"{how}. {shown}")
    return save_figure(figure, path)


def _draw_image(axes: Any, found: Detections, truth: BoxAnnotations, tally: ImageMatches, names: Sequence[str]) -> None:
    """Draw the boxes of one image."""
    for i in set(range(len(truth.labels))) - set(tally.missed.tolist()):
        _draw_box(axes, truth.boxes[i], "white", lw=0.7, ls=":")
    for i in tally.missed:
        _draw_box(axes, truth.boxes[i], HELD, class_label(names, truth.labels[i], 12), lw=1.0, ls="--")
    for rows, colour in ((tally.right, RIGHT), (tally.wrong, HELD)):
        for i in rows:
            text = f"{class_label(names, found.labels[i], 12)} {found.scores[i]:.2f}"
            _draw_box(axes, found.boxes[i], colour, text, lw=1.2)


def _draw_box(axes: Any, corners: np.ndarray, colour: str, text: str = "", **line: Any) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = (float(x) - 0.5 for x in corners)  # imshow has the first pixel's middle at 0
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, **line))
    if text:
        label = dict(facecolor=colour, edgecolor="none", pad=0.6, alpha=0.8)
        side = "bottom" if top > axes.get_ylim()[0] / 20 else "top"  # at the upper edge inside the box
        style = dict(color="white", fontsize=4.5, bbox=label, clip_on=True, parse_math=False)
        axes.text(left, top, text, va=side, **style)


def draw_curves(judged: Sequence[Matches], names: Sequence[str], title: str, path: Path) -> Path:
    """Draw precision against recall at an overlap of 0.5, a curve a class and their mean -> path."""
    lines = np.array([precision_at_recalls(one)[0][0] for one in judged])  # [classes 101]
    return draw_precision_recall(RECALLS, lines, lines.mean(1), names, title, path)
