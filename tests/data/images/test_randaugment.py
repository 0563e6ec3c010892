"""RandAugment's operations against their formulas in numpy."""

import math
from collections import Counter

import numpy as np
import pytest

from data.images import randaugment
from data.images.randaugment import SIGNED, UNSIGNED
from data.images.resize import from_pil, to_pil
from errors import UsageError

IMAGE = np.random.default_rng(0).integers(20, 236, (40, 30, 3)).astype(np.uint8)
GREY = IMAGE[..., :1]


def done(name: str, strength: float, image: np.ndarray = IMAGE) -> np.ndarray:
    return from_pil({**UNSIGNED, **SIGNED}[name](to_pil(image), strength))


def blended(plain: np.ndarray, factor: float, image: np.ndarray = IMAGE) -> np.ndarray:
    return np.clip(plain + factor * (image - plain), 0, 255)


def luminance(image: np.ndarray) -> np.ndarray:
    return np.rint(image @ np.array([0.299, 0.587, 0.114]))[..., None]


def smooth(image: np.ndarray) -> np.ndarray:
    kernel = np.ones((3, 3)) / 13
    kernel[1, 1] = 5 / 13
    found = image.astype(float)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (0, 1))
    found[1:-1, 1:-1] = np.einsum("yxcij,ij->yxc", windows, kernel)
    return found


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_colours_are_blends(strength: float) -> None:
    """With black, the mean grey, the grey picture, and a smooth one, by 1 + 0.9 strength."""
    factor = 1 + 0.9 * strength
    plain = {
        "brightness": np.zeros(IMAGE.shape),
        "contrast": np.full(IMAGE.shape, round(luminance(IMAGE).mean())),
        "color": np.broadcast_to(luminance(IMAGE), IMAGE.shape),
        "sharpness": np.rint(smooth(IMAGE)),
    }
    for name, base in plain.items():
        assert np.abs(done(name, strength) - blended(base, factor)).max() <= 2, name  # bytes are cut off, not rounded


def test_levels() -> None:
    """What no strength changes, and what it does, to the bit."""
    np.testing.assert_array_equal(done("identity", 1), IMAGE)
    low, high = IMAGE.min((0, 1)).astype(float), IMAGE.max((0, 1)).astype(float)
    assert np.abs(done("autocontrast", 1) - (IMAGE - low) * 255 / (high - low)).max() <= 1
    for strength, bits in ((0, 8), (0.25, 7), (0.5, 6), (1, 4)):
        np.testing.assert_array_equal(done("posterize", strength), IMAGE & (256 - 2 ** (8 - bits)))
    for strength, least in ((0, 256), (0.5, 128), (1, 0)):
        np.testing.assert_array_equal(done("solarize", strength), np.where(least <= IMAGE, 255 - IMAGE, IMAGE))


def test_equalized_levels_are_used_alike() -> None:
    """Each pixel's level is its channel's cumulative count, in 255 steps of the count without the last level."""
    got = done("equalize", 1)
    for c in range(3):
        counts = np.bincount(IMAGE[..., c].ravel(), minlength=256)
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        levels = np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255)
        np.testing.assert_array_equal(got[..., c], levels[IMAGE[..., c]])


def warped(matrix: list[float], image: np.ndarray = IMAGE) -> np.ndarray:
    """Pixel (x, y) from where the matrix sends it, by the nearest, black outside."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    a, b, c, d, e, f = matrix
    u, v = np.floor(a * x + b * y + c).astype(int), np.floor(d * x + e * y + f).astype(int)
    inside = (u >= 0) & (u < image.shape[1]) & (v >= 0) & (v < image.shape[0])
    return np.where(inside[..., None], image[np.where(inside, v, 0), np.where(inside, u, 0)], 0)


@pytest.mark.parametrize("strength", [-0.97, -0.37, 0.37, 0.97])
def test_moves_are_affine(strength: float) -> None:
    """Shears by 0.3, shifts by 150/331 of a side, turns by 30 degrees about the middle; black comes in."""
    s = strength
    turn, (v, u) = math.radians(30 * s), (20, 15)  # the middle
    cos, sin = math.cos(turn), math.sin(turn)
    matrices = {
        "shear_x": [1, 0.3 * s, 0, 0, 1, 0],
        "shear_y": [1, 0, 0, 0.3 * s, 1, 0],
        "translate_x": [1, 0, int(30 * s * 150 / 331), 0, 1, 0],
        "translate_y": [1, 0, 0, 0, 1, int(40 * s * 150 / 331)],
        "rotate": [cos, -sin, u - cos * u + sin * v, sin, cos, v - sin * u - cos * v],
    }
    for name, matrix in matrices.items():
        same = (done(name, s) == warped(matrix)).all(-1).mean()
        assert same > 0.99, name  # a pixel may lie on an edge
        np.testing.assert_array_equal(done(name, 0), IMAGE)


def test_rotation_goes_anticlockwise() -> None:
    """What is right of the middle moves up."""
    image = np.zeros((41, 41, 1), np.uint8)
    image[19:22, 33:39] = 255
    y, x, _ = np.nonzero(done("rotate", 1, image))
    assert math.degrees(math.atan2(20 - y.mean(), x.mean() - 20)) == pytest.approx(30, abs=1)


@pytest.mark.parametrize("name", [*UNSIGNED, *SIGNED])
def test_grey_images_are_distorted_too(name: str) -> None:
    """As a picture of three equal channels."""
    got, want = done(name, 0.7, GREY), done(name, 0.7, np.repeat(GREY, 3, -1))
    assert got.shape == GREY.shape
    assert np.abs(got.astype(int) - want).max() <= 1


def test_randaugment_draws_all_of_the_fourteen_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation 1 in 14, its magnitude out of 30, either way where there are two."""
    seen: list[tuple[str, float]] = []
    for ways in ("UNSIGNED", "SIGNED"):
        noted = {n: lambda image, s, n=n: seen.append((n, s)) or image for n in getattr(randaugment, ways)}
        monkeypatch.setattr(randaugment, ways, noted)
    for seed in range(1000):
        randaugment.randaugment(IMAGE, np.random.default_rng(seed), 3, 9)
    counts = Counter(name for name, _ in seen)
    assert len(counts) == 14
    assert sum(counts.values()) == 3000
    assert all(abs(n - 3000 / 14) < 5 * math.sqrt(3000 / 14) for n in counts.values())
    assert {s for n, s in seen if n in SIGNED} == {0.3, -0.3}
    assert {s for n, s in seen if n in UNSIGNED} == {0.3}


def test_magnitude_0_changes_at_most_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*UNSIGNED, *SIGNED} - {"autocontrast", "equalize"}:
        np.testing.assert_array_equal(done(name, 0), IMAGE)


def test_jitter_is_a_factor_of_each_colour() -> None:
    """Of 0 it changes nothing; a grey image's brightness stays within 1 - X and 1 + X."""
    np.testing.assert_array_equal(randaugment.jitter(IMAGE, np.random.default_rng(0), 0.0), IMAGE)
    flat = np.full((8, 8, 3), 100, np.uint8)  # neither contrast nor colour: only the brightness shows
    means = np.array([randaugment.jitter(flat, np.random.default_rng(i), 0.4).mean() for i in range(400)])
    assert 58 <= means.min() < 64
    assert 136 < means.max() <= 140
    assert means.mean() == pytest.approx(100, abs=4)


def test_other_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="2 channels"):
        randaugment.jitter(IMAGE[..., :2], np.random.default_rng(0), 0.1)
