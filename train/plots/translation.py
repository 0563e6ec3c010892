"""Output of a translator's evaluation: translations beside their references, and attention maps.

Legend: S T tokens of a text and of its translation.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.text.tokenizers import Tokenizer
from data.text.translation_rows import bos_id
from data.types import ParallelText
from errors import UsageError
from train.evaluate.translation import Translations, sentence_chrf
from train.plots.classification import RIGHT, start_plots
from train.plots.curves import GREY, INK, add_title, make_figure, save_figure

SHOWN = 15  # translations of each group
DRAWN, EASY, LONGEST = 4, 24, 96  # sentences whose attention is drawn; tokens that read well; and at most
GROUPS = ("the worst by chrF", "evenly spaced", "the best")


def write_side_by_side(pairs: ParallelText, made: Sequence[str], quality: np.ndarray, title: str, path: Path) -> Path:
    """Write source texts, translations and references -> path: the worst, evenly spaced ones, and the best.

    `quality` [n] is the chrF of each sentence.
    """
    order = np.argsort(quality, kind="stable")
    even = np.linspace(0, len(made) - 1, min(SHOWN, len(made))).astype(int)
    parts = [title]
    for name, chosen in zip(GROUPS, (order[:SHOWN], even, order[::-1][:SHOWN]), strict=True):
        parts.append(name)
        for i in chosen:
            lines = ((pairs.languages[0], pairs.texts[i]), ("output", made[i]), ("target", pairs.translations[i]))
            body = "\n".join(_line(name, text) for name, text in lines)
            parts.append(f"pair {i:,}, chrF {quality[i]:.1f}\n{body}")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _line(name: str, text: str) -> str:
    return textwrap.fill(text or "(nothing)", 110, initial_indent=f"    {name:6} ", subsequent_indent=" " * 11)


class AttentionMap(NamedTuple):
    """The tokens of a source and of its translation, and the attention weights of the latter on the former [T S]."""

    source: Sequence[str]
    translation: Sequence[str]
    weights: np.ndarray


def draw_attention(sentences: Sequence[AttentionMap], title: str, path: Path) -> Path:
    """Draw for each sentence the attention weights of each output token on the source tokens -> path."""
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
    add_title(figure, title, "rows: output tokens; columns: source tokens; blue: attention weight, from 0 (white) to 1")
    return save_figure(figure, path)


def draw(translations: Translations, workdir: str, n: int) -> list[Path]:
    """Write translations beside their references, and draw attention maps if the model has attention -> files."""
    title, start = start_plots(translations.setup, workdir, n)
    quality = sentence_chrf(translations.texts, translations.pairs.translations)
    head = "\n".join([title, *map(str, translations.scores)])
    path = Path(f"{start}-translations.txt")
    files = [write_side_by_side(translations.pairs, translations.texts, quality, head, path)]
    try:
        with translations.setup.activate(), jax.set_mesh(translations.place.mesh):
            sentences = [attention_map(translations, i) for i in pick_sentences(translations)]
    except UsageError:  # a network without attention
        return files
    if sentences:
        files.append(draw_attention(sentences, title, Path(f"{start}-attention.png")))
    return files


def pick_sentences(translations: Translations) -> list[int]:
    """Indices of sentences to draw: some that are short on both sides, else the shortest."""
    texts = [translations.tokenizer.encode(text) for text in translations.pairs.texts]
    tokens = translations.tokens
    longer = [max(len(text), len(ids)) for text, ids in zip(texts, tokens, strict=True)]
    known = [i for i, ids in enumerate(tokens) if len(ids) and len(texts[i]) and longer[i] < LONGEST]
    short = [i for i in known if longer[i] < EASY and len(tokens[i]) > 2]
    return short[:: max(1, len(short) // DRAWN)][:DRAWN] or sorted(known, key=longer.__getitem__)[:DRAWN]


def attention_map(translations: Translations, i: int) -> AttentionMap:
    """The attention of each token of translation i on the tokens of its text."""
    tokenizer, model = translations.tokenizer, translations.setup.model
    source = np.append(tokenizer.encode(translations.pairs.texts[i]), tokenizer.eot).astype(np.int32)
    made = np.append(translations.tokens[i], tokenizer.eot)
    tokens = np.append(bos_id(tokenizer), translations.tokens[i]).astype(np.int32)
    inputs = {"source": jnp.asarray(source)[None], "tokens": jnp.asarray(tokens)[None]}
    weights = model.module.alignment(translations.variables, inputs, model.config)
    return AttentionMap(_token_texts(tokenizer, source), _token_texts(tokenizer, made), np.asarray(weights[0]))


def _token_texts(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The text of each token, a middle dot for a space; `end` if it has none."""
    return [tokenizer.decode([int(i)]).replace(" ", "·") or "end" for i in ids]
