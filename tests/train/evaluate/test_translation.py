"""Translations scored and shown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.types import ParallelText
from train.evaluate import translation
from train.plots import translation as translation_plots

TEXTS = [f"the number {i} is a number that is said here" for i in range(30)]


def test_bleu_and_chrf_of_a_perfect_and_an_empty_translation() -> None:
    """100 without an error, and 0; the signature says how it was computed."""
    for name, metric in zip(("BLEU", "chrF"), translation.bleu_and_chrf(TEXTS, TEXTS), strict=True):
        assert metric.name == name
        assert metric.value == pytest.approx(100)
        assert metric.stderr == pytest.approx(0, abs=1e-4)
        assert "nrefs:1" in metric.signature
        assert "version:" in metric.signature
    assert [m.value for m in translation.bleu_and_chrf([""] * 30, TEXTS)] == [0, 0]


def test_bleu_by_hand() -> None:
    """One sentence of six words, five right: precisions 5/6, 3/5, 2/4, 1/3 and no penalty (Papineni et al. 2002)."""
    made, meant = ["the cat sat on the mat"] * 20, ["the cat sat on a mat"] * 20
    want = 100 * float(np.prod([5 / 6, 3 / 5, 2 / 4, 1 / 3])) ** 0.25
    assert translation.bleu_and_chrf(made, meant)[0].value == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("texts", [["die katze"] + [""] * 29, ["", ""], ["a", ""]])
def test_empty_translations_are_scored(texts: list[str]) -> None:
    """As a model gives them that has learnt nothing yet: also where resamples hold no n-gram at all."""
    found = translation.bleu_and_chrf(texts, ["die katze schläft"] * len(texts))
    assert all(0 <= metric.value < 50 and metric.stderr >= 0 for metric in found)


def test_words_are_parted_by_the_language() -> None:
    """Chinese has no spaces: as one word, a sentence with one wrong character would be all wrong."""
    said, meant = ["一只小狗在草地上快乐地奔跑着"] * 2, ["一只小猫在草地上快乐地奔跑着"] * 2
    assert translation.bleu_and_chrf(said, meant, "zh-CN")[0].value > 60
    assert translation.bleu_and_chrf(said, meant)[0].value < 1
    assert "tok:zh" in translation.bleu_and_chrf(said, meant, "zh")[0].signature


def test_one_sentence_has_no_error() -> None:
    assert all(np.isnan(metric.stderr) for metric in translation.bleu_and_chrf(["a b c d"], ["a b c d"]))


def test_the_error_falls_with_the_root_of_the_count() -> None:
    made = [text if i % 2 else text.upper() for i, text in enumerate(TEXTS)]
    few, many = (translation.bleu_and_chrf(made * n, TEXTS * n)[0].stderr for n in (1, 16))
    assert 3 < few / many < 5.5


def test_the_worst_translations_come_first(tmp_path: Path) -> None:
    """By chrF of each; each group once, the text, what was made and what was meant."""
    made = list(TEXTS)
    made[7] = "nothing of the kind"
    quality = translation.sentence_chrf(made, TEXTS)
    assert quality.argmin() == 7
    pairs = ParallelText(tuple(TEXTS), tuple(TEXTS), ("en", "de"), {})
    path = translation_plots.write_side_by_side(pairs, made, quality, "a title", tmp_path / "t.txt")
    lines = path.read_text().splitlines()
    assert lines[0] == "a title"
    assert lines[4].startswith("pair 7, chrF")
    assert [line.split()[0] for line in lines[5:8]] == ["en", "output", "target"]
    assert lines[6].endswith("nothing of the kind")


def test_attention_is_drawn_dark_where_it_is_paid(tmp_path: Path) -> None:
    share = np.eye(3)[[0, 1, 2, 2]]
    one = translation_plots.AttentionMap(["a", "·b", "end"], ["x", "·y", "$z$", "end"], share)
    path = translation_plots.draw_attention([one, one, one], "a title", tmp_path / "a.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    blue = (pixels[..., 2] > pixels[..., 0] + 60).mean()
    assert 0.05 < blue < 0.4
