"""Tasks: what is optimised and what is measured, as per-row sums and weights, never means of means.

A task maps (value, batch) to `{name: (sum [B], weight [B])}`; `loss` is among the names and is what training minimises,
as the ratio of the totals.
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
MAX_OUTPUTS = 8  # values a row that an evaluation keeps
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

    `label_smoothing` gives that share of the target to all classes (Szegedy et al. 2016, arXiv:1512.00567, section 7);
    `z_loss` times the squared log of the normaliser is added (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
    Masked logits are no classes. The label's logit is picked by comparison, not by a gather: C may be sharded.
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
    """The class of the largest logit, the first of equals, C in a row with a NaN: [... C] -> [...].

    By comparison, as the picked logit of cross_entropy: C may be sharded.
    """
    index = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
    top = jnp.max(logits, -1, keepdims=True)
    return jnp.min(jnp.where(logits == top, index, logits.shape[-1]), -1)


def correct(logits: Float[Array, "*b c"], label: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """1 where the label's logit is the largest (the first of equals), else 0: [... C], [...] -> [...]."""
    return (argmax(logits) == label).astype(jnp.float32)


def rank(logits: Float[Array, "*b c"], label: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """How many classes stand before the label: [... C], [...] -> [...].

    Those of a larger logit or a NaN, and of equal ones the first. By counting: C may be sharded.
    """
    index, mine = jnp.arange(logits.shape[-1]).reshape((1,) * label.ndim + (-1,)), label[..., None]
    own = jnp.sum(jnp.where(index == mine, logits, 0.0), -1, keepdims=True)
    return jnp.sum(~(logits < own) & (index < mine) | ~(logits <= own) & (index > mine), -1)


def softmax(value: Float[Array, "b c"], batch: dict[str, Array], **extra: float) -> WeightedSums:
    """Classification by cross-entropy: loss in nats, accuracy, and where classes are many that of five guesses.

    Of mixed rows the loss is of both labels, and what is right by that of more share.
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
    """Several labels a row, labels [B C] of 0 and 1: each class is a yes or no of its own, by binary cross-entropy.

    loss is the mean over classes, in nats. A class is predicted from a probability of 0.5 on: accuracy counts the rows
    of which all classes are right, f1 is 2 TP / (2 TP + FP + FN) over all rows and classes (micro-averaged).
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
    """Classification by the quadratic cost, half the squared distance to the one-hot label (Nielsen 2015, eq. 6)."""
    w, label = batch["weight"], batch["label"]
    target = (jnp.arange(value.shape[-1])[None] == label[:, None]).astype(value.dtype)
    cost = 0.5 * jnp.sum(jnp.square(value - target), -1)
    return {"loss": (cost * w, w), "accuracy": (correct(value, label) * w, w)}


def hinge(value: Float[Array, "b 1"], batch: dict[str, Array]) -> WeightedSums:
    """Two classes by one score and the margin loss max(0, 1 - y s), y = -1 or 1 (Cortes, Vapnik 1995)."""
    w, y, score = batch["weight"], 2.0 * batch["label"] - 1, value[:, 0]
    right = (score * y > 0).astype(jnp.float32)
    return {"loss": (jax.nn.relu(1 - y * score) * w, w), "accuracy": (right * w, w)}


def perceptron(value: Float[Array, "b 1"], batch: dict[str, Array]) -> WeightedSums:
    """Two classes by one score and the perceptron's criterion: -y s where y s <= 0, else 0; y = -1 or 1.

    By plain SGD of rate 1 on one example at a time it is Rosenblatt's rule: what is misjudged is added, or taken away.
    A score of 0 is a mistake, so that a perceptron which starts at 0 moves.
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
    """Language modelling, translation: loss in nats a token, accuracy, and bits per byte where the batch has bytes."""
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
    """Logits that lie as the targets and the table do."""
    lies, table = jax.typeof(targets).sharding, jax.typeof(value.table).sharding
    return compute_logits(value, None if lies.mesh.empty else PartitionSpec(*lies.spec, table.spec[0]))


def mask_padding_rows(told: WeightedSums, batch: dict[str, Array]) -> WeightedSums:
    """What a model tells by row, without the rows that weigh nothing: those that only fill a batch."""
    w = batch["weight"]
    live = (jnp.max(w.reshape(len(w), -1), 1) > 0).astype(jnp.float32)
    return {k: (s * jnp.expand_dims(live, range(1, s.ndim)), n * live) for k, (s, n) in told.items()}


def shift_targets(batch: dict[str, Array], count: int, place: Place) -> dict[str, Array]:
    """The batch whose targets are `count` tokens further on, where all on the way there weigh something.

    Where a batch has segments, none of another's is a target.
    """
    weights = [shift_left(batch["weight"], k, place) for k in range(count + 1)]
    near = jnp.all(jnp.stack(weights[:-1]) > 0, 0)
    if "segment" in batch:
        near &= shift_left(batch["segment"], count, place) == reshard(batch["segment"], place("batch seq"))
    return {"targets": shift_left(batch["targets"], count, place), "weight": jnp.where(near, weights[-1], 0)}


@dataclass(frozen=True)
class Task:
    """A loss with what goes with it."""

    terms: Callable[..., WeightedSums]
    trait: str  # of the models that it can train
    target_field: str  # the field of a batch that holds the answer
    unit: str  # of the loss
    single_score: bool = False  # takes one score instead of one a class
    extras: tuple[str, ...] = ()  # what may be added to it in training

    @property
    def per_token(self) -> bool:
        """Whether its loss is told a token."""
        return self.target_field in ("targets", "source")

    def __call__(self, value: Array | LazyLogits | DetectorOutput, batch: dict[str, Array]) -> WeightedSums:
        """The terms of a batch."""
        return self.terms(value, batch)

    def predictions(self, value: Any, batch: dict[str, Array]) -> dict[str, Array]:
        """A row's `guess` and `truth`: classes [B], or a regressor's few values [B C]; {} where they would be many.

        Of several labels a row, the guess is each class's probability and the truth 0 or 1 [B C]. Where the loss is
        of the probabilities of one label, `confidence` is the guess's [B]. Of a detector only the guess
        [B MAX_DETECTIONS 6]: boxes, each with its score, 0 of none, and its class.
        """
        if self.trait == "detector":
            boxes, scores, kinds, _ = detections(value, MIN_SCORE, NMS_IOU, MAX_DETECTIONS)
            return {"prediction": jnp.concatenate([boxes, scores[..., None], kinds[..., None].astype(boxes.dtype)], -1)}
        if self.target_field == "labels":
            return {"prediction": jax.nn.sigmoid(value), "label": batch["labels"]}
        if self.trait == "classifier":
            guess = (value[:, 0] > 0).astype(jnp.int32) if self.single_score else argmax(value)
            told = {"prediction": guess, "label": batch["label"]}
            if self.unit == "nats":
                told["confidence"] = jnp.exp(jnp.max(value, -1) - jax.nn.logsumexp(value, -1))
            return told
        if self.trait == "regressor" and value.ndim == 2 and value.shape[1] <= MAX_OUTPUTS:
            return {"prediction": value, "label": batch["target"]}
        return {}

    def with_extras(self, **extras: float) -> "Task":
        """The task to train by: label smoothing, z-loss. Raises UsageError where it takes no such extra."""
        given: dict[str, Any] = {name: value for name, value in extras.items() if value}
        for name, value in extras.items():
            if value and name not in self.extras:
                able = ", ".join(k for k, task in TASKS.items() if name in task.extras)
                raise UsageError(f"config key 'train.{name}' = {value} goes with the losses {able} only")
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
