"""Tables of positions on a grid, brought to another grid as transformers does for images of another size.

Legend: P positions, D width.
"""

import math

import numpy as np
from jaxtyping import Float

from errors import UsageError

SHARPNESS = -0.75  # Keys's a, as torch has it


def cubic(size: int, into: int) -> Float[np.ndarray, "o i"]:
    """The matrix that brings `size` samples of a line to `into`: cubic convolution, ends held, no smoothing -> [O I].

    Source: Keys 1981, "Cubic convolution interpolation", eq. 4 with a free a; pixels are areas (align_corners False).
    """
    at = (np.arange(into) + 0.5) * (size / into) - 0.5
    near = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)  # the four samples around each
    x, a = np.abs(at[:, None] - near), SHARPNESS
    inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
    matrix = np.zeros((into, size))
    np.add.at(matrix, (np.arange(into)[:, None], near.clip(0, size - 1)), np.where(x <= 1, inner, outer))
    return matrix


def resized(table: Float[np.ndarray, "1 p d"], grid: tuple[int, int], first: int) -> Float[np.ndarray, "1 p2 d"]:
    """A table of a square grid on another one, its `first` rows as they are: [1 P D] -> [1 P' D].

    Raises UsageError where the table's grid is no square.
    """
    count = table.shape[1] - first
    side = math.isqrt(max(count, 0))
    if side * side != count or not side:
        raise UsageError(f"a table of {count} positions is of no square grid, and cannot be brought to {grid}")
    square = table[0, first:].reshape(side, side, -1).astype(np.float64)
    rows, columns = (cubic(side, n) for n in grid)
    new = np.einsum("yi,xj,ijd->yxd", rows, columns, square, optimize=True).reshape(-1, table.shape[2])
    return np.concatenate([table[0, :first], new.astype(table.dtype)])[None]
