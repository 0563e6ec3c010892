"""Image augmentation on the host, each example by a generator of its own: (seed, step, global row)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from errors import UsageError, unknown

Draw = np.random.Generator


def _flip(image: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    return image[:, ::-1] if draw.random() < 0.5 else image


def _crop(image: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    y, x = draw.integers(0, 2 * size + 1, 2)
    padded = np.pad(image, ((size, size), (size, size), (0, 0)))
    return padded[y : y + image.shape[0], x : x + image.shape[1]]


OPERATIONS: dict[str, Callable[[np.ndarray, Draw, int], np.ndarray]] = {
    "flip": _flip,  # left to right with probability 1/2
    "crop": _crop,  # crop:4 pads by 4 pixels of 0 around and crops the old size anywhere
}


@dataclass(frozen=True)
class Images:
    """Scale images to [0, 1], or by mean and standard deviation; in training apply the operations first."""

    seed: int = 0
    operations: tuple[tuple[str, int], ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, batch: dict[str, np.ndarray], step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The batch with its field image uint8 [B Y X C] augmented and turned into float32."""
        if "image" not in batch:
            return batch
        image = batch["image"]
        if self.operations:
            image = np.stack([self._one(i, step, int(row)) for i, row in zip(image, rows, strict=True)])
        return {**batch, "image": (image.astype(np.float32) / 255 - self.mean) / self.deviation}

    def _one(self, image: np.ndarray, step: int, row: int) -> np.ndarray:
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, row]))
        for name, size in self.operations:
            image = OPERATIONS[name](image, draw, size)
        return image


def parse(text: str | None) -> tuple[tuple[str, int], ...]:
    """`flip,crop:4` -> (("flip", 0), ("crop", 4)). Raises UsageError for an unknown operation or size."""
    operations = []
    for part in (text or "").split(",") if text else ():
        name, _, size = part.strip().partition(":")
        if name not in OPERATIONS:
            raise unknown("augmentation", name, OPERATIONS)
        if (name == "crop") != bool(size) or (size and not size.isdecimal()):
            raise UsageError(f"augmentation {part!r}: write flip, or crop:N with N pixels of padding")
        operations.append((name, int(size or 0)))
    return tuple(operations)
