"""Mixup and CutMix: pairs of rows are mixed, images and labels, with random numbers by (seed, step, global row)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.fields import Fields, Rng, generator

PARTNER_SITE, LAMBDA_SITE = 1, 2  # sites of random generators; 0 is the site of the operations on an image


def _mixup(image: np.ndarray, other: np.ndarray, lam: float, rng: Rng) -> tuple[np.ndarray, float]:
    """The weighted mean of two images (Zhang et al. 2018, "mixup", arXiv:1710.09412, eq. 1)."""
    return np.float32(lam) * image + np.float32(1 - lam) * other, lam


def _cutmix(image: np.ndarray, other: np.ndarray, lam: float, rng: Rng) -> tuple[np.ndarray, float]:
    """Paste a box of the other image at its place in this one (Yun et al. 2019, "CutMix", arXiv:1905.04899, eq. 1, 2).

    The box has 1 - lam of the area and a random centre. It is clipped to the image, and lam is computed from the
    clipped area.
    """
    y, x = image.shape[:2]
    side = math.sqrt(1 - lam)
    middle = rng.integers(y), rng.integers(x)
    half = int(y * side) // 2, int(x * side) // 2
    box = tuple(slice(max(m - h, 0), m + h) for m, h in zip(middle, half, strict=True))
    mixed = image.copy()
    mixed[box] = other[box]
    return mixed, 1 - mixed[box][..., 0].size / (y * x)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, float, Rng], tuple[np.ndarray, float]]] = {
    "mixup": _mixup,
    "cutmix": _cutmix,
}


@dataclass(frozen=True)
class Mixup:
    """Mixes each row with a partner of its batch, by a method and its alpha chosen from `methods` with equal chance."""

    seed: int
    methods: tuple[tuple[str, float], ...]

    def partners(self, step: int, size: int) -> np.ndarray:
        """Each row's partner [size]: a random cyclic permutation, so that no row is its own partner if size > 1."""
        order = generator(self.seed, step, 0, PARTNER_SITE).permutation(size)
        partners = np.empty(size, np.int64)
        partners[order] = np.roll(order, 1)
        return partners

    def __call__(self, batch: Fields, others: Fields, step: int, rows: np.ndarray) -> Fields:
        """The rows of a batch mixed with their partners: image [B Y X C]; label_b int32 [B], the label of the partner;
        lam float32 [B], the weight of the row's own label.
        """
        pairs = zip(batch["image"], others["image"], rows, strict=True)
        mixed = [self._mix_row(image, other, step, int(row)) for image, other, row in pairs]
        image, lam = np.stack([m[0] for m in mixed]), np.array([m[1] for m in mixed], np.float32)
        return {**batch, "image": image, "label_b": others["label"], "lam": lam}

    def _mix_row(self, image: np.ndarray, other: np.ndarray, step: int, row: int) -> tuple[np.ndarray, float]:
        rng = generator(self.seed, step, row, LAMBDA_SITE)
        method, alpha = self.methods[int(rng.integers(len(self.methods)))]
        return METHODS[method](image, other, float(rng.beta(alpha, alpha)), rng)
