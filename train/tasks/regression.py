"""Regression."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from train.tasks.forward import Batch, WeightedSums
from train.tasks.task import SingleForwardTask

MAX_OUTPUTS = 8  # values per row that an evaluation keeps


@dataclass(frozen=True)
class MSE(SingleForwardTask):
    """Regression by the mean squared error over the outputs."""

    output_kind, target_field, unit = "regressor", "target", "squared error"

    def terms(self, value: Float[Array, "b c"], batch: Batch) -> WeightedSums:
        """The mean squared error of each row."""
        w = batch["weight"]
        return {"loss": (jnp.mean(jnp.square(value - batch["target"]), -1) * w, w)}

    def predictions(self, value: Array, batch: Batch) -> dict[str, Array]:
        """The values [B C] and their targets, if C is at most MAX_OUTPUTS."""
        if value.ndim == 2 and value.shape[1] <= MAX_OUTPUTS:
            return {"prediction": value, "label": batch["target"]}
        return {}
