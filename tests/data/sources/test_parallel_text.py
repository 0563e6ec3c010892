"""Texts with their translations: where they come from, and how they lie in rows."""

import os
from pathlib import Path

import numpy as np
import pytest

from data import sampler, sources
from data.source import Reading
from data.sources import parallel_text
from data.text import tokenizers
from data.types import ParallelText
from errors import UsageError

SIDES = ["one", "two words", "", "more than eight bytes"], ["eins", "zwei Wörter", "leer", "x"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("test", "train"):
        for side, lines in zip(("en", "de"), SIDES, strict=True):
            (tmp_path / f"{split}.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_lines_of_two_files_are_pairs(folder: Path) -> None:
    """An empty line is a text too; the newline at the end begins no further one."""
    found = sources.load(str(folder), "test", field="en:de")
    assert isinstance(found, ParallelText)
    assert (found.texts, found.translations) == tuple(map(tuple, SIDES))
    assert found.documents == found.texts + found.translations
    assert sources.splits_of(str(folder), field="en:de") == ("train", "test")
    back = sources.load(str(folder), "test", field="de:en")
    assert isinstance(back, ParallelText)
    assert (back.texts, back.languages) == (found.translations, ("de", "en"))
    assert back.identity["checksum"] != found.identity["checksum"]


def test_hidden_files_are_no_splits_and_sides_are_of_any_case(folder: Path) -> None:
    for name in ("._train.en", "._train.de", "dev.EN", "dev.De"):
        (folder / name).write_text("one\n", encoding="utf-8")
    assert sources.splits_of(str(folder), field="en:de") == ("train", "dev", "test")
    assert len(sources.load(str(folder), "dev", field="en:de")) == 1
    (folder / "dev.DE").write_text("two\n", encoding="utf-8")
    (folder / "dev.de").write_text("three\n", encoding="utf-8")
    (folder / "dev.De").unlink()
    for side, text in (("de", "three"), ("DE", "two")):
        assert sources.load(str(folder), "dev", field=f"en:{side}").translations == (text,)


def test_two_named_files_hold_their_last_tenth_out(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n".join(f"{name} {i}" for i in range(25)), encoding="utf-8")
    parts = [sources.load(str(tmp_path), split, field="a.txt:b.txt") for split in ("train", "validation")]
    assert [len(p) for p in parts] == [23, 2]
    assert isinstance(parts[1], ParallelText)
    assert parts[1].translations == ("b.txt 23", "b.txt 24")


def test_what_does_not_lie_side_by_side_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"split 'dev'; it has train, test"):
        sources.load(str(folder), "dev", field="en:de")
    with pytest.raises(UsageError, match=r"expected test\.en and test\.fr"):
        sources.load(str(folder), "test", field="en:fr")
    (folder / "test.de").write_text("eins\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"the same number of lines; there are 4 in test\.en and 1 in test\.de"):
        sources.load(str(folder), "test", field="en:de")
    (folder / "test.de").write_bytes(b"\xff\n" * 4)
    with pytest.raises(UsageError, match="not UTF-8"):
        sources.load(str(folder), "test", field="en:de")


def test_rows_predict_the_translation() -> None:
    """tokens are the targets one later, after the start; weights and mask end with the end of the text."""
    made = tokenizers.make("byte", ())
    given = ParallelText(("ab",), ("xyz",), ("en", "de"), {"name": "p"})
    found = given.as_examples(Reading(made, 16), truncate=False)
    row = {k: v[0] for k, v in found.__getitems__([0]).items()}
    end, fill = made.eot, [0] * 4
    np.testing.assert_array_equal(row["source"], [97, 98, end, 0, *fill])
    np.testing.assert_array_equal(row["source_mask"], [1, 1, 1, 0, *fill])
    np.testing.assert_array_equal(row["tokens"], [end, 120, 121, 122, end, 0, 0, 0])  # the last have no weight
    np.testing.assert_array_equal(row["targets"], [120, 121, 122, end, *fill])
    np.testing.assert_array_equal(row["weight"], [1, 1, 1, 1, *fill])


@pytest.mark.parametrize("limit", [5, 12, 64])
def test_lengths_end_at_the_limit(limit: int) -> None:
    """To learn from, what is longer or empty is left out; to be examined, it is cut."""
    made = tokenizers.make("byte", ())
    given = ParallelText(*map(tuple, SIDES), ("en", "de"), {"name": "p"})
    learnt, asked = (given.as_examples(Reading(made, limit), truncate=cut) for cut in (False, True))
    fit = [min(lengths) > 0 and max(lengths) < limit for lengths in [(3, 4), (9, 12), (0, 4), (21, 1)]]
    assert len(learnt) == sum(fit)
    assert len(asked) == 4
    for rows in (learnt, asked):
        fields = rows.__getitems__(range(len(rows)))
        assert fields["source"].shape[1] <= limit
        assert fields["tokens"].shape[1] <= limit
        np.testing.assert_array_equal(fields["tokens"][:, 1:], fields["targets"][:, :-1])
    weights = asked.__getitems__(range(4))["weight"].sum(1)
    np.testing.assert_array_equal(weights, np.minimum([5, 13, 5, 2], limit))


def test_no_pair_short_enough_is_refused() -> None:
    with pytest.raises(UsageError, match="no pair of at most 2 tokens"):
        ParallelText(("abc",), ("x",), ("en", "de"), {"name": "p"}).rows(Reading(tokenizers.make("byte", ()), 2))
    with pytest.raises(UsageError, match="p has no pair of two texts"):
        ParallelText((), (), ("en", "de"), {"name": "p"}).rows(Reading(tokenizers.make("byte", ()), 9))


def test_lengths_are_cut_into_parts() -> None:
    given = ParallelText(*map(tuple, SIDES), ("en", "de"), {"name": "p"})
    for parts, length in ((1, 16), (3, 24), (16, 16)):
        found = given.as_examples(Reading(tokenizers.make("byte", ()), 48, parts=parts), truncate=True)
        assert found.shapes["tokens"] == (length,)


def test_a_language_is_not_translated_into_itself() -> None:
    with pytest.raises(UsageError, match="must name two different languages"):
        parallel_text.languages("en:en")


def test_a_batch_keeps_the_weights_of_tokens() -> None:
    given = ParallelText(*map(tuple, SIDES), ("en", "de"), {"name": "p"})
    corpus = given.rows(Reading(tokenizers.make("byte", ()), 64))
    batch = sampler.BatchSampler((corpus,), (sampler.Phase(0, 3),), 0).batch(0)
    assert batch["weight"].shape == batch["tokens"].shape


def test_a_bpe_is_learnt_alike_each_time() -> None:
    """Each process learns it for itself."""
    corpus = [f"some words and {i} others" for i in range(50)]
    one, two = (tokenizers.make("bpe", corpus, 300) for _ in range(2))
    assert one.vocab == 300
    assert one.description() == two.description()
    assert one.decode(one.encode(corpus[7])) == corpus[7]


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set: no prepared data")
def test_multi30k_has_its_pairs() -> None:
    found = sources.load("multi30k_en_de", "test", field="en:de", data_dir=os.environ["TFDS_DATA_DIR"])
    assert isinstance(found, ParallelText)
    assert len(found) == 1000
    assert "A man in an orange hat starring at something." in found.texts
    with pytest.raises(UsageError, match="text field of multi30k_en_de"):
        sources.load("multi30k_en_de", "test", field="en:fr", data_dir=os.environ["TFDS_DATA_DIR"])
