"""Convolution and pooling of images.

Legend: B batch, Y X image rows and columns, C channels in, O channels out, I J kernel rows and columns.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.layers import gathered

Padding = str | int | tuple[tuple[int, int], tuple[int, int]]  # SAME, VALID; pixels on each side; of rows, of columns
DIMS = ("NHWC", "HWIO", "NHWC")


def conv(
    x: Float[Array, "b y x c"], kernel: Float[Array, "i j c o"], padding: Padding, out: Any = None, stride: int = 1
) -> Float[Array, "b y2 x2 o"]:
    """Cross-correlation: x [B Y X C], kernel [I J C O] -> [B Y' X' O], in x's dtype."""
    kernel = gathered(kernel.astype(x.dtype), x)
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, _sides(padding), dimension_numbers=DIMS, out_sharding=out)


def max_pool(x: Float[Array, "b y x c"], size: int, stride: int, padding: Padding = 0) -> Float[Array, "b y2 x2 c"]:
    """The largest of each window of size x size pixels; what is padded is -inf: [B Y X C] -> [B Y' X' C]."""
    return _windows(x, -jnp.inf, jax.lax.max, size, stride, padding)


def sum_pool(x: Float[Array, "b y x c"], size: int, stride: int, padding: Padding = 0) -> Float[Array, "b y2 x2 c"]:
    """The sum of each window of size x size pixels: [B Y X C] -> [B Y' X' C]."""
    return _windows(x, 0.0, jax.lax.add, size, stride, padding)


def adaptive_average_pool(x: Float[Array, "b y x c"], size: int, out: Any = None) -> Float[Array, "b size size c"]:
    """The means of size x size windows that cover the image, as even as they can be: [B Y X C] -> [B size size C].

    Window i of n pixels is from floor(i n / size) to ceil((i + 1) n / size); where there are fewer pixels than windows,
    pixels come several times. Source: torch.nn.AdaptiveAvgPool2d.
    """
    for axis, equation in ((1, "byxc,sy->bsxc"), (2, "byxc,sx->bysc")):
        n = x.shape[axis]
        if n != size:
            ends = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
            means = np.array([[(start <= at < stop) / (stop - start) for at in range(n)] for start, stop in ends])
            x = jnp.einsum(equation, x, means.astype(x.dtype), out_sharding=out)
    return x


def _windows(x: Array, start: float, reduce: Any, size: int, stride: int, padding: Padding) -> Array:
    sides = _sides(padding)
    around = sides if isinstance(sides, str) else ((0, 0), *sides, (0, 0))
    return jax.lax.reduce_window(x, start, reduce, (1, size, size, 1), (1, stride, stride, 1), around)


def _sides(padding: Padding) -> str | tuple[tuple[int, int], tuple[int, int]]:
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
