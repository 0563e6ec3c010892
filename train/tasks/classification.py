"""Classification with one label per row."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.tasks.cross_entropy import argmax, correct, cross_entropy, rank
from train.tasks.forward import Batch, WeightedSums
from train.tasks.task import SingleForwardTask

TOP_K = 5  # of the looser accuracy


class Classification(SingleForwardTask):
    """Classification by one score per class."""

    output_kind, target_field = "classifier", "label"

    def predictions(self, value: Float[Array, "b c"], batch: Batch) -> dict[str, Array]:
        """The class of the largest score, and the label: [B]."""
        return {"prediction": argmax(value), "label": batch["label"]}


@dataclass(frozen=True)
class Softmax(Classification):
    """Classification by cross-entropy, with label smoothing and z-loss as in `cross_entropy`."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    unit, mixes_labels = "nats", True

    def terms(self, value: Float[Array, "b c"], batch: Batch) -> WeightedSums:
        """Loss in nats, accuracy, and top-5 accuracy if there are more than five classes.

        For mixed rows the loss uses both labels; accuracy uses the label with the larger weight.
        """
        w, label = batch["weight"], batch["label"]
        nats = self.nats(value, label)
        if "label_b" in batch:
            share, other = batch["lam"], batch["label_b"]
            nats = share * nats + (1 - share) * self.nats(value, other)
            label = jnp.where(share >= 0.5, label, other)
        terms = {"loss": (nats * w, w), "accuracy": (correct(value, label) * w, w)}
        if value.shape[-1] > TOP_K:
            terms["top5_accuracy"] = ((rank(value, label) < TOP_K) * w, w)
        return terms

    def nats(self, value: Float[Array, "b c"], label: Array) -> Float[Array, "b"]:
        """The loss of each row for a label [B]."""
        return cross_entropy(value, label, label_smoothing=self.label_smoothing, z_loss=self.z_loss)

    def predictions(self, value: Float[Array, "b c"], batch: Batch) -> dict[str, Array]:
        """The most probable class, the label, and `confidence`, the probability of the prediction: [B]."""
        confidence = jnp.exp(jnp.max(value, -1) - jax.nn.logsumexp(value, -1))
        return {**super().predictions(value, batch), "confidence": confidence}


@dataclass(frozen=True)
class Quadratic(Classification):
    """Classification by the quadratic cost: half the squared distance to the one-hot label (Nielsen 2015, eq. 6)."""

    unit = "quadratic cost"

    def terms(self, value: Float[Array, "b c"], batch: Batch) -> WeightedSums:
        """The cost of each row, and accuracy."""
        w, label = batch["weight"], batch["label"]
        target = (jnp.arange(value.shape[-1])[None] == label[:, None]).astype(value.dtype)
        cost = 0.5 * jnp.sum(jnp.square(value - target), -1)
        return {"loss": (cost * w, w), "accuracy": (correct(value, label) * w, w)}


class BinaryClassification(Classification):
    """Classification into two classes by one score s, positive for class 1; y = -1 or 1 is the label."""

    unit, single_score = "margin", True

    def predictions(self, value: Float[Array, "b 1"], batch: Batch) -> dict[str, Array]:
        """The class by the score's sign, and the label: [B]."""
        return {"prediction": (value[:, 0] > 0).astype(jnp.int32), "label": batch["label"]}


@dataclass(frozen=True)
class Hinge(BinaryClassification):
    """The hinge loss max(0, 1 - y s) (Cortes, Vapnik 1995)."""

    def terms(self, value: Float[Array, "b 1"], batch: Batch) -> WeightedSums:
        """The loss of each row, and accuracy."""
        w, y, score = batch["weight"], 2.0 * batch["label"] - 1, value[:, 0]
        right = (score * y > 0).astype(jnp.float32)
        return {"loss": (jax.nn.relu(1 - y * score) * w, w), "accuracy": (right * w, w)}


@dataclass(frozen=True)
class Perceptron(BinaryClassification):
    """The perceptron criterion: -y s if y s <= 0, else 0.

    With plain SGD, learning rate 1 and batch size 1 it is Rosenblatt's rule: a misclassified input is added to the
    weights or subtracted. A score of 0 counts as an error, so that a perceptron initialised to 0 learns.
    Source: Rosenblatt 1958, Psychological Review 65; Block 1962, Reviews of Modern Physics 34.
    """

    def terms(self, value: Float[Array, "b 1"], batch: Batch) -> WeightedSums:
        """The loss of each row, and accuracy."""
        w, y, score = batch["weight"], 2.0 * batch["label"] - 1, value[:, 0]
        wrong = score * y <= 0
        return {"loss": (jnp.where(wrong, -y * score, 0.0) * w, w), "accuracy": ((1.0 - wrong) * w, w)}
