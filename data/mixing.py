"""Rows mixed in pairs, images and labels, by draws for each: (seed, step, global row)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.kinds import Draw, Fields, generator

PARTNER_SITE, LAMBDA_SITE = 1, 2  # sites of draws, beside that of the operations on an image


def _mixup(image: np.ndarray, other: np.ndarray, lam: float, draw: Draw) -> tuple[np.ndarray, float]:
    """The weighted mean of two images (Zhang et al. 2018, "mixup", arXiv:1710.09412, eq. 1)."""
    return np.float32(lam) * image + np.float32(1 - lam) * other, lam


def _cutmix(image: np.ndarray, other: np.ndarray, lam: float, draw: Draw) -> tuple[np.ndarray, float]:
    """A box of the other image in its place in this one (Yun et al. 2019, "CutMix", arXiv:1905.04899, eq. 1 and 2).

    The box, of 1 - share of the area, lies about a point anywhere; what sticks out is cut off, and counts for this one.
    """
    y, x = image.shape[:2]
    side = math.sqrt(1 - lam)
    middle = draw.integers(y), draw.integers(x)
    half = int(y * side) // 2, int(x * side) // 2
    box = tuple(slice(max(m - h, 0), m + h) for m, h in zip(middle, half, strict=True))
    mixed = image.copy()
    mixed[box] = other[box]
    return mixed, 1 - mixed[box][..., 0].size / (y * x)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, float, Draw], tuple[np.ndarray, float]]] = {
    "mixup": _mixup,
    "cutmix": _cutmix,
}


@dataclass(frozen=True)
class Mixup:
    """Mixes each row with a partner of its batch, by one of the ways with their alphas, drawn alike."""

    seed: int
    methods: tuple[tuple[str, float], ...]

    def partners(self, step: int, size: int) -> np.ndarray:
        """Each row's partner, a permutation that leaves none in its place where there are two or more: [size]."""
        order = generator(self.seed, step, 0, PARTNER_SITE).permutation(size)
        found = np.empty(size, np.int64)
        found[order] = np.roll(order, 1)
        return found

    def __call__(self, batch: Fields, others: Fields, step: int, rows: np.ndarray) -> Fields:
        """The rows of a batch mixed with their partners: image [B Y X C], other int32 [B], the partner's label, and
        share float32 [B], that of the row's own.
        """
        pairs = zip(batch["image"], others["image"], rows, strict=True)
        mixed = [self._mix_row(image, other, step, int(row)) for image, other, row in pairs]
        image, share = np.stack([m[0] for m in mixed]), np.array([m[1] for m in mixed], np.float32)
        return {**batch, "image": image, "label_b": others["label"], "lam": share}

    def _mix_row(self, image: np.ndarray, other: np.ndarray, step: int, row: int) -> tuple[np.ndarray, float]:
        draw = generator(self.seed, step, row, LAMBDA_SITE)
        way, alpha = self.methods[int(draw.integers(len(self.methods)))]
        return METHODS[way](image, other, float(draw.beta(alpha, alpha)), draw)
