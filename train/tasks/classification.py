"""Classification with one label per row."""

from abc import abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from errors import UsageError
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
class ClassProbabilities(Classification):
    """Classification by a loss of the softmax probabilities: `nats`.

    `class_weights` are weights of the classes [C]: a row counts in the loss as its label does, and the loss is the
    weighted mean, as in PyTorch's CrossEntropyLoss(weight=...). Accuracy counts all rows alike.
    """

    class_weights: tuple[float, ...] | None = None
    unit, mixes_labels = "nats", True

    def __post_init__(self) -> None:
        if min(self.class_weights or (1.0,)) <= 0:
            raise UsageError(f"config key 'train.class_weights' must be positive numbers, not {self.class_weights}")

    @abstractmethod
    def nats(self, value: Float[Array, "b c"], label: Int[Array, "b"]) -> Float[Array, "b"]:
        """The loss of each row for a label, without class weights."""

    def terms(self, value: Float[Array, "b c"], batch: Batch) -> WeightedSums:
        """Loss in nats, accuracy, and top-5 accuracy if there are more than five classes.

        For mixed rows the loss uses both labels; accuracy uses the label with the larger weight. Raises UsageError for
        another number of class weights than of classes.
        """
        w, label = batch["weight"], batch["label"]
        nats = self._weighted_nats(value, label)
        if "label_b" in batch:
            share, other = batch["lam"], batch["label_b"]
            nats = share * nats + (1 - share) * self._weighted_nats(value, other)
            label = jnp.where(share >= 0.5, label, other)
        terms = {"loss": (nats * w, self.loss_weight(batch)), "accuracy": (correct(value, label) * w, w)}
        if value.shape[-1] > TOP_K:
            terms["top5_accuracy"] = ((rank(value, label) < TOP_K) * w, w)
        return terms

    def loss_weight(self, batch: Batch) -> Float[Array, "b"]:
        """The rows' weights times those of their labels; of a mixed row, both labels' by their shares."""
        if self.class_weights is None:
            return batch["weight"]
        weight = self._class_weight(batch["label"])
        if "label_b" in batch:
            weight = batch["lam"] * weight + (1 - batch["lam"]) * self._class_weight(batch["label_b"])
        return weight * batch["weight"]

    def _weighted_nats(self, value: Float[Array, "b c"], label: Int[Array, "b"]) -> Float[Array, "b"]:
        if self.class_weights is None:
            return self.nats(value, label)
        if len(self.class_weights) != value.shape[-1]:
            numbers = f"must be {value.shape[-1]} numbers, one per class, not {len(self.class_weights)}"
            raise UsageError(f"config key 'train.class_weights' {numbers}")
        return self.nats(value, label) * self._class_weight(label)

    def _class_weight(self, label: Int[Array, "b"]) -> Float[Array, "b"]:
        """The weight of each label, selected by comparison, as rows may be sharded."""
        weights = jnp.asarray(self.class_weights, jnp.float32)
        return jnp.sum(jnp.where(label[:, None] == jnp.arange(len(weights))[None], weights[None], 0.0), -1)

    def predictions(self, value: Float[Array, "b c"], batch: Batch) -> dict[str, Array]:
        """The most probable class, the label, and `confidence`, the probability of the prediction: [B]."""
        confidence = jnp.exp(jnp.max(value, -1) - jax.nn.logsumexp(value, -1))
        return {**super().predictions(value, batch), "confidence": confidence}


@dataclass(frozen=True)
class Softmax(ClassProbabilities):
    """Classification by cross-entropy, with label smoothing and z-loss as in `cross_entropy`."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def nats(self, value: Float[Array, "b c"], label: Int[Array, "b"]) -> Float[Array, "b"]:
        """The cross-entropy of each row. With label smoothing, class weights are those of the label."""
        return cross_entropy(value, label, label_smoothing=self.label_smoothing, z_loss=self.z_loss)


@dataclass(frozen=True)
class Focal(ClassProbabilities):
    """Classification by the focal loss: cross-entropy with less weight for rows that are right.

    Source: Lin et al. 2017, arXiv:1708.02002, eq. 4 for a softmax; with class weights as alpha it is eq. 5, here as a
    weighted mean.
    """

    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.focal_gamma < 0:
            raise UsageError(f"config key 'train.focal_gamma' must be 0 or more, not {self.focal_gamma}")

    def nats(self, value: Float[Array, "b c"], label: Int[Array, "b"]) -> Float[Array, "b"]:
        """-(1 - p)^gamma log p of each row, p the probability of its label."""
        nats = cross_entropy(value, label)
        missing = jnp.maximum(-jnp.expm1(-nats), jnp.finfo(nats.dtype).tiny)  # 1 - p; at 0 a power has no slope
        return jnp.power(missing, self.focal_gamma) * nats


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
