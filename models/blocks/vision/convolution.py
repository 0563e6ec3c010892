"""Convolution and pooling of images.

Legend: B batch, Y X image rows and columns, C channels in, O channels out, I J kernel rows and columns.
"""

import math
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.core.layers import einsum, gather_weight

Pads = tuple[tuple[int, int], tuple[int, int]]  # pixels before and after: of rows, of columns
Padding = str | int | Pads  # SAME, VALID; pixels on each side
DIMS = ("NHWC", "HWIO", "NHWC")
PATCHES = 2**22  # numbers in all patches of a gradient from which on they go in parts; measured, docs/log.md
AT_ONCE = 2**20  # numbers of a part


def conv(
    x: Float[Array, "b y x c"], kernel: Float[Array, "i j c o"], padding: Padding, out: Any = None, stride: int = 1
) -> Float[Array, "b y2 x2 o"]:
    """Cross-correlation: x [B Y X C], kernel [I J C O] -> [B Y' X' O], in x's dtype.

    A kernel of one pixel is a product. On one device the gradient is written out, for CPU's sake (docs/decisions/0019),
    and has no forward-mode derivative.
    """
    size = kernel.shape[:2]
    sides = _pad_widths(padding, x.shape[1:3], size, stride)
    if size == (1, 1) and not np.any(sides):
        return einsum("byxc,co->byxo", x[:, ::stride, ::stride], kernel[0, 0], out)
    kernel = gather_weight(kernel.astype(x.dtype), x)
    window = Window(sides, stride, out)
    mesh = jax.typeof(x).sharding.mesh
    return _conv_vjp(x, kernel, window) if mesh.empty or mesh.size == 1 else _conv(x, kernel, window)


class Window(NamedTuple):
    """Where a kernel goes: pixels that are added at the sides, its steps, and the sharding of what comes out."""

    pads: Pads
    stride: int
    out: Any


def _conv(x: Array, kernel: Array, window: Window) -> Array:
    steps = (window.stride, window.stride)
    return jax.lax.conv_general_dilated(x, kernel, steps, window.pads, dimension_numbers=DIMS, out_sharding=window.out)


_conv_vjp = jax.custom_vjp(_conv, nondiff_argnums=(2,))


def _forward(x: Array, kernel: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, window), (x, kernel)


def _backward(window: Window, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    def conv_gradients(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        (dx,) = jax.linear_transpose(lambda x: _conv(x, kernel, window), x)(g)
        (dk,) = jax.linear_transpose(lambda kernel: _conv(x, kernel, window), kernel)(g)
        return dx, dk

    return jax.lax.platform_dependent(*kept, g, cpu=partial(_cpu_gradients, window), default=conv_gradients)


_conv_vjp.defvjp(_forward, _backward)


def _cpu_gradients(window: Window, x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
    """Both gradients as CPU is fast at them: correlations of arrays that lie as the forward one's do, or by patches.

    XLA lays correlations out so by itself, but not inside of a loop.
    """
    s, back, over = window.stride, list[tuple[int, int]](), list[tuple[int, int]]()  # and pixels at the sides of each
    for size, n, places, (before, _) in zip(kernel.shape, x.shape[1:3], g.shape[1:3], window.pads, strict=False):
        reach = (places - 1) * s  # from the first place of the kernel to the last
        back.append((size - 1 - before, n + before - 1 - reach))
        over.append((before, size + reach - n - before))
    lies = jax.typeof(x).sharding.spec, jax.typeof(kernel).sharding.spec
    if not jax.typeof(x).sharding.mesh.empty:  # of one device
        x, kernel, g = (jax.sharding.reshard(a, jax.sharding.PartitionSpec()) for a in (x, kernel, g))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = jax.lax.conv_general_dilated(g, turned, (1, 1), back, lhs_dilation=(s, s), dimension_numbers=DIMS)
    if math.prod(g.shape[:3]) * math.prod(kernel.shape[:3]) <= PATCHES:
        by_channel, by_row = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
        dk = jax.lax.conv_general_dilated(by_channel, by_row, (1, 1), over, rhs_dilation=(s, s), dimension_numbers=DIMS)
        dk = dk.transpose(1, 2, 0, 3)
    else:
        dk = _kernel_gradient(
            jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*o, 0) for o in over), (0, 0, 0)]), g, s
        )
    return _reshard_if_meshed(dx, lies[0]), _reshard_if_meshed(dk.astype(kernel.dtype), lies[1])


def _kernel_gradient(x: Float[Array, "b y x c"], g: Float[Array, "b y2 x2 o"], stride: int) -> Float[Array, "i j c o"]:
    """A kernel's gradient: places of the kernel times patches of padded images below them, a part at a time.

    A part's patches, at most AT_ONCE numbers, stay in the cache between their copying and their product.
    """
    (B, _, width, C), (_, rows, columns, O) = x.shape, g.shape
    size = tuple(n - (places - 1) * stride for n, places in zip(x.shape[1:3], g.shape[1:3], strict=True))
    each = columns * math.prod(size) * C  # numbers, of one row of places
    tall = max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * each <= AT_ONCE))
    many = max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * rows * each <= AT_ONCE))

    def add(total: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        image, row = at
        seen = (many, (tall - 1) * stride + size[0], width, C)
        part = jax.lax.dynamic_slice(x, (image, row * stride, 0, 0), seen)
        places = jax.lax.dynamic_slice(g, (image, row, 0, 0), (many, tall, columns, O))
        patches = [
            part[:, i : i + (tall - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            for i, j in np.ndindex(*size)
        ]
        found = jnp.concatenate(patches, -1).reshape(-1, math.prod(size) * C)
        return total + jnp.dot(places.reshape(-1, O).T, found, preferred_element_type=total.dtype), None

    at = np.mgrid[0:B:many, 0:rows:tall].reshape(2, -1).astype(np.int32)
    zero = jnp.zeros((O, math.prod(size) * C), jnp.promote_types(x.dtype, jnp.float32))
    total, _ = jax.lax.scan(add, zero, tuple(jnp.asarray(at)))
    return total.T.reshape(*size, C, O)


def _reshard_if_meshed(x: Array, spec: Any) -> Array:
    return x if jax.typeof(x).sharding.mesh.empty else jax.sharding.reshard(x, spec)


def max_pool(x: Float[Array, "b y x c"], size: int, stride: int, padding: Padding = 0) -> Float[Array, "b y2 x2 c"]:
    """The largest of each window of size x size pixels; what is padded is -inf: [B Y X C] -> [B Y' X' C].

    Of equals the first, row by row, has the gradient. On one device that is written out as a convolution's is.
    """
    sides = _pad_widths(padding, x.shape[1:3], (size, size), stride)
    mesh = jax.typeof(x).sharding.mesh
    return _max_pool_vjp(x, size, stride, sides) if mesh.empty or mesh.size == 1 else _max_pool(x, size, stride, sides)


def _max_pool(x: Array, size: int, stride: int, sides: Pads) -> Array:
    return _reduce_window(x, -jnp.inf, jax.lax.max, size, stride, sides)


def _max_pool_by_shifts(x: Array, size: int, stride: int, sides: Pads) -> Array:
    """The same, whose gradient XLA does fast on CPU: the larger of shifted images, along rows and then columns."""
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *((*pad, 0) for pad in sides), (0, 0, 0)])
    for axis in (2, 1):  # the first of equals in a row, then the first such row
        end = x.shape[axis] - size + 1
        shifted = [jax.lax.slice_in_dim(x, i, end + i, stride, axis) for i in range(size)]
        x = reduce(lambda most, other: jnp.where((other > most) | jnp.isnan(other), other, most), shifted)
    return x


_max_pool_vjp = jax.custom_vjp(_max_pool, nondiff_argnums=(1, 2, 3))


def _pool_backward(size: int, stride: int, sides: Pads, x: Array, g: Array) -> tuple[Array]:
    def pool_gradient(pool: Any) -> Any:
        return lambda x, g: jax.vjp(lambda x: pool(x, size, stride, sides), x)[1](g)

    return jax.lax.platform_dependent(x, g, cpu=pool_gradient(_max_pool_by_shifts), default=pool_gradient(_max_pool))


_max_pool_vjp.defvjp(lambda x, *window: (_max_pool(x, *window), x), _pool_backward)


def sum_pool(x: Float[Array, "b y x c"], size: int, stride: int, padding: Padding = 0) -> Float[Array, "b y2 x2 c"]:
    """The sum of each window of size x size pixels: [B Y X C] -> [B Y' X' C]."""
    return _reduce_window(x, 0.0, jax.lax.add, size, stride, padding)


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


def _reduce_window(x: Array, start: float, join: Any, size: int, stride: int, padding: Padding) -> Array:
    around = ((0, 0), *_pad_widths(padding, x.shape[1:3], (size, size), stride), (0, 0))
    return jax.lax.reduce_window(x, start, join, (1, size, size, 1), (1, stride, stride, 1), around)


def _pad_widths(padding: Padding, plane: tuple[int, ...], size: tuple[int, ...], stride: int) -> Pads:
    """Pixels before and after the rows, and the columns, of images [Y X] that windows of a size go over."""
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if isinstance(padding, tuple):
        return padding
    (top, bottom), (left, right) = jax.lax.padtype_to_pads(plane, size, (stride, stride), padding)
    return (top, bottom), (left, right)
