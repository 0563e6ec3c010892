"""Batch normalization, with a hand-written gradient that reads each image twice."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.core.gradients import with_gradient
from models.core.layers import add_bias, apply_scale

Moments = tuple[Array, Array]  # mean and variance of each channel


def batch_norm(
    x: Float[Array, "b *spatial d"],
    p: dict[str, Array],
    stats: dict[str, Array],
    *,
    train: bool,
    momentum: float,
    eps: float,
    eps_outside_sqrt: bool = False,
) -> tuple[Float[Array, "b *spatial d"], dict[str, Array]]:
    """Normalize each channel over the global batch and space: x [B ... D], stats [D] -> (y [B ... D], new stats).

    Training uses the batch's moments and moves the running ones by `1 - momentum`; otherwise the running ones are used.
    `eps` is added to the variance, or to its root with `eps_outside_sqrt`, as in Darknet.
    The running variance is unbiased, as in torch; the batch is normalized by the biased one.
    Source: Ioffe, Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """
    if not train:
        moments = stats["mean"], stats["var"]
        y = _normalize(x.astype(jnp.float32), p["scale"], p["bias"], moments, eps, eps_outside_sqrt)
        return y.astype(x.dtype), stats
    y, (mean, variance) = _normalize_batch_vjp(x, p["scale"], p["bias"], eps, eps_outside_sqrt)
    count = math.prod(x.shape[:-1])
    fresh = {"mean": mean, "var": variance * (count / max(count - 1, 1))}
    return y, {name: momentum * stats[name] + (1 - momentum) * jax.lax.stop_gradient(fresh[name]) for name in fresh}


def _normalize(
    y: Array, scale: Array, bias: Array, moments: Moments, eps: float, eps_outside_sqrt: bool
) -> Float[Array, "b *spatial d"]:
    mean, variance = moments
    inverse = _inverse_deviation(eps, eps_outside_sqrt, variance)
    return add_bias(apply_scale(add_bias(y, -mean), scale * inverse), bias)


def _inverse_deviation(eps: float, eps_outside_sqrt: bool, variance: Float[Array, "d"]) -> Float[Array, "d"]:
    if eps_outside_sqrt:
        return 1 / (jnp.sqrt(jnp.maximum(variance, 1e-24)) + eps)  # sqrt has no derivative at 0
    return jax.lax.rsqrt(variance + eps)


def _normalize_batch(x: Array, scale: Array, bias: Array, eps: float, eps_outside_sqrt: bool) -> tuple[Array, Moments]:
    """x [B ... D] normalized by its own moments, and these."""
    y = x.astype(jnp.float32)
    over = tuple(range(x.ndim - 1))
    mean = jnp.mean(y, over)
    variance = jnp.mean(jnp.square(add_bias(y, -mean)), over)
    y = _normalize(y, scale, bias, (mean, variance), eps, eps_outside_sqrt)
    return y.astype(x.dtype), (mean, variance)


def _forward(
    x: Array, scale: Array, bias: Array, eps: float, eps_outside_sqrt: bool
) -> tuple[tuple[Array, Moments], tuple[Array, Array, Moments]]:
    y, moments = _normalize_batch(x, scale, bias, eps, eps_outside_sqrt)
    return (y, moments), (x, scale, moments)


def _backward(
    eps: float, eps_outside_sqrt: bool, residuals: tuple[Array, Array, Moments], cotangents: tuple[Array, Moments]
) -> tuple[Array, Array, Array]:
    """Gradients of x [B ... D], scale [D] and bias [D]; those of the moments are 0, by stop_gradient.

    With y = scale (x - mean) r(variance) + bias and g its gradient, that of x is
    scale (r (g - mean g) + 2 r' (x - mean) mean(g (x - mean))).
    """
    x, scale, (mean, variance) = residuals
    g = cotangents[0].astype(jnp.float32)
    over = tuple(range(x.ndim - 1))
    count = math.prod(x.shape[:-1])
    inverse, slope = jax.jvp(
        partial(_inverse_deviation, eps, eps_outside_sqrt), (variance,), (jnp.ones_like(variance),)
    )
    centered = add_bias(x.astype(jnp.float32), -mean)
    sum_g = jnp.sum(g, over)
    sum_gx = jnp.sum(g * centered, over)
    through_y = apply_scale(add_bias(g, -sum_g / count), scale * inverse)
    through_variance = apply_scale(centered, scale * slope * sum_gx * (2 / count))
    dx = (through_y + through_variance).astype(x.dtype)
    return dx, (sum_gx * inverse).astype(scale.dtype), sum_g.astype(scale.dtype)


_normalize_batch_vjp = with_gradient(_normalize_batch, _forward, _backward, nondiff_argnums=(3, 4))
