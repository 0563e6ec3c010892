"""Plots and texts of an evaluation: confusion, calibration, worst mistakes, passages of highest loss, values."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.eval_set import EvalSet
from data.images.resize import resize
from data.source import Source
from data.text.tokenizers import Tokenizer
from data.types import Examples
from train.evaluate import multilabel
from train.evaluate.evaluate import BINS, Rows, calibration, calibration_bins
from train.plots.curves import (
    GREY,
    HELD,
    INK,
    PALE,
    RIGHT,
    TRAIN,
    add_legend,
    add_title,
    class_label,
    make_colours,
    make_figure,
    save_figure,
    style_axes,
)
from train.setup.setup import Setup, dataset_title

MAX_MISTAKES = 40  # maximum number of mistakes shown
MAX_SIDE = 256  # maximum pixels of an image's longer side
PASSAGES = 20
WRITTEN = 20  # maximum number of classes with counts written in the matrix
NAMED = 60  # maximum number of classes with names at the axes
POINTS = 5000  # maximum number of points in a scatter plot
CURVES = 10  # maximum number of classes with a colour each


def start_plots(setup: Setup, workdir: str, n: int) -> tuple[str, str]:
    """The title and the path prefix of an evaluation's plots. Plots of an earlier evaluation are removed."""
    folder, config = Path(workdir) / "plots", setup.config
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"eval-{n}-*"):
        old.unlink()
    return (
        f"{setup.model.family} on {dataset_title(config)}, {config.eval.split}, checkpoint {n:,}",
        f"{folder}/eval-{n}",
    )


def draw(setup: Setup, source: Source, eval_set: EvalSet, rows: Rows, workdir: str, n: int) -> list[Path]:
    """Draw the plots of the task into `W/plots/eval-<n>-*` -> files."""
    title, start = start_plots(setup, workdir, n)
    if setup.task.is_language_model:
        assert setup.tokenizer is not None
        return [write_passages(eval_set, rows, setup.tokenizer, title, Path(f"{start}-passages.txt"))]
    if rows.prediction is None or rows.label is None:
        return []
    if setup.task.is_regression:
        return [draw_values(rows.label, rows.prediction, title, Path(f"{start}-values.png"))]
    names = source.names or tuple(map(str, range(source.classes or 0)))
    if setup.task.is_multilabel:
        lines, averages = multilabel.precision_recall_curves(rows.prediction, rows.label)
        return [
            draw_precision_recall(multilabel.RECALLS, lines, averages, names, title, Path(f"{start}-precision.png"))
        ]
    drawn = [draw_confusion(rows.label, rows.prediction, names, title, Path(f"{start}-confusion.png"))]
    if rows.confidence is not None:
        drawn.append(draw_reliability(rows, title, Path(f"{start}-calibration.png")))
    wrong = int((rows.prediction != rows.label).sum())
    chosen = worst_mistakes(rows.label, rows.prediction, rows.loss)
    some = f"the worst {MAX_MISTAKES} of " if wrong > MAX_MISTAKES else ""
    title = f"{title}: {some}{wrong:,} mistake{'s' * (wrong > 1)}"
    mistakes = ClassPredictions(rows.label[chosen], rows.prediction[chosen], rows.loss[chosen], names)
    if len(chosen) and source.documents:
        documents = [source.documents[i] for i in chosen]
        drawn.append(write_mistakes(documents, mistakes, title, Path(f"{start}-mistakes.txt")))
    elif len(chosen) and isinstance(source, Examples) and source.row_type().kind == "images":
        images = [_shrink(source.__getitems__([i])["image"][0]) for i in chosen]  # one at a time, as they may be large
        drawn.append(draw_mistakes(images, mistakes, title, Path(f"{start}-mistakes.png")))
    return drawn


class ClassPredictions(NamedTuple):
    """Classified rows [n]: label, predicted class and loss; and the class names."""

    labels: np.ndarray
    predictions: np.ndarray
    losses: np.ndarray
    names: Sequence[str]


def worst_mistakes(labels: np.ndarray, predictions: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The misclassified rows [at most 40], highest loss first: [n], [n], [n]."""
    wrong = np.flatnonzero(labels != predictions)
    return wrong[np.argsort(-losses[wrong], kind="stable")[:MAX_MISTAKES]]


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts by label [row] and predicted class [column]: [n], [n] -> [C C], C at least `classes`.

    A model may have more classes than the data, and one with NaN logits predicts the class C.
    """
    size = max(classes, int(labels.max()) + 1, int(predictions.max()) + 1)
    return np.bincount(labels.astype(np.int64) * size + predictions, minlength=size * size).reshape(size, size)


def draw_confusion(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str], title: str, path: Path) -> Path:
    """Draw labels against predictions, coloured by share of the row, with each class's accuracy beside it -> path."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    table = confusion_matrix(labels, predictions, len(names))
    size, total = len(table), table.sum(1)
    share = table / np.maximum(total, 1)[:, None]
    labelled = [class_label(names, i) for i in range(size)]
    side = min(max(0.46 * size, 3.4), 9.5)
    room = 0.07 * max(map(len, labelled)) if size <= NAMED else 0.3
    figure = make_figure(side + 2.6 + room, side + 1.3 + room)
    matrix, bars = figure.subplots(1, 2, sharey=True, width_ratios=(side, 1.6))
    same = np.eye(size, dtype=bool)
    norm = PowerNorm(0.5, 0, 1)  # a square root, so that rare mistakes are visible
    for colour, where in ((RIGHT, same), (HELD, ~same)):
        shades = LinearSegmentedColormap.from_list("", ["white", colour])
        matrix.imshow(np.ma.masked_where(~where, share), cmap=shades, norm=norm, aspect="auto", interpolation="none")
    if size <= WRITTEN:
        for i, j in np.argwhere(table):
            ink = "white" if share[i, j] > 0.4 else INK
            matrix.text(j, i, f"{table[i, j]:,}", ha="center", va="center", color=ink, fontsize=8)
    _draw_accuracies(bars, np.diag(table), total)
    for axes in (matrix, bars):
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0, colors=INK, labelsize=9 if size <= WRITTEN else 6)
    if size <= NAMED:
        turned = max(map(len, labelled)) > 3
        matrix.set_xticks(range(size), labelled, rotation=90 if turned else 0, parse_math=False)
        matrix.set_yticks(range(size), labelled, parse_math=False)
        matrix.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        matrix.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        matrix.grid(which="minor", color=PALE, lw=0.6)
    matrix.set_xlabel("prediction", color=INK)
    matrix.set_ylabel("label", color=INK)
    bars.set_title(f"right: {np.trace(table) / max(total.sum(), 1):.2%}", loc="left", color=RIGHT, fontsize=10)
    add_title(figure, title, "colour: square root of the share of the row")
    return save_figure(figure, path)


def _draw_accuracies(axes: Any, right: np.ndarray, total: np.ndarray) -> None:
    """Draw each class's accuracy as a bar, with numbers if there is room."""
    accuracy = right / np.maximum(total, 1)
    axes.barh(range(len(total)), np.where(total, 1.0, 0.0), color=PALE, height=0.6)
    axes.barh(range(len(total)), accuracy, color=RIGHT, height=0.6)
    axes.set_xlim(0, 1.9)
    axes.set_xticks([])
    axes.tick_params(labelleft=False)
    if len(total) <= WRITTEN:
        for i, (share, n) in enumerate(zip(accuracy, total, strict=True)):
            text = f"{share:.0%} of {n:,}" if n else "none"
            axes.text(1.06, i, text, va="center", color=GREY, fontsize=7)


def draw_reliability(rows: Rows, title: str, path: Path) -> Path:
    """Draw accuracy against confidence by bins of confidence, and the share of examples in each -> path.

    Source: DeGroot, Fienberg 1983, The Statistician 32; Guo et al. 2017, arXiv:1706.04599, figure 1.
    """
    assert rows.confidence is not None
    confidences = np.nan_to_num(rows.confidence.astype(np.float64))
    weight, right, bins = rows.weight, np.asarray(rows.prediction == rows.label), calibration_bins(confidences)
    total, hits, summed = (np.bincount(bins, weight * x, BINS) for x in (np.ones_like(confidences), right, confidences))
    full = total > 0
    accuracy, confidence = (np.where(full, x / np.where(full, total, 1), 0.0) for x in (hits, summed))
    middle, wide = (np.arange(BINS) + 0.5) / BINS, 0.9 / BINS
    figure = make_figure(5.5, 6.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color=GREY, lw=1, ls="--", label="accuracy = confidence")
    upper.bar(middle, accuracy, wide, color=RIGHT, label="accuracy")
    low = np.minimum(accuracy, confidence)
    upper.bar(middle, np.abs(accuracy - confidence), wide, low, color=HELD, alpha=0.3, lw=0)
    ends = (x[full] for x in (confidence, middle - wide / 2, middle + wide / 2))
    upper.hlines(*ends, color=HELD, lw=2, label="mean confidence")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    lower.bar(middle, total / max(total.sum(), 1), wide, color=TRAIN)
    style_axes(upper, title, "", "accuracy")
    style_axes(lower, "", "confidence: the probability of the prediction", "share of examples")
    for axes in (upper, lower):
        axes.set_axisbelow(True)
    error = calibration(confidences, right, weight)[0].sum() / max(weight.sum(), 1)
    upper.text(0.03, 0.95, f"expected calibration error {error:.4f}", color=INK, fontweight="bold", va="top")
    upper.legend(frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(0, 0.93))
    return save_figure(figure, path)


def _shrink(image: np.ndarray) -> np.ndarray:
    """Shrink an image to at most MAX_SIDE pixels per side: [Y X C] -> [y x C]."""
    share = MAX_SIDE / max(image.shape[:2])
    return image if share >= 1 else resize(image, tuple(max(1, round(side * share)) for side in image.shape[:2]))


def draw_mistakes(
    images: Sequence[np.ndarray] | np.ndarray, mistakes: ClassPredictions, title: str, path: Path
) -> Path:
    """Draw images, uint8 [Y X C] each, with label, predicted class and loss -> path."""
    columns = min(8, max(len(images), 5))
    lines = -(-len(images) // columns)
    figure = make_figure(1.35 * columns, 1.75 * lines + 0.8)
    figure.get_layout_engine().set(w_pad=0.08)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    small: dict[str, Any] = dict(transform=None, fontsize=8, parse_math=False)
    for axes, image, label, prediction, loss in zip(grid, images, *mistakes[:3], strict=False):
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
        small["transform"] = axes.transAxes
        axes.text(0, 1.03, class_label(mistakes.names, label, 12), va="bottom", color=INK, **small)
        axes.text(
            0, -0.03, class_label(mistakes.names, prediction, 12), va="top", color=HELD, fontweight="bold", **small
        )
        axes.text(1, -0.03, f"{loss:.2f}", va="top", ha="right", color=GREY, **small)
    add_title(figure, title, "above: label; below: prediction and loss")
    return save_figure(figure, path)


def write_mistakes(documents: Sequence[str], mistakes: ClassPredictions, title: str, path: Path) -> Path:
    """Write documents with label, predicted class and loss -> path."""
    parts = [title]
    for document, label, prediction, loss in zip(documents, *mistakes[:3], strict=True):
        short = textwrap.shorten(document, 600, placeholder=" …")
        names = [class_label(mistakes.names, i, None) for i in (label, prediction)]
        head = f"loss {loss:.3f}: {names[0]}, predicted {names[1]}"
        parts.append(f"{head}\n{_quote_lines(textwrap.fill(short, 100))}")
    return _write(parts, path)


def write_passages(eval_set: EvalSet, rows: Rows, tokenizer: Tokenizer, title: str, path: Path) -> Path:
    """Write the windows of text with the highest loss per token -> path.

    Windows with less than a quarter of the maximum number of tokens are left out: they are short ends of documents, in
    which a few hard words dominate.
    """
    assert isinstance(eval_set.fields, dict)
    long = np.flatnonzero(rows.weight >= rows.weight.max() / 4)
    chosen = long[np.argsort(-rows.loss[long], kind="stable")[:PASSAGES]]
    parts = [f"{title}: the {len(chosen)} windows of highest loss, of {len(rows.loss):,}"]
    for i in chosen:
        targets = eval_set.fields["targets"][i][eval_set.fields["weight"][i] > 0]
        head = f"loss {rows.loss[i]:.4f} nats per token over {len(targets)} tokens, window {i:,}"
        parts.append(f"{head}\n{_quote_lines(tokenizer.decode(targets))}")
    return _write(parts, path)


def draw_precision_recall(
    recalls: np.ndarray, lines: np.ndarray, averages: np.ndarray, names: Sequence[str], title: str, path: Path
) -> Path:
    """Draw precision against recall, one curve per class and their mean: [R], [C R], average precisions [C] -> path.

    A class without positive rows has a curve of NaN, which is not drawn.
    """
    figure = make_figure(7, 5)
    axes = figure.subplots()
    real = np.flatnonzero(np.isfinite(lines[:, 0]))
    many, entries = len(real) > CURVES, []
    for k, colour in zip(real, make_colours(len(real)), strict=True):
        line = axes.plot(recalls, lines[k], color=PALE if many else colour, lw=1 if many else 1.6)[0]
        if not many:
            entries.append((line, f"{class_label(names, k)}: {averages[k]:.3f}"))
    if len(real) > 1:
        line = axes.plot(recalls, lines[real].mean(0), color=INK, lw=2, ls="--")[0]
        entries.append((line, f"mean of {len(real)} classes: {averages[real].mean():.3f}"))
    style_axes(axes, title, "recall", "precision")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    if len(real):
        add_legend(axes, entries, title="average precision", loc="lower left").get_title().set_color(GREY)
    return save_figure(figure, path)


def draw_values(targets: np.ndarray, predictions: np.ndarray, title: str, path: Path) -> Path:
    """Draw a regressor's predictions against the targets, at most 5,000 rows: [n C], [n C] -> path."""
    figure = make_figure(5.5, 5.5)
    axes = figure.subplots()
    ends = np.concatenate([targets, predictions])
    low, high = (float(f(ends[np.isfinite(ends)])) for f in (np.min, np.max))
    axes.plot((low, high), (low, high), color=GREY, lw=1, label="prediction = target")
    for output, colour in zip(range(targets.shape[1]), make_colours(targets.shape[1]), strict=True):
        label = f"output {output}" if targets.shape[1] > 1 else None
        axes.scatter(
            targets[:POINTS, output], predictions[:POINTS, output], s=9, alpha=0.5, lw=0, color=[colour], label=label
        )
    style_axes(axes, title, "target", "prediction")
    axes.legend(frameon=False, labelcolor=INK)
    return save_figure(figure, path)


def _quote_lines(text: str) -> str:
    """Prefix each line with a bar, to show where lines start."""
    return "\n".join(f"    | {line}" for line in text.splitlines())


def _write(parts: list[str], path: Path) -> Path:
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
