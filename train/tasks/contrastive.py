"""Contrastive learning: two views of an image are alike, and unlike all other images of the batch."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from errors import UsageError
from models.core.layers import MASK_VALUE, fold_in_each, reshard
from models.core.spec import Place
from train.tasks.forward import Batch, Forward, Frozen, WeightedSums
from train.tasks.task import Task


@dataclass(frozen=True)
class Contrastive(Task):
    """NT-Xent, also called InfoNCE, of the embeddings of two views: the output of any classifier [B D].

    Negatives are all other rows of the batch, so that the batch size decides how hard it is, in evaluation too.
    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1, for both views as anchors.
    """

    temperature: float = 0.1
    output_kind, target_field, unit = "classifier", "image_b", "nats"
    couples_rows = two_views = True

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UsageError(f"config key 'train.temperature' must be positive, not {self.temperature}")

    def loss(self, forward: Forward, batch: Batch, frozen: Frozen) -> WeightedSums:
        """Loss in nats, and accuracy: how often the most similar of all views is the other one of the same image."""
        keys = fold_in_each(forward.keys, jnp.asarray(1))  # the views have dropout masks of their own
        one = normalise(forward({"image": batch["image"]}).value)
        two = normalise(forward({"image": batch["image_b"]}, keys=keys).value)
        w, live = batch["weight"], batch["weight"] > 0
        found = [nt_xent(*views, live, self.temperature, forward.place) for views in ((one, two), (two, one))]
        nats, right = (sum(parts) / 2 for parts in zip(*found, strict=True))
        return {"loss": (nats * w, w), "accuracy": (right * w, w)}


def normalise(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Vectors of length 1; a vector of 0 stays 0, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


def nt_xent(
    anchor: Float[Array, "b d"], other: Float[Array, "b d"], live: Array, temperature: float, place: Place
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """Nats of each anchor, and 1 if its other view is the nearest: unit vectors [B D], live [B] -> [B], [B].

    The denominator has the other view and both views of all other live rows. Each device compares its own anchors with
    the vectors of all devices.
    """
    anchor = reshard(anchor, place("batch width"))
    everywhere = [reshard(x, place("")) for x in (anchor, other)]
    same, across = (jnp.einsum("id,jd->ij", anchor, x) / temperature for x in everywhere)
    index = jnp.arange(len(anchor))
    own = reshard(index, place("batch"))[:, None] == index[None]
    positive = jnp.sum(jnp.where(own, across, 0.0), -1)
    negative = ~own & reshard(live, place(""))[None]
    negatives = jnp.concatenate([jnp.where(negative, x, MASK_VALUE) for x in (same, across)], -1)
    normaliser = jnp.logaddexp(positive, jax.nn.logsumexp(negatives, -1))
    return normaliser - positive, (positive > jnp.max(negatives, -1)).astype(jnp.float32)
