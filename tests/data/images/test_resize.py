"""Sizes and parts of images, against pixels that are known and filters written out."""

import math

import numpy as np
import pytest

from data.images import resize
from data.images.resize import ResizeSpec


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def triangle(have: int, want: int) -> np.ndarray:
    """Weights of a bilinear filter that is stretched where it shrinks: [want have]."""
    scale = have / want
    width = max(scale, 1.0)
    middle = (np.arange(want) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(have) + 0.5 - middle[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(7, 5), (40, 31), (20, 9), (1, 1)])
def test_resizing_is_an_antialiased_triangle(channels: int, size: tuple[int, int]) -> None:
    """Every channel by itself, larger and smaller, to one level of rounding in each direction."""
    image = noise(20, 17, channels)
    got = resize.resize(image, size)
    rows, columns = triangle(20, size[0]), triangle(17, size[1])
    want = np.einsum("ry,yxc,kx->rkc", rows, image.astype(float), columns)
    assert got.dtype == np.uint8
    assert got.shape == (*size, channels)
    assert np.abs(got - want).max() <= 1.01
    assert resize.resize(image, (20, 17)) is image


def test_evaluation_keeps_the_middle() -> None:
    """Quarters of an image: shrunk by two, its outer stripes fall away; as a whole, it stays what it is."""
    image = np.zeros((8, 16, 1), np.uint8)
    image[:, 4:12] = 200  # the middle square of 8 x 8
    assert (resize.resize_and_crop(image, ResizeSpec((4, 4)))[:, 1:-1] == 200).all()
    assert (resize.resize_and_crop(image, ResizeSpec((8, 16))) == image).all()
    assert (resize.resize_and_crop(image, ResizeSpec((4, 4), 0.5)) == 200).all()  # the middle of 8 x 16
    assert (resize.resize_and_crop(image, ResizeSpec((8, 16), 0.5))[:, 1:-1] == 200).all()  # to 16 x 32
    squeezed = resize.resize_and_crop(image, ResizeSpec((8, 8), resize_mode="stretch"))  # to half its columns
    assert (squeezed[:, [0, 7]] == 0).all()
    assert (squeezed[:, 3:5] == 200).all()


@pytest.mark.parametrize(
    ("shape", "size", "share", "resized"),
    [
        ((375, 500), (224, 224), 0.875, (256, 341)),  # as torchvision's Resize(256): 256 * 500 // 375
        ((500, 333), (224, 224), 0.875, (384, 256)),
        ((500, 333), (224, 224), 1.0, (336, 224)),
        ((10, 10), (224, 224), 0.875, (256, 256)),
        ((100, 400), (50, 100), 1.0, (50, 200)),
        ((400, 100), (50, 100), 1.0, (400, 100)),
        ((3, 1000), (7, 5), 0.9, (7, 2333)),
    ],
)
def test_evaluation_covers_the_size(shape, size, share, resized, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size between, as it is in torchvision; a size that is not square is covered too."""
    asked, original = [], resize.resize
    monkeypatch.setattr(resize, "resize", lambda image, size, how: asked.append(size) or original(image, size, how))
    assert resize.resize_and_crop(noise(*shape, 3), ResizeSpec(size, share)).shape == (*size, 3)
    assert asked == [resized]


@pytest.mark.parametrize("shape", [(30, 40), (90, 17), (1, 1)])
def test_random_parts_lie_inside(shape: tuple[int, int]) -> None:
    """Never empty, never outside; sides and area within the range, to a pixel of rounding."""
    for seed in range(300):
        rows, columns = resize.random_resized_crop_box(shape, np.random.default_rng(seed), 0.08)
        assert 0 <= rows.start < rows.stop <= shape[0]
        assert 0 <= columns.start < columns.stop <= shape[1]
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        assert (wide + 0.5) / (tall - 0.5) >= 3 / 4
        assert (wide - 0.5) / (tall + 0.5) <= 4 / 3


def test_random_parts_have_their_law() -> None:
    """Of a square the share of the area is uniform in 0.5 to 1 where it fits, and every corner is reached."""
    draw = np.random.default_rng(0)
    parts = [resize.random_resized_crop_box((200, 200), draw, 0.08) for _ in range(4000)]
    areas = np.array([(r.stop - r.start) * (c.stop - c.start) / 200**2 for r, c in parts])
    assert areas.min() == pytest.approx(0.08, abs=0.01)
    small = areas[areas < 0.5]  # all of these fit, so that they are uniform
    assert np.mean(small < 0.29) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(small)))
    middles = np.array([(r.start + r.stop, c.start + c.stop) for r, c in parts]) / 400
    np.testing.assert_allclose(middles.mean(0), 0.5, atol=0.01)
    ratios = np.log([(c.stop - c.start) / (r.stop - r.start) for r, c in parts])
    assert abs(ratios.mean()) < 0.015
    assert np.abs(ratios).max() < math.log(4 / 3) + 0.03


def test_where_no_part_fits_it_is_the_largest_in_the_middle() -> None:
    """Ten tries fail on a long strip: the middle of it, sides 4:3."""
    found = resize.random_resized_crop_box((30, 3000), np.random.default_rng(0), 0.99)
    assert found == (slice(0, 30), slice(1480, 1520))
    assert resize.random_resized_crop_box((3000, 30), np.random.default_rng(0), 0.99) == (
        slice(1480, 1520),
        slice(0, 30),
    )
