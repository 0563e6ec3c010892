"""Which examples make up which batch, windows of text, and the loader that reads ahead."""

from typing import Any

import numpy as np
import pytest

from data import loader, sampler, sources
from data.images import augment
from data.sampler import PATTERN_LENGTH, BatchSampler, Phase
from data.text import packing, tokenizers
from data.text.packing import WindowSource
from data.types import Examples, ExampleSource, Texts
from errors import UsageError

BYTE = tokenizers.ByteTokenizer()
EOT = BYTE.vocab - 1


def numbered(count: int, first: int = 0) -> ExampleSource:
    """A corpus whose examples carry their own number."""
    fields = {"label": np.arange(first, first + count, dtype=np.int32)}
    return ExampleSource(Examples(fields, count, {"name": "numbered"}, count))


def texts(*documents: str) -> Texts:
    return Texts(documents, {"name": "made", "split": "train"})


def labels(p: BatchSampler, steps: range) -> list[int]:
    return [int(n) for step in steps for n in p.batch(step)["label"]]


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.3)])
def test_batch_of_rows_is_rows_of_batch(weights: tuple[float, ...]) -> None:
    """A process that reads some rows reads what the whole batch holds there."""
    corpora = tuple(numbered(17, 100 * i) for i in range(len(weights)))
    p = BatchSampler(corpora, (Phase(0, 12, weights),), seed=3)
    for step in (0, 1, 40, 10**6):
        whole = p.batch(step)
        for rows in ([0], [11, 3], [2, 4, 6], list(range(12))):
            part = p.batch(step, rows)
            assert part.keys() == whole.keys()
            for name in whole:
                np.testing.assert_array_equal(part[name], whole[name][rows])


def test_batch_is_a_pure_function_of_seed_and_step() -> None:
    """Two plans alike give the same batch in any order of asking; another seed gives another order."""
    make = lambda seed: BatchSampler((numbered(50),), (Phase(0, 10),), seed)  # noqa: E731
    a, b = make(1), make(1)
    late = a.batch(4)["label"]
    b.batch(0)
    np.testing.assert_array_equal(b.batch(4)["label"], late)
    assert labels(make(2), range(5)) != labels(make(1), range(5))


@pytest.mark.parametrize(("count", "size"), [(20, 5), (7, 5), (1, 3), (2, 1)])
def test_every_epoch_holds_each_example_once(count: int, size: int) -> None:
    """Whatever the batch size, consumption cut at the epoch's length is a permutation each time."""
    epochs = 6
    seen = labels(BatchSampler((numbered(count),), (Phase(0, size),), seed=0), range(-(-epochs * count // size)))
    for e in range(epochs):
        assert sorted(seen[e * count : (e + 1) * count]) == list(range(count))


def test_epochs_differ() -> None:
    """Each epoch has an order of its own, none the identity."""
    seen = labels(BatchSampler((numbered(30),), (Phase(0, 30),), seed=0), range(5))
    orders = {tuple(seen[i : i + 30]) for i in range(0, 150, 30)} | {tuple(range(30))}
    assert len(orders) == 6


def test_a_new_batch_size_neither_repeats_nor_skips() -> None:
    """The examples of three phases are, in order, those that one phase would have consumed."""
    phased = BatchSampler((numbered(23),), (Phase(0, 4), Phase(3, 9), Phase(5, 2)), seed=5)
    plain = BatchSampler((numbered(23),), (Phase(0, 1),), seed=5)
    assert [len(phased.batch(n)["label"]) for n in range(7)] == [4, 4, 4, 9, 9, 2, 2]
    assert [phased.examples_before(n) for n in range(8)] == [0, 4, 8, 12, 21, 30, 32, 34]
    assert labels(phased, range(7)) == labels(plain, range(34))


def test_a_phase_that_never_ran_changes_nothing() -> None:
    """Two phases from one step: the last one counts, as after two changes without an update between."""
    twice = BatchSampler((numbered(23),), (Phase(0, 4), Phase(3, 9), Phase(3, 2)), seed=5)
    once = BatchSampler((numbered(23),), (Phase(0, 4), Phase(3, 2)), seed=5)
    assert labels(twice, range(8)) == labels(once, range(8))


def test_phases_survive_a_manifest() -> None:
    """phases_as_json and phases_from_json are inverse."""
    phases = (Phase(0, 4, (0.5, 0.5)), Phase(10, 8, (0.25, 0.75)))
    assert sampler.phases_from_json(sampler.phases_as_json(phases)) == phases


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 1, 2), (3, 0, 1), (1, 1, 1)])
def test_mixture_keeps_its_shares_exactly(weights: tuple[float, ...]) -> None:
    """Over PATTERN places each corpus serves its share, rounded to a place."""
    corpora = tuple(numbered(400, 1000 * i) for i in range(len(weights)))
    p = BatchSampler(corpora, (Phase(0, PATTERN_LENGTH, weights),), seed=1)
    for step in (0, 7):
        served = np.bincount(p.batch(step)["label"] // 1000, minlength=len(weights))
        assert np.abs(served - PATTERN_LENGTH * np.array(weights) / sum(weights)).max() < 1


def test_mixture_skips_no_item_of_any_corpus() -> None:
    """Every corpus goes through its epochs in turn, over many repeats of the pattern."""
    p = BatchSampler((numbered(37), numbered(91, 1000)), (Phase(0, 50, (0.35, 0.65)),), seed=2)
    seen = labels(p, range(50))
    for first, count in ((0, 37), (1000, 91)):
        mine = [n - first for n in seen if n // 1000 == first // 1000]
        assert len(mine) > 3 * count
        for start in range(0, len(mine) - count + 1, count):
            assert sorted(mine[start : start + count]) == list(range(count))


def test_a_small_share_of_a_mixture_is_served() -> None:
    p = BatchSampler((numbered(400), numbered(400, 1000)), (Phase(0, 10**5, (1e-3, 1.0)),), seed=1)
    assert sum(p.batch(0)["label"] < 1000) == pytest.approx(100, abs=1)  # a pattern of 10^5 places


def test_new_mixture_weights_neither_repeat_nor_skip() -> None:
    """A phase with other weights goes on where each corpus stood."""
    phases = (Phase(0, 30, (0.5, 0.5)), Phase(7, 30, (0.9, 0.1)), Phase(9, 20, (0.2, 0.8)))
    p = BatchSampler((numbered(37), numbered(91, 1000)), phases, seed=2)
    seen = labels(p, range(60))
    for first, count in ((0, 37), (1000, 91)):
        mine = [n - first for n in seen if n // 1000 == first // 1000]
        for start in range(0, len(mine) - count + 1, count):
            assert sorted(mine[start : start + count]) == list(range(count))


def test_a_mixture_of_unlike_sets_is_refused() -> None:
    """Sets with other fields or shapes do not mix; the message names the fields."""
    digits, xor = (ExampleSource(sources.load(n, "train")) for n in ("digits", "xor"))
    with pytest.raises(UsageError, match=r"same fields.*image.*features"):
        BatchSampler((digits, xor), (Phase(0, 4, (1.0, 1.0)),), seed=0)


# Windows of text


def windows_of_epoch(corpus: WindowSource, epoch: int) -> dict[str, np.ndarray]:
    positions = np.arange(len(corpus))
    return corpus.items(np.full(len(corpus), epoch), positions)


def test_targets_are_the_next_tokens() -> None:
    """In the stream, target t follows token t, also at a window's end; an epoch's windows lie end to end."""
    text = "".join(chr(33 + i) for i in range(90))  # each character once: its place in the stream is known
    corpus = WindowSource(texts(text), BYTE, context=8, seed=0)
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
    corpus = WindowSource(texts("".join(chr(33 + i) for i in range(90))), BYTE, context=4, seed=0)
    starts = [int(windows_of_epoch(corpus, e)["tokens"][0, 0]) - 33 for e in range(60)]
    assert set(starts) == {0, 1, 2, 3}


@pytest.mark.parametrize(("length", "context"), [(9, 8), (16, 8), (17, 8), (24, 8), (25, 8), (2, 1), (3, 1), (100, 7)])
def test_windows_never_leave_a_small_stream(length: int, context: int) -> None:
    """The smallest corpora give whole windows in every epoch."""
    corpus = WindowSource(texts("".join(chr(33 + i % 90) for i in range(length))), BYTE, context, seed=4)
    assert len(corpus) >= 1
    for epoch in range(3 * context):
        got = windows_of_epoch(corpus, epoch)
        assert got["targets"].shape == (len(corpus), context)
        assert len(corpus) * context < length


@pytest.mark.parametrize(("documents", "tokens"), [(("",), 0), (("12345678",), 8), (("123", "4"), 6)])
def test_a_stream_shorter_than_a_window_is_refused(documents: tuple[str, ...], tokens: int) -> None:
    """One clear line: which set, how many tokens, which context, what to do."""
    with pytest.raises(UsageError) as caught:
        WindowSource(texts(*documents), BYTE, context=8, seed=0)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("made", f"{tokens} tokens", "context 8", "model.context"):
        assert part in message


def test_documents_end_in_eot() -> None:
    """Several documents are laid end to end, each closed; one document alone is left as it is."""
    np.testing.assert_array_equal(packing.token_stream(texts("ab", "", "c"), BYTE), [97, 98, EOT, EOT, 99, EOT])
    np.testing.assert_array_equal(packing.token_stream(texts("ab"), BYTE), [97, 98])


# The loader


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_loader_yields_the_plan(workers: int) -> None:
    """Prefetched batches are the plan's, in order, from any step, for the rows asked for."""
    corpus = ExampleSource(sources.load("digits", "train"))
    p = BatchSampler((corpus,), (Phase(0, 12),), 0, augment.ImagePipeline(0, augment.parse("crop:1")))
    got = list(loader.batches(p, [0, 5, 7], 3, 9, workers=workers, prefetch=2))
    assert len(got) == 6
    for step, batch in zip(range(3, 9), got, strict=True):
        same(batch, p.batch(step, [0, 5, 7]))
