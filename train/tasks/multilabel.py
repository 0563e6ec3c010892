"""Classification with any number of labels per row."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.tasks.forward import Batch, WeightedSums
from train.tasks.task import SingleForwardTask


@dataclass(frozen=True)
class Sigmoid(SingleForwardTask):
    """Multi-label classification by binary cross-entropy: labels [B C] of 0 and 1."""

    output_kind, target_field, unit = "classifier", "labels", "nats"

    def terms(self, value: Float[Array, "b c"], batch: Batch) -> WeightedSums:
        """The loss is the mean over classes, in nats. A class is predicted at a probability of 0.5 or more.

        accuracy counts rows with all classes correct; f1 is 2 TP / (2 TP + FP + FN) over all rows and classes
        (micro-averaged).
        """
        w, labels = batch["weight"], batch["labels"]
        nats = jnp.mean(jax.nn.softplus(value) - labels * value, -1)
        right, hit = (value >= 0) == (labels > 0), (value >= 0) & (labels > 0)
        twice = 2.0 * jnp.sum(hit, -1)
        return {
            "loss": (nats * w, w),
            "accuracy": (jnp.all(right, -1) * w, w),
            "f1": (twice * w, (twice + jnp.sum(~right, -1)) * w),
        }

    def predictions(self, value: Float[Array, "b c"], batch: Batch) -> dict[str, Array]:
        """Each class's probability, and 0 or 1 [B C]."""
        return {"prediction": jax.nn.sigmoid(value), "label": batch["labels"]}
