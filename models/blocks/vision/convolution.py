"""Convolution and pooling of images.

Legend: B batch, Y X image rows and columns, C channels in, O channels out, I J kernel rows and columns.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from models.core.gradients import with_gradient
from models.core.layers import einsum, gather_weight
from models.core.types import OutSharding

Pads = tuple[tuple[int, int], tuple[int, int]]  # pixels before and after: of rows, of columns
Padding = str | int | Pads  # SAME, VALID; pixels on each side
DIMS = ("NHWC", "HWIO", "NHWC")


def conv(
    x: Float[Array, "b y x c"],
    kernel: Float[Array, "i j c o"],
    padding: Padding,
    out: OutSharding = None,
    stride: int = 1,
) -> Float[Array, "b y2 x2 o"]:
    """Cross-correlation: x [B Y X C], kernel [I J C O] -> [B Y' X' O], in x's dtype.

    A kernel of one pixel is a matrix product. On one device the gradient is hand-written, because XLA's is slow on CPU
    (docs/decisions/0019, 0039); `plain_gradients` derives it instead.
    """
    size = kernel.shape[:2]
    pads = _pad_widths(padding, x.shape[1:3], size, stride)
    if size == (1, 1) and not np.any(pads):
        return einsum("byxc,co->byxo", x[:, ::stride, ::stride], kernel[0, 0], out)
    kernel = gather_weight(kernel.astype(x.dtype), x)
    window = Window(pads, stride, out)
    mesh = jax.typeof(x).sharding.mesh
    return _conv_vjp(x, kernel, window) if mesh.empty or mesh.size == 1 else _conv(x, kernel, window)


class Window(NamedTuple):
    """Padding and stride of a kernel, and the sharding of the output."""

    pads: Pads
    stride: int
    out: OutSharding


def _conv(x: Array, kernel: Array, window: Window) -> Array:
    steps = (window.stride, window.stride)
    return jax.lax.conv_general_dilated(x, kernel, steps, window.pads, dimension_numbers=DIMS, out_sharding=window.out)


def _forward(x: Array, kernel: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, window), (x, kernel)


def _backward(window: Window, residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    def conv_gradients(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        (dx,) = jax.linear_transpose(lambda x: _conv(x, kernel, window), x)(g)
        (dk,) = jax.linear_transpose(lambda kernel: _conv(x, kernel, window), kernel)(g)
        return dx, dk

    return jax.lax.platform_dependent(*residuals, g, cpu=partial(_cpu_gradients, window), default=conv_gradients)


_conv_vjp = with_gradient(_conv, _forward, _backward, nondiff_argnums=(2,))


def _cpu_gradients(window: Window, x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
    """Both gradients in a form that is fast on CPU: convolutions in the forward one's layout.

    XLA chooses that layout by itself, but not inside a loop.
    """
    s = window.stride
    x_pads: list[tuple[int, int]] = []
    g_pads: list[tuple[int, int]] = []
    for axis, (before, _) in enumerate(window.pads):  # rows, then columns
        size = kernel.shape[axis]
        n = x.shape[1 + axis]
        span = (g.shape[1 + axis] - 1) * s  # from the first position of the kernel to the last
        g_pads.append((size - 1 - before, n + before - 1 - span))
        x_pads.append((before, size + span - n - before))
    x_spec, kernel_spec = jax.typeof(x).sharding.spec, jax.typeof(kernel).sharding.spec
    if not jax.typeof(x).sharding.mesh.empty:  # of one device
        x, kernel, g = (jax.sharding.reshard(a, jax.sharding.PartitionSpec()) for a in (x, kernel, g))
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)  # [I J O C]
    dx = jax.lax.conv_general_dilated(g, flipped, (1, 1), g_pads, lhs_dilation=(s, s), dimension_numbers=DIMS)
    x_by_channel = x.transpose(3, 1, 2, 0)  # [C Y X B]: channels as batch, rows of the batch as channels
    g_as_kernel = g.transpose(1, 2, 0, 3)  # [Y' X' B O]
    dk = jax.lax.conv_general_dilated(
        x_by_channel, g_as_kernel, (1, 1), x_pads, rhs_dilation=(s, s), dimension_numbers=DIMS
    )
    dk = dk.transpose(1, 2, 0, 3)  # [C I J O] -> [I J C O]
    return _reshard_if_meshed(dx, x_spec), _reshard_if_meshed(dk, kernel_spec)


def _reshard_if_meshed(x: Array, spec: PartitionSpec) -> Array:
    return x if jax.typeof(x).sharding.mesh.empty else jax.sharding.reshard(x, spec)


def max_pool(x: Float[Array, "b y x c"], size: int, stride: int, padding: Padding = 0) -> Float[Array, "b y2 x2 c"]:
    """The maximum of each window of size x size pixels, padded with -inf: [B Y X C] -> [B Y' X' C].

    The first of equals, row by row, has the gradient. On one device the gradient is hand-written, as `conv`'s.
    """
    pads = _pad_widths(padding, x.shape[1:3], (size, size), stride)
    mesh = jax.typeof(x).sharding.mesh
    return _max_pool_vjp(x, size, stride, pads) if mesh.empty or mesh.size == 1 else _max_pool(x, size, stride, pads)


def _max_pool(x: Array, size: int, stride: int, pads: Pads) -> Array:
    return _reduce_window(x, -jnp.inf, jax.lax.max, size, stride, pads)


def _max_pool_by_shifts(x: Array, size: int, stride: int, pads: Pads) -> Array:
    """Equal to `_max_pool`, with a gradient that is fast on CPU: maxima of shifted images, by row, then by column."""
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    for axis in (2, 1):  # the first of equals in a row, then the first such row
        end = x.shape[axis] - size + 1
        shifted = [jax.lax.slice_in_dim(x, i, end + i, stride, axis) for i in range(size)]
        x = reduce(lambda best, other: jnp.where((other > best) | jnp.isnan(other), other, best), shifted)
    return x


def _pool_forward(x: Array, size: int, stride: int, pads: Pads) -> tuple[Array, Array]:
    return _max_pool(x, size, stride, pads), x


def _pool_backward(size: int, stride: int, pads: Pads, x: Array, g: Array) -> tuple[Array]:
    def pool_gradient(pool: Callable[..., Array]) -> Callable[[Array, Array], tuple[Array]]:
        return lambda x, g: jax.vjp(lambda x: pool(x, size, stride, pads), x)[1](g)

    return jax.lax.platform_dependent(x, g, cpu=pool_gradient(_max_pool_by_shifts), default=pool_gradient(_max_pool))


_max_pool_vjp = with_gradient(
    _max_pool, _pool_forward, _pool_backward, nondiff_argnums=(1, 2, 3), plain=_max_pool_by_shifts
)


def sum_pool(x: Float[Array, "b y x c"], size: int, stride: int, padding: Padding = 0) -> Float[Array, "b y2 x2 c"]:
    """The sum of each window of size x size pixels: [B Y X C] -> [B Y' X' C]."""
    return _reduce_window(x, 0.0, jax.lax.add, size, stride, padding)


def adaptive_average_pool(
    x: Float[Array, "b y x c"], size: int, out: OutSharding = None
) -> Float[Array, "b size size c"]:
    """The means of size x size windows that cover the image as evenly as possible: [B Y X C] -> [B size size C].

    Window i of n pixels is from floor(i n / size) to ceil((i + 1) n / size), so that windows share pixels if size does
    not divide n. Source: torch.nn.AdaptiveAvgPool2d.
    """
    for axis, equation in ((1, "byxc,sy->bsxc"), (2, "byxc,sx->bysc")):
        n = x.shape[axis]
        if n != size:
            x = jnp.einsum(equation, x, _window_means(n, size).astype(x.dtype), out_sharding=out)
    return x


def _window_means(n: int, size: int) -> Float[np.ndarray, "size n"]:
    """The matrix that maps n pixels to the means of `size` windows, which cover them as evenly as possible."""
    means = np.zeros((size, n))
    for i in range(size):
        start = i * n // size
        stop = -(-(i + 1) * n // size)
        means[i, start:stop] = 1 / (stop - start)
    return means


def _reduce_window(
    x: Array, start: float, combine: Callable[[Array, Array], Array], size: int, stride: int, padding: Padding
) -> Array:
    pads = ((0, 0), *_pad_widths(padding, x.shape[1:3], (size, size), stride), (0, 0))
    return jax.lax.reduce_window(x, start, combine, (1, size, size, 1), (1, stride, stride, 1), pads)


def _pad_widths(padding: Padding, plane: tuple[int, ...], size: tuple[int, ...], stride: int) -> Pads:
    """Padding before and after rows and columns, for images of rows and columns `plane` and windows of `size`."""
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if isinstance(padding, tuple):
        return padding
    (top, bottom), (left, right) = jax.lax.padtype_to_pads(plane, size, (stride, stride), padding)
    return (top, bottom), (left, right)
