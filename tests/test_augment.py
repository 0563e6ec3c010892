"""Flips, crops and normalisation, keyed by row."""

from collections import Counter

import numpy as np
import pytest

from data import augment, sources
from data.kinds import Examples
from data.plan import ExampleCorpus, Phase, Plan
from errors import UsageError


def numbered(count: int, first: int = 0) -> ExampleCorpus:
    """A corpus whose examples carry their own number."""
    fields = {"label": np.arange(first, first + count, dtype=np.int32)}
    return ExampleCorpus(Examples(fields, count, {"name": "numbered"}, count))


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
    assert augment.Images(0, (("flip",),))(batch, 0, np.arange(2)) is batch


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
        ("flip:2", "flip mirrors"),
        ("crop:-1", "crop:N"),
        ("crop:x", "crop:N"),
    ],
)
def test_bad_augmentations_are_refused(text: str, says: str) -> None:
    """A misspelt operation or size says what would be legal."""
    with pytest.raises(UsageError, match=says):
        augment.parse(text)
