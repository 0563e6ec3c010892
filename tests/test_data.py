"""The data side: plans, windows, tokenizers, sources, exams, augmentation and the loader."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import augment, embedded, evaluation, loader, plan, sequences, sources, tokenizers
from data.kinds import Examples, Texts
from data.plan import PATTERN, ExampleCorpus, Phase, Plan
from data.sequences import WindowCorpus
from errors import UsageError

BYTE = tokenizers.Bytes()
EOT = BYTE.vocab - 1


def numbered(count: int, first: int = 0) -> ExampleCorpus:
    """A corpus whose examples carry their own number."""
    fields = {"label": np.arange(first, first + count, dtype=np.int32)}
    return ExampleCorpus(Examples(fields, count, {"name": "numbered"}, count))


def texts(*documents: str) -> Texts:
    return Texts(documents, {"name": "made", "split": "train"})


def labels(p: Plan, steps: range) -> list[int]:
    return [int(n) for step in steps for n in p.batch(step)["label"]]


# The plan


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.3)])
def test_batch_of_rows_is_rows_of_batch(weights: tuple[float, ...]) -> None:
    """A process that reads some rows reads what the whole batch holds there."""
    corpora = tuple(numbered(17, 100 * i) for i in range(len(weights)))
    p = Plan(corpora, (Phase(0, 12, weights),), seed=3)
    for step in (0, 1, 40, 10**6):
        whole = p.batch(step)
        for rows in ([0], [11, 3], [2, 4, 6], list(range(12))):
            part = p.batch(step, rows)
            assert part.keys() == whole.keys()
            for name in whole:
                np.testing.assert_array_equal(part[name], whole[name][rows])


def test_batch_is_a_pure_function_of_seed_and_step() -> None:
    """Two plans alike give the same batch in any order of asking; another seed gives another order."""
    make = lambda seed: Plan((numbered(50),), (Phase(0, 10),), seed)  # noqa: E731
    a, b = make(1), make(1)
    late = a.batch(4)["label"]
    b.batch(0)
    np.testing.assert_array_equal(b.batch(4)["label"], late)
    assert labels(make(2), range(5)) != labels(make(1), range(5))


@pytest.mark.parametrize(("count", "size"), [(20, 5), (7, 5), (1, 3), (2, 1)])
def test_every_epoch_holds_each_example_once(count: int, size: int) -> None:
    """Whatever the batch size, consumption cut at the epoch's length is a permutation each time."""
    epochs = 6
    seen = labels(Plan((numbered(count),), (Phase(0, size),), seed=0), range(-(-epochs * count // size)))
    for e in range(epochs):
        assert sorted(seen[e * count : (e + 1) * count]) == list(range(count))


def test_epochs_differ() -> None:
    """Each epoch has an order of its own, none the identity."""
    seen = labels(Plan((numbered(30),), (Phase(0, 30),), seed=0), range(5))
    orders = {tuple(seen[i : i + 30]) for i in range(0, 150, 30)} | {tuple(range(30))}
    assert len(orders) == 6


def test_a_new_batch_size_neither_repeats_nor_skips() -> None:
    """The examples of three phases are, in order, those that one phase would have consumed."""
    phased = Plan((numbered(23),), (Phase(0, 4), Phase(3, 9), Phase(5, 2)), seed=5)
    plain = Plan((numbered(23),), (Phase(0, 1),), seed=5)
    assert [len(phased.batch(n)["label"]) for n in range(7)] == [4, 4, 4, 9, 9, 2, 2]
    assert [phased.consumed(n) for n in range(8)] == [0, 4, 8, 12, 21, 30, 32, 34]
    assert labels(phased, range(7)) == labels(plain, range(34))


def test_a_phase_that_never_ran_changes_nothing() -> None:
    """Two phases from one step: the last one counts, as after two changes without an update between."""
    twice = Plan((numbered(23),), (Phase(0, 4), Phase(3, 9), Phase(3, 2)), seed=5)
    once = Plan((numbered(23),), (Phase(0, 4), Phase(3, 2)), seed=5)
    assert labels(twice, range(8)) == labels(once, range(8))


def test_phases_survive_a_manifest() -> None:
    """phases_as_json and phases_from are inverse."""
    phases = (Phase(0, 4, (0.5, 0.5)), Phase(10, 8, (0.25, 0.75)))
    assert plan.phases_from(plan.phases_as_json(phases)) == phases


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 1, 2), (3, 0, 1), (1, 1, 1)])
def test_mixture_keeps_its_shares_exactly(weights: tuple[float, ...]) -> None:
    """Over PATTERN places each corpus serves its share, rounded to a place."""
    corpora = tuple(numbered(400, 1000 * i) for i in range(len(weights)))
    p = Plan(corpora, (Phase(0, PATTERN, weights),), seed=1)
    for step in (0, 7):
        served = np.bincount(p.batch(step)["label"] // 1000, minlength=len(weights))
        assert np.abs(served - PATTERN * np.array(weights) / sum(weights)).max() < 1


def test_mixture_skips_no_item_of_any_corpus() -> None:
    """Every corpus goes through its epochs in turn, over many repeats of the pattern."""
    p = Plan((numbered(37), numbered(91, 1000)), (Phase(0, 50, (0.35, 0.65)),), seed=2)
    seen = labels(p, range(50))
    for first, count in ((0, 37), (1000, 91)):
        mine = [n - first for n in seen if n // 1000 == first // 1000]
        assert len(mine) > 3 * count
        for start in range(0, len(mine) - count + 1, count):
            assert sorted(mine[start : start + count]) == list(range(count))


def test_a_small_share_of_a_mixture_is_served() -> None:
    p = Plan((numbered(400), numbered(400, 1000)), (Phase(0, 10**5, (1e-3, 1.0)),), seed=1)
    assert sum(p.batch(0)["label"] < 1000) == pytest.approx(100, abs=1)  # a pattern of 10^5 places


def test_new_mixture_weights_neither_repeat_nor_skip() -> None:
    """A phase with other weights goes on where each corpus stood."""
    phases = (Phase(0, 30, (0.5, 0.5)), Phase(7, 30, (0.9, 0.1)), Phase(9, 20, (0.2, 0.8)))
    p = Plan((numbered(37), numbered(91, 1000)), phases, seed=2)
    seen = labels(p, range(60))
    for first, count in ((0, 37), (1000, 91)):
        mine = [n - first for n in seen if n // 1000 == first // 1000]
        for start in range(0, len(mine) - count + 1, count):
            assert sorted(mine[start : start + count]) == list(range(count))


def test_a_mixture_of_unlike_sets_is_refused() -> None:
    """Sets with other fields or shapes do not mix; the message names the fields."""
    digits, xor = (ExampleCorpus(sources.load(n, "train")) for n in ("digits", "xor"))
    with pytest.raises(UsageError, match=r"same fields.*image.*features"):
        Plan((digits, xor), (Phase(0, 4, (1.0, 1.0)),), seed=0)


# Windows of text


def windows_of_epoch(corpus: WindowCorpus, epoch: int) -> dict[str, np.ndarray]:
    positions = np.arange(len(corpus))
    return corpus.items(np.full(len(corpus), epoch), positions)


def test_targets_are_the_next_tokens() -> None:
    """In the stream, target t follows token t, also at a window's end; an epoch's windows lie end to end."""
    text = "".join(chr(33 + i) for i in range(90))  # each character once: its place in the stream is known
    corpus = WindowCorpus(texts(text), BYTE, context=8, seed=0)
    for epoch in range(20):
        got = windows_of_epoch(corpus, epoch)
        np.testing.assert_array_equal(got["targets"], got["tokens"] + 1)
        np.testing.assert_array_equal(np.diff(got["tokens"].ravel()), 1)
        assert got["tokens"].min() >= 33
        assert got["targets"].max() < 33 + 90
        assert got["weight"].all()
        assert got["weight"].shape == got["tokens"].shape == (len(corpus), 8)


def test_epochs_shift_the_grid_of_windows() -> None:
    """Each epoch begins at an offset of its own, and all of the context's offsets occur."""
    corpus = WindowCorpus(texts("".join(chr(33 + i) for i in range(90))), BYTE, context=4, seed=0)
    starts = [int(windows_of_epoch(corpus, e)["tokens"][0, 0]) - 33 for e in range(60)]
    assert set(starts) == {0, 1, 2, 3}


@pytest.mark.parametrize(("length", "context"), [(9, 8), (16, 8), (17, 8), (24, 8), (25, 8), (2, 1), (3, 1), (100, 7)])
def test_windows_never_leave_a_small_stream(length: int, context: int) -> None:
    """The smallest corpora give whole windows in every epoch."""
    corpus = WindowCorpus(texts("".join(chr(33 + i % 90) for i in range(length))), BYTE, context, seed=4)
    assert len(corpus) >= 1
    for epoch in range(3 * context):
        got = windows_of_epoch(corpus, epoch)
        assert got["targets"].shape == (len(corpus), context)
        assert len(corpus) * context < length


@pytest.mark.parametrize(("documents", "tokens"), [(("",), 0), (("12345678",), 8), (("123", "4"), 6)])
def test_a_stream_shorter_than_a_window_is_refused(documents: tuple[str, ...], tokens: int) -> None:
    """One clear line: which set, how many tokens, which context, what to do."""
    with pytest.raises(UsageError) as caught:
        WindowCorpus(texts(*documents), BYTE, context=8, seed=0)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("made", f"{tokens} tokens", "context 8", "model.context"):
        assert part in message


def test_documents_end_in_eot() -> None:
    """Several documents are laid end to end, each closed; one document alone is left as it is."""
    np.testing.assert_array_equal(sequences.stream(texts("ab", "", "c"), BYTE), [97, 98, EOT, EOT, 99, EOT])
    np.testing.assert_array_equal(sequences.stream(texts("ab"), BYTE), [97, 98])


# Tokenizers

UNICODE = ["", "plain", "naïve – “quoted”", "日本語", "🙂👩‍🚀", "\x00\r\n\t\x7f", "a\u0301", "\ufffd\uffff\U0010ffff"]


@pytest.mark.parametrize("text", UNICODE)
def test_bytes_round_trip(text: str) -> None:
    """Any text comes back from its bytes, eot decodes to nothing, and the lengths add up to the UTF-8 length."""
    ids = BYTE.encode(text)
    assert ids.dtype == np.int32
    assert BYTE.decode([*ids, EOT]) == text
    assert BYTE.byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("text", UNICODE)
def test_characters_round_trip(text: str) -> None:
    """Any text of the corpus comes back, an id a character."""
    made = tokenizers.make("char", UNICODE)
    ids = made.encode(text)
    assert ids.dtype == np.int32
    assert len(ids) == len(text)
    assert made.decode([*ids, made.vocab - 1]) == text
    assert made.byte_lengths[ids].sum() == len(text.encode())
    assert made.byte_lengths[-1] == 0
    assert ids.max(initial=0) < made.vocab - 1


def test_broken_utf8_decodes_to_a_replacement() -> None:
    """Half a character is shown as U+FFFD, not raised."""
    assert BYTE.decode(BYTE.encode("é")[:1]) == "\ufffd"


@pytest.mark.parametrize("strange", ["z", "A", "é", "🙂"])
def test_an_unknown_character_is_named(strange: str) -> None:
    """The refusal names the character, and what would take it."""
    made = tokenizers.make("char", ["abc"])
    with pytest.raises(UsageError, match=f"character '{strange}'.*data.tokenizer=byte"):
        made.encode(f"ab{strange}c")


def test_a_character_tokenizer_needs_characters() -> None:
    """An empty corpus is refused."""
    with pytest.raises(UsageError, match="at least one character"):
        tokenizers.make("char", ["", ""])


@pytest.mark.parametrize("made", [BYTE, tokenizers.make("char", ["hello, wörld"])], ids=["byte", "char"])
def test_restore_is_the_inverse_of_description(made: tokenizers.Tokenizer) -> None:
    """A tokenizer comes back from its description, with the same fingerprint."""
    again = tokenizers.restore(made.description())
    assert again == made
    assert tokenizers.fingerprint(again.description()) == tokenizers.fingerprint(made.description())
    other = tokenizers.make("char", ["hello"])
    assert tokenizers.fingerprint(other.description()) != tokenizers.fingerprint(made.description())


def test_unknown_tokenizer_names_the_nearest() -> None:
    """`bytes` is answered by `byte`."""
    with pytest.raises(UsageError, match=r"'bytes'.*did you mean 'byte'"):
        tokenizers.make("bytes", ())


# Exams

DOCUMENTS = ("first, of 21 bytes: é", "", "x", "the third is longer than two windows of eight")


def gather(exam: evaluation.Exam, size: int) -> dict[str, np.ndarray]:
    """All rows of an exam, padding included."""
    parts = list(exam.batches(size, range(size)))
    assert all(len(p["weight"]) == size for p in parts)
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


@pytest.mark.parametrize("size", [1, 2, 5, 9, 16])
@pytest.mark.parametrize("context", [1, 8, 64])
def test_exam_counts_every_token_and_byte_once(size: int, context: int) -> None:
    """By document: its tokens and its end, its UTF-8 bytes; rows of padding weigh nothing, at any batch size."""
    exam = evaluation.of_texts(texts(*DOCUMENTS), BYTE, context)
    got = gather(exam, size)
    n = len(exam)
    assert got["weight"][n:].sum() == got["bytes"][n:].sum() == 0
    for i, document in enumerate(DOCUMENTS):
        rows = np.flatnonzero(exam.clusters == i)
        real = got["weight"][rows] == 1
        assert BYTE.decode(got["targets"][rows][real]) == document
        assert list(got["targets"][rows][real]) == [*BYTE.encode(document), EOT]
        assert list(got["tokens"][rows][real]) == [EOT, *BYTE.encode(document)]
        assert got["bytes"][rows].sum() == len(document.encode())
    assert set(np.unique(got["weight"])) <= {0.0, 1.0}
    assert set(exam.clusters) == {0, 1, 2, 3}


def test_exam_bytes_of_characters() -> None:
    """A character of several bytes counts as many."""
    made = tokenizers.make("char", DOCUMENTS)
    got = gather(evaluation.of_texts(texts(*DOCUMENTS), made, 8), 3)
    assert got["bytes"].sum() == sum(len(d.encode()) for d in DOCUMENTS)
    assert got["weight"].sum() == sum(len(d) + 1 for d in DOCUMENTS)


def test_exam_of_one_document() -> None:
    """All tokens but the first are told, once each; each window is its own cluster."""
    text = "one document alone, of some length"
    exam = evaluation.of_texts(texts(text), BYTE, 8)
    got = gather(exam, 3)
    assert BYTE.decode(got["targets"][got["weight"] == 1]) == text[1:]
    assert len(set(exam.clusters)) == len(exam) == -(-(len(text) - 1) // 8)


@pytest.mark.parametrize("documents", [(), ("",), ("a",)])
def test_exam_of_nothing_is_empty(documents: tuple[str, ...]) -> None:
    """Where there is nothing to tell there is no batch."""
    exam = evaluation.of_texts(texts(*documents), BYTE, 1)
    assert len(exam) == 0
    assert list(exam.batches(4, range(4))) == []


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_exam_holds_each_example_once(size: int) -> None:
    """Examples come in order, each a cluster, the rest padded by weight 0."""
    exam = evaluation.of_examples(numbered(10).source)
    got = gather(exam, size)
    np.testing.assert_array_equal(got["label"][got["weight"] == 1], np.arange(10))
    assert got["weight"].sum() == 10
    assert len(set(exam.clusters)) == 10


def test_exam_rows_are_rows_of_the_batch() -> None:
    """A process that owns some rows reads those, padding included."""
    exam = evaluation.of_texts(texts(*DOCUMENTS), BYTE, 8)
    for whole, part in zip(exam.batches(5, range(5)), exam.batches(5, [4, 1]), strict=True):
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][[4, 1]])


def test_exam_prepares_images() -> None:
    """Images of an exam are scaled, never augmented."""
    source = sources.load("digits", "test")
    exam = evaluation.of_examples(source, augment.Images(0, (), 0.5, 0.25))
    got = gather(exam, 100)["image"][: len(source)]
    want = (source.fields["image"].astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(got, want, rtol=1e-6)


# Augmentation


def images(count: int = 8, side: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, side, side, 2)).astype(np.uint8)


def test_augmentation_is_keyed_by_row() -> None:
    """A row's image does not depend on the rows read with it."""
    do = augment.Images(7, augment.parse("flip,crop:2"))
    whole = do({"image": images()}, 3, np.arange(8))["image"]
    for rows in ([5], [6, 1], [7, 0, 3]):
        part = do({"image": images()[rows]}, 3, np.array(rows))["image"]
        np.testing.assert_array_equal(part, whole[rows])


def test_augmentation_differs_by_seed_step_and_row() -> None:
    """The same image comes out otherwise for another seed, step or row."""
    same = np.repeat(images(1), 16, 0)
    run = lambda seed, step: augment.Images(seed, (("crop", 3),))({"image": same}, step, np.arange(16))["image"]  # noqa: E731
    a = run(0, 0)
    assert (a == run(0, 0)).all()
    assert (a != run(1, 0)).any()
    assert (a != run(0, 1)).any()
    assert len({x.tobytes() for x in a}) > 5


def test_flip_mirrors_half_of_the_images() -> None:
    """Each image is itself or its mirror image; of 400 draws each is at least 140 (6 sigma)."""
    image = images(1)[0]
    got = augment.Images(0, augment.parse("flip"))({"image": np.repeat(image[None], 400, 0)}, 0, np.arange(400))[
        "image"
    ]
    scaled = (image / np.float32(255)).astype(np.float32)
    kept = [(g == scaled).all() for g in got]
    mirrored = [(g == scaled[:, ::-1]).all() for g in got]
    assert all(k != m for k, m in zip(kept, mirrored, strict=True))
    assert 140 <= sum(kept) <= 260


def test_crop_is_a_shift_with_zeros_around() -> None:
    """Every result is the image moved by at most the padding, all moves occur, and the middle one changes nothing."""
    image, size, draws = images(1, 5)[0], 1, 400
    do = augment.Images(0, augment.parse(f"crop:{size}"))
    got = do({"image": np.repeat(image[None], draws, 0)}, 0, np.arange(draws))["image"]
    padded = np.pad(image, ((size, size), (size, size), (0, 0))).astype(np.float32) / np.float32(255)
    moves = [(y, x) for y in range(3) for x in range(3)]
    found = Counter(m for g in got for m in moves if (g == padded[m[0] : m[0] + 5, m[1] : m[1] + 5]).all())
    assert sum(found.values()) == draws
    assert set(found) == set(moves)
    np.testing.assert_array_equal(padded[1:6, 1:6], image.astype(np.float32) / np.float32(255))


def test_crop_by_zero_and_no_operation_change_nothing() -> None:
    """crop:0 and None only scale."""
    want = images().astype(np.float32) / 255
    for text in ("crop:0", None):
        got = augment.Images(0, augment.parse(text))({"image": images()}, 0, np.arange(8))["image"]
        np.testing.assert_array_equal(got, want)


def test_augmentation_leaves_other_batches_alone() -> None:
    """A batch without images passes untouched."""
    batch = {"features": np.ones((2, 3), np.float32)}
    assert augment.Images(0, (("flip", 0),))(batch, 0, np.arange(2)) is batch


def test_plan_augments_by_global_row() -> None:
    """Through the plan too: rows read apart are augmented as in the whole batch."""
    corpus = ExampleCorpus(sources.load("digits", "train"))
    p = Plan((corpus,), (Phase(0, 8),), 0, augment.Images(0, augment.parse("flip,crop:2")))
    np.testing.assert_array_equal(p.batch(5, [6, 2])["image"], p.batch(5)["image"][[6, 2]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flipp", "did you mean 'flip'"),
        ("crop", "crop:N"),
        ("flip:2", "crop:N"),
        ("crop:-1", "crop:N"),
        ("crop:x", "crop:N"),
    ],
)
def test_bad_augmentations_are_refused(text: str, says: str) -> None:
    """A misspelt operation or size says what would be legal."""
    with pytest.raises(UsageError, match=says):
        augment.parse(text)


# Sources


@pytest.mark.parametrize("name", list(embedded.EMBEDDED))
def test_embedded_sets_are_stable(name: str) -> None:
    """Loaded twice a set has the same identity; its splits have different ones, and share nothing (but xor's)."""
    splits = sources.splits_of(name)
    ids = [sources.load(name, s).identity for s in splits]
    assert ids == [sources.load(name, s).identity for s in splits]
    assert all(i["count"] == len(sources.load(name, s)) > 0 for i, s in zip(ids, splits, strict=True))
    if name != "xor":
        assert len({i["checksum"] for i in ids}) == len(ids)


def test_xor_is_xor() -> None:
    """Four points, label 1 where exactly one coordinate is."""
    got = sources.load("xor", "train")
    table = {tuple(map(int, f)): int(y) for f, y in zip(got.fields["features"], got.fields["label"], strict=True)}
    assert table == {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 0}


def test_digits_are_split_whole() -> None:
    """1,797 images over both splits, uint8 up to 255, all ten classes in each."""
    train, test = (sources.load("digits", s) for s in ("train", "test"))
    assert len(train) + len(test) == 1797
    for source in (train, test):
        assert source.fields["image"].dtype == np.uint8
        assert source.fields["image"].max() == 255
        assert set(source.fields["label"]) == set(range(10))


def write(folder: Path, documents: list[str]) -> Path:
    folder.mkdir()
    for i, document in enumerate(documents):
        (folder / f"{i:02d}.txt").write_text(document, encoding="utf-8")
    return folder


def test_few_files_hold_out_the_end_of_each(tmp_path: Path) -> None:
    """Below ten files each document is cut in two, nine tenths and the rest."""
    documents = [f"document {i} " * (10 + i) for i in range(9)]
    folder = write(tmp_path / "few", documents)
    train, held = (sources.load(str(folder), s) for s in ("train", "validation"))
    assert [a + b for a, b in zip(train.documents, held.documents, strict=True)] == documents
    assert [len(b) for b in held.documents] == [len(d) // 10 for d in documents]


@pytest.mark.parametrize("count", [10, 25])
def test_many_files_are_held_out_whole(tmp_path: Path, count: int) -> None:
    """From ten files on, whole files are held out, a tenth of them, and each is in one split."""
    documents = [f"document {i}" for i in range(count)]
    folder = write(tmp_path / "many", documents)
    train, held = (sources.load(str(folder), s) for s in ("train", "validation"))
    assert [*train.documents, *held.documents] == documents
    assert len(held) == max(2, count // 10)


def test_a_file_alone_and_a_changed_one(tmp_path: Path) -> None:
    """A .txt file is a set of its own; a changed letter changes its checksum."""
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 3)
    first = sources.load(str(path), "train")
    assert first.documents == (("abcdefghij" * 3)[:27],)
    path.write_text("Abcdefghij" * 3)
    assert sources.load(str(path), "train").identity["checksum"] != first.identity["checksum"]


def test_what_loads_as_text_has_the_splits_of_text(tmp_path: Path) -> None:
    """`load` and `splits_of` agree on what is a file of text, whatever its ending."""
    path = tmp_path / "notes.md"
    path.write_text("some text, some more")
    assert sources.splits_of(str(path)) == ("train", "validation")
    assert all(isinstance(sources.load(str(path), s), Texts) for s in sources.splits_of(str(path)))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """The message names the file, not only its folder."""
    folder = write(tmp_path / "mixed", ["fine"])
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt is not UTF-8"):
        sources.load(str(folder), "train")


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_missing_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No such file, or a folder without text."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no \.txt file"):
        sources.load(name, "train")


@pytest.mark.parametrize(
    ("name", "split", "nearest"),
    [
        ("digits", "tset", "'test'"),
        ("pydoc_text", "test", "validation"),
        ("digit", "train", "'digits'"),
        ("minst", "train", "'mnist'"),
    ],
)
def test_unknown_names_and_splits_name_the_nearest(name: str, split: str, nearest: str, tmp_path: Path) -> None:
    """A misspelt set or split is answered by the one that was meant."""
    with pytest.raises(UsageError, match=f"unknown .*{nearest}"):
        sources.load(name, split, data_dir=str(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_that_is_not_prepared_says_what_to_run(tmp_path: Path, split: str) -> None:
    """Of any split: the folder looked at, and the command."""
    with pytest.raises(UsageError, match=r"'mnist' is not prepared.*download=True.*TFDS_DATA_DIR"):
        sources.load("mnist", split, data_dir=str(tmp_path))


PREPARED = os.environ.get("TFDS_DATA_DIR")
prepared = pytest.mark.skipif(not PREPARED, reason="TFDS_DATA_DIR is not set: no prepared TFDS sets here")


@prepared
def test_tfds_mnist() -> None:
    """10,000 test images, decoded, with labels 0 to 9; by row as by slice."""
    got = sources.load("mnist", "test", data_dir=PREPARED)
    assert len(got) == 10_000
    assert got.classes == 10
    assert got.names is None  # they would be the numbers
    some = got.__getitems__([3, 9999])
    assert some["image"].shape == (2, 28, 28, 1)
    assert some["image"].dtype == np.uint8
    assert some["label"].dtype == np.int32
    # 980 zeros to 1,009 nines: the counts of the published test set
    assert list(np.bincount(got.fields["label"])) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@prepared
def test_tfds_tiny_shakespeare() -> None:
    """One document a split; together the 1,115,394 bytes of the published file."""
    splits = sources.splits_of("tiny_shakespeare", PREPARED)
    loaded = [sources.load("tiny_shakespeare", s, data_dir=PREPARED) for s in splits]
    assert set(splits) == {"train", "validation", "test"}
    assert [len(s) for s in loaded] == [1, 1, 1]
    assert sum(len(s.documents[0].encode()) for s in loaded) == 1_115_394


@prepared
def test_classes_have_the_names_of_the_set() -> None:
    """Of images and of texts, also where the texts are read as examples."""
    clothes = sources.load("fashion_mnist", "test", data_dir=PREPARED).names
    assert clothes is not None
    assert (clothes[0], clothes[9], len(clothes)) == ("T-shirt/top", "Ankle boot", 10)
    texts = sources.load("glue/sst2", "validation", data_dir=PREPARED)
    assert texts.names == ("negative", "positive")
    assert sequences.padded(texts, tokenizers.make("byte", ()), 8).names == texts.names


@prepared
def test_tfds_text_with_labels() -> None:
    """glue/sst2's sentences as text; an unknown field, split or config names the nearest."""
    got = sources.load("glue/sst2", "validation", data_dir=PREPARED)
    assert len(got) == 872
    assert all(isinstance(d, str) and d for d in got.documents)
    for name, split, field, nearest in (
        ("glue/sst2", "validation", "sentense", "sentence"),
        ("glue/sst2", "valid", None, "validation"),
        ("glue/sst3", "train", None, "glue/sst2"),
    ):
        with pytest.raises(UsageError, match=nearest):
            sources.load(name, split, field=field, data_dir=PREPARED)


# The loader


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_loader_yields_the_plan(workers: int) -> None:
    """Prefetched batches are the plan's, in order, from any step, for the rows asked for."""
    corpus = ExampleCorpus(sources.load("digits", "train"))
    p = Plan((corpus,), (Phase(0, 12),), 0, augment.Images(0, augment.parse("crop:1")))
    got = list(loader.batches(p, [0, 5, 7], 3, 9, workers=workers, prefetch=2))
    assert len(got) == 6
    for step, batch in zip(range(3, 9), got, strict=True):
        same(batch, p.batch(step, [0, 5, 7]))
