"""Interpolates tables of grid positions for images of another size, as transformers and timm do.

Legend: P positions, D width.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from errors import UsageError


def cubic_weights(size: int, into: int, smooth: bool = False) -> Float[np.ndarray, "o i"]:
    """The matrix that resamples `size` samples to `into`, as torch.nn.functional.interpolate does -> [O I].

    Cubic convolution with a = -0.75, and clamped at the ends. With `smooth` (antialias) a = -0.5, the kernel is scaled
    to the coarser samples, and it is cut off and renormalised at the ends. Pixels are areas (align_corners False).
    Source: Keys 1981, "Cubic convolution interpolation", eq. 4 with a free a.
    """
    at = (np.arange(into) + 0.5) * (size / into) - 0.5
    if smooth:
        weights = _cubic_kernel(np.abs(at[:, None] - np.arange(size)) / max(size / into, 1), -0.5)
        return weights / weights.sum(1, keepdims=True)
    near = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)  # the four samples around each
    matrix = np.zeros((into, size))
    np.add.at(
        matrix, (np.arange(into)[:, None], near.clip(0, size - 1)), _cubic_kernel(np.abs(at[:, None] - near), -0.75)
    )
    return matrix


def _cubic_kernel(x: np.ndarray, a: float) -> np.ndarray:
    """The weights of samples at distances x."""
    inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


@dataclass(frozen=True)
class ResizePositions:
    """Resizes a table of a square grid to `grid`, without its `first` rows, which it keeps: [1 P D] -> [1 P' D]."""

    grid: tuple[int, int]
    first: int
    smooth: bool

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a table of this shape is the first rows and a square grid."""
        count = shape[1] - self.first
        return shape[0] == 1 and count > 0 and math.isqrt(count) ** 2 == count

    def __call__(self, table: Float[np.ndarray, "1 p d"]) -> Float[np.ndarray, "1 p2 d"]:
        """The resized table. Raises UsageError for a grid that is not square."""
        if not self.accepts(table.shape):
            count = table.shape[1] - self.first
            raise UsageError(f"{count} positions are not a square grid and cannot be resized to {self.grid}")
        side = math.isqrt(table.shape[1] - self.first)
        square = table[0, self.first :].reshape(side, side, -1).astype(np.float64)
        rows, columns = (cubic_weights(side, n, self.smooth) for n in self.grid)
        new = np.einsum("yi,xj,ijd->yxd", rows, columns, square, optimize=True).reshape(-1, table.shape[2])
        return np.concatenate([table[0, : self.first], new.astype(table.dtype)])[None]
