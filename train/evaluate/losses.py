"""The loss and the metrics of each row of a batch, for a notebook."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from errors import UsageError
from models import Model
from models.core.spec import unsharded
from models.core.types import Array, Variables
from models.registry import check_ids
from train.tasks import Forward, Task, WeightedSums, get_task

DEFAULTS = {  # trait of a model -> its usual loss
    "language_model": "next_token",
    "encoder_decoder": "translation",
    "classifier": "softmax",
    "detector": "detection",
    "regressor": "mse",
}


@jax.tree_util.register_pytree_node_class
class _Fields(dict[str, Array]):
    """Fields of a batch, a pytree as a dict is; one that is missing is a user's mistake."""

    def __missing__(self, name: str) -> Array:
        raise UsageError(f"the loss needs the field {name!r}; the batch has {', '.join(self) or 'none'}")

    def tree_flatten(self) -> tuple[tuple[Array, ...], tuple[str, ...]]:
        return tuple(self.values()), tuple(self)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Iterable[Array]) -> "_Fields":
        return cls(zip(names, values, strict=True))


def losses(
    model: Model, variables: Variables, batch: Mapping[str, ArrayLike], loss: str | Task | None = None
) -> WeightedSums:
    """The loss and metrics of each row, outside of training: name -> (sum [B ...], weight [B]), of which `loss` is one.

    A row's value is sum / weight, that of several rows the ratio of their totals. For language models and translators
    the sum of `loss` is in nats and its weight the number of target tokens; otherwise the weight is 1. `batch` has the
    model's inputs and the targets of the loss (`targets` [B T], `label` [B], `labels` [B C], `target` [B outputs], or
    `boxes`, `box_labels`, `box_mask`), and may have a `weight`, [B T] for tokens and else [B]; without, all count as 1.
    `loss` is a word of docs/losses.md, `package.file:Class` or a Task; None is the usual one of the model's output.

    Raises UsageError for a loss that does not fit the model, for fields that are missing, of another shape or out of
    range (which a traced call cannot see), and as `Model.predict`.
    """
    task = loss if isinstance(loss, Task) else get_task(loss or _default_loss(model))
    if task.output_kind not in model.traits:
        has = ", ".join(sorted(model.traits))
        raise UsageError(
            f"loss {loss!r} needs a model with the trait {task.output_kind}; {model.family} as configured has {has}"
        )
    fields = _Fields({name: jnp.asarray(x) for name, x in batch.items()})
    target = fields["targets" if task.per_token else task.target_field]
    shape = target.shape[: 2 if task.per_token else 1]
    weight = fields.setdefault("weight", jnp.ones(shape))
    if weight.shape != shape:
        raise UsageError(f"the field 'weight' must be of shape {shape}, not {weight.shape}")
    classes = getattr(model.config, "classes", None)
    limits = {"targets": getattr(model.config, "vocab", None), "label": max(classes, 2) if classes else None}
    for name in limits.keys() & batch.keys():
        check_ids(name, batch[name], limits[name])
    with model.checked_inputs(batch):
        forward = Forward(model, variables, unsharded)
        terms = task.loss(forward, fields, {})
        return {**forward.metrics(fields), **terms}


def _default_loss(model: Model) -> str:
    for trait, name in DEFAULTS.items():
        if trait in model.traits:
            return name
    raise UsageError(f"{model.family} as configured has no usual loss; give one, such as loss='softmax', if it fits")
