"""What happens to images, keyed by row: operations, size, normalisation."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from data import sources
from data.fields import object_array
from data.images import augment, resize
from data.images.resize import ResizeSpec
from data.sampler import BatchSampler, Phase
from data.types import Examples, ExampleSource
from errors import UsageError


def numbered(count: int, first: int = 0) -> ExampleSource:
    """A corpus whose examples carry their own number."""
    fields = {"label": np.arange(first, first + count, dtype=np.int32)}
    return ExampleSource(Examples(fields, count, {"name": "numbered"}, count))


def images(count: int = 8, side: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, side, side, 2)).astype(np.uint8)


def test_augmentation_is_keyed_by_row() -> None:
    """A row's image does not depend on the rows read with it."""
    do = augment.ImagePipeline(7, augment.parse("flip,crop:2"))
    whole = do({"image": images()}, 3, np.arange(8))["image"]
    for rows in ([5], [6, 1], [7, 0, 3]):
        part = do({"image": images()[rows]}, 3, np.array(rows))["image"]
        np.testing.assert_array_equal(part, whole[rows])


def test_augmentation_differs_by_seed_step_and_row() -> None:
    """The same image comes out otherwise for another seed, step or row."""
    same = np.repeat(images(1), 16, 0)
    run = lambda seed, step: augment.ImagePipeline(seed, (("crop", 3),))({"image": same}, step, np.arange(16))["image"]  # noqa: E731
    a = run(0, 0)
    assert (a == run(0, 0)).all()
    assert (a != run(1, 0)).any()
    assert (a != run(0, 1)).any()
    assert len({x.tobytes() for x in a}) > 5


def test_flip_mirrors_half_of_the_images() -> None:
    """Each image is itself or its mirror image; of 400 draws each is at least 140 (6 sigma)."""
    image = images(1)[0]
    got = augment.ImagePipeline(0, augment.parse("flip"))({"image": np.repeat(image[None], 400, 0)}, 0, np.arange(400))[
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
    do = augment.ImagePipeline(0, augment.parse(f"crop:{size}"))
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
        got = augment.ImagePipeline(0, augment.parse(text))({"image": images()}, 0, np.arange(8))["image"]
        np.testing.assert_array_equal(got, want)


def test_augmentation_leaves_other_batches_alone() -> None:
    """A batch without images passes untouched."""
    batch = {"features": np.ones((2, 3), np.float32)}
    assert augment.ImagePipeline(0, (("flip",),))(batch, 0, np.arange(2)) is batch


def photos(count: int = 8) -> np.ndarray:
    """Images of sizes from 10 to 40."""
    draw = np.random.default_rng(0)
    return object_array([draw.integers(0, 256, (*draw.integers(10, 41, 2), 3)).astype(np.uint8) for _ in range(count)])


EVERY = "random_resized_crop:0.3,flip,crop:1,randaugment:2:9,jitter:0.3,erase"


@pytest.mark.parametrize("text", [None, EVERY, "flip,erase:1"])
def test_images_of_any_size_take_one(text: str | None) -> None:
    """Keyed by row too, and in the range of a pixel; the sources are left as they were."""
    do, before = augment.ImagePipeline(3, augment.parse(text), size=(12, 16)), photos()
    given = photos()
    whole = do({"image": given}, 2, np.arange(8))["image"]
    assert whole.shape == (8, 12, 16, 3)
    assert whole.dtype == np.float32
    assert 0 <= whole.min() < whole.max() <= 1
    part = do({"image": photos()[[6, 1]]}, 2, np.array([6, 1]))["image"]
    np.testing.assert_array_equal(part, whole[[6, 1]])
    assert all((a == b).all() for a, b in zip(given, before, strict=True))


def test_what_is_evaluated_is_resized_and_cropped() -> None:
    """By 0.875 where sizes vary; by nothing where all have one; by what is said, also where it is the size."""
    some, alike = photos(), images()

    def look(image: Any, **how: Any) -> Any:
        return augment.ImagePipeline(size=(6, 6), **how)({"image": image}, 0, np.arange(len(image)))["image"]

    for share, got in ((0.875, look(some)), (0.5, look(some, crop_pct=0.5))):
        want = np.stack([resize.resize_and_crop(image, ResizeSpec((6, 6), share)) for image in some])
        np.testing.assert_array_equal(got, want.astype(np.float32) / 255)
    np.testing.assert_array_equal(look(alike), alike.astype(np.float32) / 255)
    smaller = ResizeSpec((6, 6), 0.5, "stretch", "nearest")
    halves = np.stack([resize.resize_and_crop(image, smaller) for image in alike])
    np.testing.assert_array_equal(
        look(alike, crop_pct=0.5, resize_mode="stretch", interpolation="nearest"), halves.astype(np.float32) / 255
    )
    larger = np.repeat(np.repeat(alike, 2, 1), 2, 2)
    assert np.abs(look(larger) - look(alike)).mean() < 0.15  # the whole of each, not its middle


def test_operations_go_in_their_order() -> None:
    """A box of noise before the crop may be cut away; after it is there."""
    flat = np.zeros((200, 8, 8, 1), np.uint8)
    count = {}
    for text in ("erase:1,crop:8", "crop:8,erase:1"):
        got = augment.ImagePipeline(0, augment.parse(text))({"image": flat}, 0, np.arange(200))["image"]
        count[text] = int((got.max((1, 2, 3)) > 0).sum())
    assert count["crop:8,erase:1"] == 200
    assert count["erase:1,crop:8"] < 190


def test_erased_boxes_have_their_law() -> None:
    """Half of the images keep all pixels; the others lose one box, of at most 40 % of the area."""
    flat = np.zeros((400, 20, 20, 1), np.uint8)
    got = augment.ImagePipeline(0, augment.parse("erase"))({"image": flat}, 0, np.arange(400))["image"][..., 0]
    touched = [np.argwhere(g) for g in got if g.any()]
    assert 140 <= len(touched) <= 260
    sides = np.array([t.max(0) - t.min(0) + 1 for t in touched])
    assert (sides.prod(1) / 400).min() >= 0.01
    assert (sides.prod(1) / 400).max() <= 0.43
    filled = np.array([len(t) for t in touched]) / sides.prod(1)
    assert filled.mean() == pytest.approx(255 / 256, abs=0.01)  # noise may be 0


def test_a_mean_of_each_channel() -> None:
    """One number, or one per channel; another count is refused, and so are sizes that differ where none is wanted."""
    mean, deviation = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    image = np.repeat(images()[..., :1], 3, -1)
    got = augment.ImagePipeline(mean=mean, std=deviation)({"image": image}, 0, np.arange(8))["image"]
    np.testing.assert_allclose(got, (image / 255 - mean) / deviation, rtol=1e-5, atol=1e-6)
    assert got.dtype == np.float32
    with pytest.raises(UsageError, match=r"'data\.std' = \(1\.0, 2\.0\): the images have 3 channel"):
        augment.ImagePipeline(std=(1.0, 2.0))({"image": image}, 0, np.arange(8))
    with pytest.raises(UsageError, match=r"set data\.size"):
        augment.ImagePipeline()({"image": photos()}, 0, np.arange(8))


def test_plan_augments_by_global_row() -> None:
    """Through the plan too: rows read apart are augmented as in the whole batch."""
    corpus = ExampleSource(sources.load("digits", "train"))
    p = BatchSampler((corpus,), (Phase(0, 8),), 0, augment.ImagePipeline(0, augment.parse("flip,crop:2")))
    np.testing.assert_array_equal(p.batch(5, [6, 2])["image"], p.batch(5)["image"][[6, 2]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flipp", "did you mean 'flip'"),
        ("crop", "crop:N"),
        ("flip:2", "flip mirrors"),
        ("crop:-1", "crop:N"),
        ("crop:x", "crop:N"),
        ("crop:1.5", "crop:N"),
        ("flip,", "data.augment' must be NAME or NAME:NUMBERS joined by commas, not 'flip,'"),
        ("random_resized_crop:0", r"0\.01 to 1"),
        ("random_resized_crop:nan", r"0\.01 to 1"),
        ("randaugment:2", "randaugment:N:M"),
        ("randaugment:2:31", "magnitude M, 0 to 30"),
        ("jitter:0.1:0.2", "jitter:X"),
        ("erase:2", "probability P"),
        ("mixup", "mixup:ALPHA"),
        ("mixup:0", r"0\.01 to 100"),
        ("cutmx:1", "'cutmix'"),
    ],
)
def test_bad_augmentations_are_refused(text: str, says: str) -> None:
    """A misspelt operation or size says what would be legal."""
    with pytest.raises(UsageError, match=says):
        augment.parse(text)
