"""What an evaluation of a translator leaves to look at: translations beside their references, and where it looked.

Legend: S T tokens of a text and of its translation.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.types import ParallelText
from train.plots.classification import RIGHT
from train.plots.curves import GREY, INK, add_title, make_figure, save_figure

SHOWN = 15  # translations of each group
GROUPS = ("the worst by chrF", "as they come", "the best")


def write_side_by_side(pairs: ParallelText, made: Sequence[str], quality: np.ndarray, title: str, path: Path) -> Path:
    """Write texts, what is made of them and what is meant: the worst, some as they come, the best; quality [n] -> path.

    `quality` is chrF of each sentence.
    """
    order = np.argsort(quality, kind="stable")
    even = np.linspace(0, len(made) - 1, min(SHOWN, len(made))).astype(int)
    parts = [title]
    for name, chosen in zip(GROUPS, (order[:SHOWN], even, order[::-1][:SHOWN]), strict=True):
        parts.append(name)
        for i in chosen:
            lines = ((pairs.languages[0], pairs.texts[i]), ("made", made[i]), ("meant", pairs.translations[i]))
            body = "\n".join(_line(name, text) for name, text in lines)
            parts.append(f"pair {i:,}, chrF {quality[i]:.1f}\n{body}")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _line(name: str, text: str) -> str:
    return textwrap.fill(text or "(nothing)", 110, initial_indent=f"    {name:6} ", subsequent_indent=" " * 11)


class AttentionMap(NamedTuple):
    """One sentence: its tokens, those made of it, and the share of attention that each of these pays [T S]."""

    source: Sequence[str]
    translation: Sequence[str]
    weights: np.ndarray


def draw_attention(sentences: Sequence[AttentionMap], title: str, path: Path) -> Path:
    """Draw for each sentence which tokens of the text each written token attends to -> path."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("", ["white", RIGHT])
    columns = min(2, len(sentences))
    lines = -(-len(sentences) // columns)
    figure = make_figure(6.4 * columns, 5.6 * lines + 0.6)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, one in zip(grid, sentences, strict=False):
        axes.set_axis_on()
        axes.imshow(one.weights, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="none")
        axes.set_xticks(range(len(one.source)), one.source, rotation=90, parse_math=False)
        axes.set_yticks(range(len(one.translation)), one.translation, parse_math=False)
        axes.tick_params(length=0, colors=INK, labelsize=min(8, 240 / max(one.weights.shape)))
        axes.spines[:].set_color(GREY)
    add_title(figure, title, "down: what is written; across: the text; blue: the share of attention, 0 white to 1")
    return save_figure(figure, path)
