"""Language modelling and translation: cross-entropy per token."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from models.core.gradients import are_plain
from models.core.layers import compute_logits, reshard, shift_left
from models.core.spec import LazyLogits, Place
from train.tasks import chunked_cross_entropy
from train.tasks.cross_entropy import correct, cross_entropy
from train.tasks.forward import Batch, WeightedSums
from train.tasks.task import SingleForwardTask


@dataclass(frozen=True)
class NextToken(SingleForwardTask):
    """Language modelling, with label smoothing and z-loss as in `cross_entropy`."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    output_kind, target_field, unit, per_token = "language_model", "targets", "nats", True

    def terms(self, value: LazyLogits | Float[Array, "b t v"], batch: Batch) -> WeightedSums:
        """Loss in nats per token, accuracy, and bits per byte if the batch has `bytes`."""
        w, targets = batch["weight"], batch["targets"]
        extras = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        if isinstance(value, LazyLogits) and not (are_plain() or chunked_cross_entropy.fits_in_chunk(value)):
            nats, right = chunked_cross_entropy.cross_entropy(value, targets, **extras)
        else:
            logits = _sharded_logits(value, targets) if isinstance(value, LazyLogits) else value
            nats, right = cross_entropy(logits, targets, **extras), correct(logits, targets)
        nats, weight = jnp.sum(nats * w, -1), jnp.sum(w, -1)
        terms = {"loss": (nats, weight), "accuracy": (jnp.sum(right * w, -1), weight)}
        if "bytes" in batch:
            terms["bits_per_byte"] = (nats / math.log(2), jnp.sum(batch["bytes"], -1))
        return terms


@dataclass(frozen=True)
class Translation(NextToken):
    """Translation: the tokens of the target text, given the source text."""

    output_kind, target_field = "encoder_decoder", "source"


def _sharded_logits(value: LazyLogits, targets: Int[Array, "b t"]) -> Float[Array, "b t v"]:
    """Logits, sharded like the targets and the embedding table."""
    lies, table = jax.typeof(targets).sharding, jax.typeof(value.table).sharding
    return compute_logits(value, None if lies.mesh.empty else PartitionSpec(*lies.spec, table.spec[0]))


def shift_targets(batch: Batch, count: int, place: Place) -> Batch:
    """`targets` and `weight` shifted left by `count` tokens, for multi-token prediction.

    A target has weight 0 if a token before it has, or if it belongs to another segment.
    """
    weights = [shift_left(batch["weight"], k, place) for k in range(count + 1)]
    near = jnp.all(jnp.stack(weights[:-1]) > 0, 0)
    if "segment" in batch:
        near &= shift_left(batch["segment"], count, place) == reshard(batch["segment"], place("batch seq"))
    return {"targets": shift_left(batch["targets"], count, place), "weight": jnp.where(near, weights[-1], 0)}


def mtp_loss(
    task: SingleForwardTask, values: tuple[Any, ...], batch: Batch, place: Place
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Multi-token prediction: nats and weight of the values for further tokens, means over the values."""
    ahead = [task.terms(value, shift_targets(batch, k, place))["loss"] for k, value in enumerate(values, 1)]
    nats = jnp.mean(jnp.stack([jnp.sum(nats) for nats, _ in ahead]))
    weight = jnp.mean(jnp.stack([jnp.sum(weight) for _, weight in ahead]))
    return nats, weight
