"""The loss curve of a run, from its `metrics.jsonl`, and the style of all plots."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.record.metrics import read

INK, PALE, GREY, TRAIN, HELD, RIGHT = "#22303c", "#d9dee3", "#6b7780", "#8fb3d9", "#c2410c", "#2563a8"


def draw_loss(workdir: str, title: str, unit: str) -> str | None:
    """Draw training and held-out loss against updates into `W/plots/loss.png` -> path, or None without points."""
    lines = read(workdir)
    train, held = _points(lines, "train"), _points(lines, "eval")
    if not train and not held:
        return None
    figure = make_figure(8, 4.5)
    axes = figure.subplots()
    entries = []
    if train:
        xs, ys = zip(*train, strict=True)
        line, what = axes.plot(xs, ys, color=TRAIN, lw=1, alpha=0.6)[0], "training batches"
        if len(xs) > 20:
            line, what = axes.plot(xs, _smooth(ys), color=RIGHT, lw=1.8)[0], "training, smoothed"
        entries.append((line, what))
    if held:
        xs, ys = zip(*held, strict=True)
        split = next(line.get("split") for line in lines if line["kind"] == "eval")
        line = axes.plot(xs, ys, color=HELD, lw=1.8, marker="o", ms=5)[0]
        entries.append((line, f"{split or 'no split named'} (held out)"))
        axes.annotate(f"{ys[-1]:.4g}", (xs[-1], ys[-1]), (6, 0), textcoords="offset points", color=HELD, va="center")
    style_axes(axes, title, "updates", f"loss ({unit})")
    axes.margins(x=0.06)
    low, high = min(y for _, y in train + held), max(y for _, y in train + held)
    if low > 0 and high / low > 20:
        axes.set_yscale("log")
    add_legend(axes, entries)
    return str(save_figure(figure, Path(workdir) / "plots" / "loss.png"))


def make_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches, without a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout="constrained")


def style_axes(axes: Any, title: str, x: str, y: str) -> None:
    """Set the title and labels of axes, and the common style."""
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", parse_math=False)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=PALE, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK)


def add_title(figure: Any, title: str, caption: str) -> None:
    """Add a title above a figure and a caption below it."""
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=12, fontweight="bold", parse_math=False)
    figure.supxlabel(caption, x=0.012, ha="left", color=GREY, fontsize=8)


def add_legend(axes: Any, entries: Sequence[tuple[Any, str]], **style: Any) -> Any:
    """Add a legend of artists and literal labels: `$` starts no formula, and a leading `_` hides no entry."""
    made = axes.legend([one for one, _ in entries], ["-"] * len(entries), frameon=False, labelcolor=INK, **style)
    for text, (_, label) in zip(made.get_texts(), entries, strict=True):
        text.set(text=label, parse_math=False)
    return made


def class_label(names: Sequence[str], i: int | np.integer, width: int | None = 15) -> str:
    """The name of a class, truncated to `width`, or its number if it has no name."""
    name = names[int(i)] if i < len(names) else str(i)
    return name if width is None or len(name) <= width else f"{name[: width - 1]}…"


def make_colours(count: int) -> list[Any]:
    """`count` distinguishable colours; a single one is RIGHT."""
    from matplotlib import colormaps

    return [RIGHT] if count == 1 else [colormaps["viridis"](i / count) for i in range(count)]


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure -> path. A character that no font has becomes a box, without a warning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ |Matplotlib currently does not support", UserWarning)
        figure.savefig(path)
    return path


def _points(lines: list[dict[str, Any]], kind: str) -> list[tuple[int, float]]:
    found = [(line["step"], line["metrics"].get("loss")) for line in lines if line["kind"] == kind]
    return [(step, loss) for step, loss in found if isinstance(loss, float)]


def _smooth(values: tuple[float, ...]) -> list[float]:
    """An exponential moving average over about a fiftieth of the run, with bias correction."""
    keep = 1 - 1 / max(3, len(values) / 50)
    mean = weight = 0.0
    result = []
    for v in values:
        mean = keep * mean + (1 - keep) * v
        weight = keep * weight + (1 - keep)
        result.append(mean / weight)
    return result
