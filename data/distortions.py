"""Distortions of a picture: the fourteen operations of RandAugment, and a jitter of its colours.

Source: Cubuk et al. 2020, "RandAugment", arXiv:1909.13719, on magnitudes 0 to 30 as torchvision and timm have them.
"""

from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from data.geometry import from_pil, to_pil
from data.kinds import Draw, Pixels

MAX_MAGNITUDE = 30  # the largest magnitude
Distortion = Callable[
    [Image.Image, float], Image.Image
]  # by a strength in [0, 1], or [-1, 1] where it has two directions


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Each pixel (x, y) is that at (a x + b y + c, d x + e y + f), the nearest one, or black outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhancer(by: Callable[[Image.Image], ImageEnhance._Enhance]) -> Distortion:
    return lambda image, strength: by(image).enhance(1 + 0.9 * strength)


UNSIGNED: dict[str, Distortion] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * s)),  # bits that are kept
    "solarize": lambda image, s: ImageOps.solarize(image, round(256 * (1 - s))),  # from there on the pixels turn
}
SIGNED: dict[str, Distortion] = {
    "rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.NEAREST),  # degrees, anticlockwise
    "shear_x": lambda image, s: _affine(image, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: _affine(image, 1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda image, s: _affine(image, 1, 0, int(150 / 331 * image.width * s), 0, 1, 0),
    "translate_y": lambda image, s: _affine(image, 1, 0, 0, 0, 1, int(150 / 331 * image.height * s)),
    "color": _enhancer(ImageEnhance.Color),
    "contrast": _enhancer(ImageEnhance.Contrast),
    "brightness": _enhancer(ImageEnhance.Brightness),
    "sharpness": _enhancer(ImageEnhance.Sharpness),
}
NAMES = (*UNSIGNED, *SIGNED)


def randaugment(image: Pixels, draw: Draw, count: int, magnitude: int) -> Pixels:
    """An image after `count` operations drawn alike, each of one magnitude, 0 to 30: [Y X C] -> [Y X C].

    Those with two directions take either with probability 1/2.
    """
    done = to_pil(image)
    for _ in range(count):
        name = NAMES[int(draw.integers(len(NAMES)))]
        strength = magnitude / MAX_MAGNITUDE * (-1 if draw.random() < 0.5 else 1)
        done = SIGNED[name](done, strength) if name in SIGNED else UNSIGNED[name](done, abs(strength))
    return from_pil(done)


def jitter(image: Pixels, draw: Draw, strength: float) -> Pixels:
    """An image of other brightness, contrast and saturation, in random order: [Y X C] -> [Y X C].

    Each is multiplied by a factor that is uniform in 1 - strength (at least 0) to 1 + strength.
    """
    done = to_pil(image)
    ways = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = draw.uniform(max(0, 1 - strength), 1 + strength, len(ways))
    for i in draw.permutation(len(ways)):
        done = ways[i](done).enhance(factors[i])
    return from_pil(done)
