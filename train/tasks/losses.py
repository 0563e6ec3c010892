"""Tasks: losses and metrics as per-row sums and weights, never means of means.

A task maps (value, batch) to `{name: (sum [B], weight [B])}`. Training minimises `loss`, the ratio of its totals.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

import renamed
from errors import UsageError, unknown
from models.blocks.vision.detection_head import DetectorOutput, detections
from models.core.layers import MASK_VALUE, compute_logits, reshard, shift_left
from models.core.spec import LazyLogits, Place
from train.tasks import chunked_cross_entropy
from train.tasks.detection import detection

WeightedSums = dict[str, tuple[Array, Array]]
MAX_OUTPUTS = 8  # values per row that an evaluation keeps
TOP_K = 5  # of the looser accuracy
MIN_SCORE, NMS_IOU, MAX_DETECTIONS = (
    0.005,
    0.45,
    100,
)  # a detector's least score, overlap of one class, and boxes, as in Darknet


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


def softmax(value: Float[Array, "b c"], batch: dict[str, Array], **extra: float) -> WeightedSums:
    """Classification by cross-entropy: loss in nats, accuracy, and top-5 accuracy if there are more than five classes.

    For mixed rows the loss uses both labels; accuracy uses the label with the larger weight.
    """
    w, label = batch["weight"], batch["label"]
    nats = cross_entropy(value, label, **extra)
    if "label_b" in batch:
        share, other = batch["lam"], batch["label_b"]
        nats = share * nats + (1 - share) * cross_entropy(value, other, **extra)
        label = jnp.where(share >= 0.5, label, other)
    terms = {"loss": (nats * w, w), "accuracy": (correct(value, label) * w, w)}
    if value.shape[-1] > TOP_K:
        terms["top5_accuracy"] = ((rank(value, label) < TOP_K) * w, w)
    return terms


def sigmoid(value: Float[Array, "b c"], batch: dict[str, Array]) -> WeightedSums:
    """Multi-label classification by binary cross-entropy: labels [B C] of 0 and 1.

    The loss is the mean over classes, in nats. A class is predicted at a probability of 0.5 or more. accuracy counts
    rows with all classes correct; f1 is 2 TP / (2 TP + FP + FN) over all rows and classes (micro-averaged).
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


def quadratic(value: Float[Array, "b c"], batch: dict[str, Array]) -> WeightedSums:
    """Classification by the quadratic cost: half the squared distance to the one-hot label (Nielsen 2015, eq. 6)."""
    w, label = batch["weight"], batch["label"]
    target = (jnp.arange(value.shape[-1])[None] == label[:, None]).astype(value.dtype)
    cost = 0.5 * jnp.sum(jnp.square(value - target), -1)
    return {"loss": (cost * w, w), "accuracy": (correct(value, label) * w, w)}


def hinge(value: Float[Array, "b 1"], batch: dict[str, Array]) -> WeightedSums:
    """Binary classification by one score s: the hinge loss max(0, 1 - y s), y = -1 or 1 (Cortes, Vapnik 1995)."""
    w, y, score = batch["weight"], 2.0 * batch["label"] - 1, value[:, 0]
    right = (score * y > 0).astype(jnp.float32)
    return {"loss": (jax.nn.relu(1 - y * score) * w, w), "accuracy": (right * w, w)}


def perceptron(value: Float[Array, "b 1"], batch: dict[str, Array]) -> WeightedSums:
    """Binary classification by one score s: the perceptron criterion, -y s if y s <= 0, else 0; y = -1 or 1.

    With plain SGD, learning rate 1 and batch size 1 it is Rosenblatt's rule: a misclassified input is added to the
    weights or subtracted. A score of 0 counts as an error, so that a perceptron initialised to 0 learns.
    Source: Rosenblatt 1958, Psychological Review 65; Block 1962, Reviews of Modern Physics 34.
    """
    w, y, score = batch["weight"], 2.0 * batch["label"] - 1, value[:, 0]
    wrong = score * y <= 0
    return {"loss": (jnp.where(wrong, -y * score, 0.0) * w, w), "accuracy": ((1.0 - wrong) * w, w)}


def mse(value: Float[Array, "b c"], batch: dict[str, Array]) -> WeightedSums:
    """Regression by the mean squared error over the outputs."""
    w = batch["weight"]
    return {"loss": (jnp.mean(jnp.square(value - batch["target"]), -1) * w, w)}


def next_token(value: LazyLogits | Float[Array, "b t v"], batch: dict[str, Array], **extra: Any) -> WeightedSums:
    """Language modelling, translation: loss in nats per token, accuracy, and bits per byte if the batch has `bytes`."""
    w, targets = batch["weight"], batch["targets"]
    if isinstance(value, LazyLogits) and not chunked_cross_entropy.fits_in_chunk(value):
        nats, right = chunked_cross_entropy.cross_entropy(value, targets, **extra)
    else:
        logits = _sharded_logits(value, targets) if isinstance(value, LazyLogits) else value
        nats, right = cross_entropy(logits, targets, **extra), correct(logits, targets)
    nats, weight = jnp.sum(nats * w, -1), jnp.sum(w, -1)
    terms = {"loss": (nats, weight), "accuracy": (jnp.sum(right * w, -1), weight)}
    if "bytes" in batch:
        terms["bits_per_byte"] = (nats / math.log(2), jnp.sum(batch["bytes"], -1))
    return terms


def _sharded_logits(value: LazyLogits, targets: Int[Array, "b t"]) -> Float[Array, "b t v"]:
    """Logits, sharded like the targets and the embedding table."""
    lies, table = jax.typeof(targets).sharding, jax.typeof(value.table).sharding
    return compute_logits(value, None if lies.mesh.empty else PartitionSpec(*lies.spec, table.spec[0]))


def mask_padding_rows(metrics: WeightedSums, batch: dict[str, Array]) -> WeightedSums:
    """A model's metrics by row, with zero weight for padding rows, whose batch weight is 0."""
    w = batch["weight"]
    live = (jnp.max(w.reshape(len(w), -1), 1) > 0).astype(jnp.float32)
    return {k: (s * jnp.expand_dims(live, range(1, s.ndim)), n * live) for k, (s, n) in metrics.items()}


def shift_targets(batch: dict[str, Array], count: int, place: Place) -> dict[str, Array]:
    """`targets` and `weight` shifted left by `count` tokens, for multi-token prediction.

    A target has weight 0 if a token before it has, or if it belongs to another segment.
    """
    weights = [shift_left(batch["weight"], k, place) for k in range(count + 1)]
    near = jnp.all(jnp.stack(weights[:-1]) > 0, 0)
    if "segment" in batch:
        near &= shift_left(batch["segment"], count, place) == reshard(batch["segment"], place("batch seq"))
    return {"targets": shift_left(batch["targets"], count, place), "weight": jnp.where(near, weights[-1], 0)}


@dataclass(frozen=True)
class Task:
    """A loss with its metrics, its target field, and the kind of model that it trains."""

    terms: Callable[..., WeightedSums]
    trait: str  # output kind of the models that it can train
    target_field: str  # the batch's target field
    unit: str  # of the loss
    single_score: bool = False  # whether it takes one score instead of one per class
    extras: tuple[str, ...] = ()  # options that it supports in training

    @property
    def per_token(self) -> bool:
        """Whether its loss is per token."""
        return self.target_field in ("targets", "source")

    def __call__(self, value: Array | LazyLogits | DetectorOutput, batch: dict[str, Array]) -> WeightedSums:
        """The weighted sums of a batch, by name."""
        return self.terms(value, batch)

    def predictions(self, value: Any, batch: dict[str, Array]) -> dict[str, Array]:
        """`prediction` and `label` of each row: classes [B], or at most MAX_OUTPUTS values [B C] of a regressor.

        For multi-label tasks: each class's probability, and 0 or 1 [B C]. For single-label losses in nats also
        `confidence`, the probability of the prediction [B]. For a detector only `prediction` [B MAX_DETECTIONS 6]:
        boxes, scores (0: no box) and classes. For other tasks {}.
        """
        if self.trait == "detector":
            boxes, scores, kinds, _ = detections(value, MIN_SCORE, NMS_IOU, MAX_DETECTIONS)
            return {"prediction": jnp.concatenate([boxes, scores[..., None], kinds[..., None].astype(boxes.dtype)], -1)}
        if self.target_field == "labels":
            return {"prediction": jax.nn.sigmoid(value), "label": batch["labels"]}
        if self.trait == "classifier":
            prediction = (value[:, 0] > 0).astype(jnp.int32) if self.single_score else argmax(value)
            found = {"prediction": prediction, "label": batch["label"]}
            if self.unit == "nats":
                found["confidence"] = jnp.exp(jnp.max(value, -1) - jax.nn.logsumexp(value, -1))
            return found
        if self.trait == "regressor" and value.ndim == 2 and value.shape[1] <= MAX_OUTPUTS:
            return {"prediction": value, "label": batch["target"]}
        return {}

    def with_extras(self, **extras: float) -> "Task":
        """The task with label smoothing, z-loss, … in training. Raises UsageError for an unsupported option."""
        given: dict[str, Any] = {name: value for name, value in extras.items() if value}
        for name, value in extras.items():
            if value and name not in self.extras:
                able = ", ".join(k for k, task in TASKS.items() if name in task.extras)
                raise UsageError(f"config key 'train.{name}' = {value} needs one of the losses {able}")
            if not 0 <= value < 1:
                raise UsageError(f"config key 'train.{name}' must be in [0, 1), not {value}")
        return Task(
            partial(self.terms, **given), self.trait, self.target_field, self.unit, self.single_score, self.extras
        )


_CROSS_ENTROPY_EXTRAS = ("label_smoothing", "z_loss")
TASKS: dict[str, Task] = {
    "softmax": Task(softmax, "classifier", "label", "nats", extras=(*_CROSS_ENTROPY_EXTRAS, "mixing")),
    "sigmoid": Task(sigmoid, "classifier", "labels", "nats"),
    "quadratic": Task(quadratic, "classifier", "label", "quadratic cost"),
    "hinge": Task(hinge, "classifier", "label", "margin", single_score=True),
    "perceptron": Task(perceptron, "classifier", "label", "margin", single_score=True),
    "mse": Task(mse, "regressor", "target", "squared error"),
    "next_token": Task(next_token, "language_model", "targets", "nats", extras=_CROSS_ENTROPY_EXTRAS),
    "translation": Task(next_token, "encoder_decoder", "source", "nats", extras=_CROSS_ENTROPY_EXTRAS),
    "detection": Task(detection, "detector", "boxes", "nats"),
}


def get_task(name: str) -> Task:
    """A task by name. Raises UsageError for an unknown one."""
    if name not in TASKS:
        raise unknown("loss", name, TASKS, renamed.WORDS["loss"])
    return TASKS[name]
