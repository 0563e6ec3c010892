"""Cross-entropy, and the metrics of logits. The classes may be sharded, so that nothing gathers or sorts them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.core.layers import MASK_VALUE


def cross_entropy(
    logits: Float[Array, "*b c"], label: Int[Array, "*b"], *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Float[Array, "*b"]:
    """-log softmax(logits)[label], in nats: logits [... C], label [...] -> [...].

    `label_smoothing` is the share of the target spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567,
    section 7). `z_loss` times the squared log-normaliser is added (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
    Masked logits are not classes. The label's logit is selected by comparison instead of a gather, as C may be sharded.
    """
    chosen = jnp.arange(logits.shape[-1]).reshape((1,) * label.ndim + (-1,)) == label[..., None]
    picked = jnp.sum(jnp.where(chosen, logits, 0.0), -1)
    normaliser = jax.nn.logsumexp(logits, -1)
    nats = normaliser - picked
    if label_smoothing:
        real = logits > MASK_VALUE / 2
        mean = jnp.sum(jnp.where(real, logits, 0.0), -1) / jnp.sum(real, -1)
        nats = (1 - label_smoothing) * nats + label_smoothing * (normaliser - mean)
    return nats + z_loss * jnp.square(normaliser) if z_loss else nats


def argmax(logits: Float[Array, "*b c"]) -> Int[Array, "*b"]:
    """The class with the largest logit; the first of equal ones, C if a logit is NaN: [... C] -> [...].

    Computed by comparison, as C may be sharded.
    """
    index = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
    top = jnp.max(logits, -1, keepdims=True)
    return jnp.min(jnp.where(logits == top, index, logits.shape[-1]), -1)


def correct(logits: Float[Array, "*b c"], label: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """1 if the label's logit is the largest (the first of equal ones), else 0: [... C], [...] -> [...]."""
    return (argmax(logits) == label).astype(jnp.float32)


def rank(logits: Float[Array, "*b c"], label: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """The label's rank by logit, 0 for the largest: [... C], [...] -> [...].

    It counts the classes with a larger or NaN logit, and those with an equal logit and a lower index. C may be sharded.
    """
    index, mine = jnp.arange(logits.shape[-1]).reshape((1,) * label.ndim + (-1,)), label[..., None]
    own = jnp.sum(jnp.where(index == mine, logits, 0.0), -1, keepdims=True)
    return jnp.sum(~(logits < own) & (index < mine) | ~(logits <= own) & (index > mine), -1)
