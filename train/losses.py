"""Tasks: what is optimised and what is measured, as per-row sums and weights, never means of means.

A task maps (value, batch) to `{name: (sum [B], weight [B])}`; `loss` is among the names and is what training minimises,
as the ratio of the totals.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Terms = dict[str, tuple[Array, Array]]
Task = Callable[[Array, dict[str, Array]], Terms]


def cross_entropy(logits: Float[Array, "*b c"], label: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """-log softmax(logits)[label], in nats: logits [... C], label [...] -> [...].

    The label's logit is picked by comparison, not by a gather, so that C may be sharded.
    """
    chosen = jnp.arange(logits.shape[-1]).reshape((1,) * label.ndim + (-1,)) == label[..., None]
    picked = jnp.sum(jnp.where(chosen, logits, 0.0), -1)
    return jax.nn.logsumexp(logits, -1) - picked


def hits(logits: Float[Array, "*b c"], label: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """1 where the label's logit is the largest (the first of equals), else 0: [... C], [...] -> [...]."""
    index = jnp.arange(logits.shape[-1]).reshape((1,) * label.ndim + (-1,))
    top = jnp.max(logits, -1, keepdims=True)
    first = jnp.min(jnp.where(logits == top, index, logits.shape[-1]), -1)
    return (first == label).astype(jnp.float32)


def softmax(value: Float[Array, "b c"], batch: dict[str, Array]) -> Terms:
    """Classification by cross-entropy: loss in nats, accuracy."""
    w, label = batch["weight"], batch["label"]
    return {"loss": (cross_entropy(value, label) * w, w), "accuracy": (hits(value, label) * w, w)}


def quadratic(value: Float[Array, "b c"], batch: dict[str, Array]) -> Terms:
    """Classification by the quadratic cost, half the squared distance to the one-hot label (Nielsen 2015, eq. 6)."""
    w, label = batch["weight"], batch["label"]
    target = (jnp.arange(value.shape[-1])[None] == label[:, None]).astype(value.dtype)
    cost = 0.5 * jnp.sum(jnp.square(value - target), -1)
    return {"loss": (cost * w, w), "accuracy": (hits(value, label) * w, w)}


def next_token(value: Float[Array, "b t v"], batch: dict[str, Array]) -> Terms:
    """Language modelling: loss in nats a token, accuracy, and bits per byte where the batch counts bytes."""
    w = batch["weight"]
    nats = jnp.sum(cross_entropy(value, batch["targets"]) * w, -1)
    weight = jnp.sum(w, -1)
    terms = {"loss": (nats, weight), "accuracy": (jnp.sum(hits(value, batch["targets"]) * w, -1), weight)}
    if "bytes" in batch:
        terms["bits_per_byte"] = (nats / math.log(2), jnp.sum(batch["bytes"], -1))
    return terms


TASKS: dict[str, Task] = {"softmax": softmax, "quadratic": quadratic, "next_token": next_token}
