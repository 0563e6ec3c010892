"""RandAugment's fourteen operations, and colour jitter.

Source: Cubuk et al. 2020, "RandAugment", arXiv:1909.13719, with magnitudes 0 to 30 as in torchvision and timm.
"""

from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from data.fields import Pixels, Rng
from data.images.resize import from_pil, to_pil

MAX_MAGNITUDE = 30  # the largest magnitude
Distortion = Callable[[Image.Image, float], Image.Image]  # (image, strength in [0, 1], or in [-1, 1] if signed)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Pixel (x, y) of the result is the nearest one to (a x + b y + c, d x + e y + f), or black outside the image."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhancer(by: Callable[[Image.Image], ImageEnhance._Enhance]) -> Distortion:
    return lambda image, strength: by(image).enhance(1 + 0.9 * strength)


UNSIGNED: dict[str, Distortion] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * s)),  # bits kept
    "solarize": lambda image, s: ImageOps.solarize(
        image, round(256 * (1 - s))
    ),  # pixels from this value on are inverted
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


def randaugment(image: Pixels, rng: Rng, count: int, magnitude: int) -> Pixels:
    """Apply `count` operations, chosen with equal chance, each with `magnitude` 0 to 30: [Y X C] -> [Y X C].

    The sign of a signed operation is random.
    """
    done = to_pil(image)
    for _ in range(count):
        name = NAMES[int(rng.integers(len(NAMES)))]
        strength = magnitude / MAX_MAGNITUDE * (-1 if rng.random() < 0.5 else 1)
        done = SIGNED[name](done, strength) if name in SIGNED else UNSIGNED[name](done, abs(strength))
    return from_pil(done)


def jitter(image: Pixels, rng: Rng, strength: float) -> Pixels:
    """Change brightness, contrast and saturation, in random order: [Y X C] -> [Y X C].

    Each is multiplied by a factor, uniform from 1 - strength (at least 0) to 1 + strength.
    """
    done = to_pil(image)
    ways = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform(max(0, 1 - strength), 1 + strength, len(ways))
    for i in rng.permutation(len(ways)):
        done = ways[i](done).enhance(factors[i])
    return from_pil(done)
