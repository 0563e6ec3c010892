"""The loss and the metrics of each row of a batch, for a notebook."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from errors import UsageError, quote
from models import Model
from models.core.spec import unsharded
from models.core.types import Array, Variables
from models.inputs import Sizes, check_dims, check_ids
from train.tasks import Forward, Task, WeightedSums, get_task

DEFAULTS = {  # trait of a model -> its usual loss
    "language_model": "next_token",
    "encoder_decoder": "translation",
    "classifier": "softmax",
    "detector": "detection",
    "regressor": "mse",
}
TARGETS = {  # target field -> the fields of its losses with their dims, as in models.inputs.DIMS
    "targets": {"targets": "B T", "bytes": "B T"},
    "label": {"label": "B", "label_b": "B", "lam": "B"},
    "labels": {"labels": "B classes"},
    "target": {"target": "B outputs"},
    "boxes": {"boxes": "B M xywh", "box_labels": "B M", "box_mask": "B M"},
    "image_b": {"image_b": "B Y X inputs"},
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
    if not isinstance(batch, Mapping):
        raise UsageError(f"the batch must be fields by name, as {{'label': ...}}, not {quote(batch)}")
    if not isinstance(loss, str | Task | None):
        raise UsageError(
            f"the loss must be a word of docs/losses.md, 'package.file:Class' or a Task, not {quote(loss)}"
        )
    task = loss if isinstance(loss, Task) else get_task(loss or _default_loss(model))
    if task.output_kind not in model.traits:
        has = ", ".join(sorted(model.traits))
        raise UsageError(
            f"loss {loss!r} needs a model with the trait {task.output_kind}; {model.family} as configured has {has}"
        )
    classes = getattr(model.config, "classes", None)
    if task.single_score and classes not in (None, 1):
        raise UsageError(f"model.classes = {classes} must be 1 for loss {loss!r}")
    arrays, sizes = model.check(variables, batch)
    fields = _Fields(arrays)
    _check_targets(model, task, batch, fields, sizes)
    forward = Forward(model, variables, unsharded)
    terms = task.loss(forward, fields, {})
    return {**forward.metrics(fields), **terms}


def _check_targets(model: Model, task: Task, batch: Mapping[str, ArrayLike], fields: _Fields, sizes: Sizes) -> None:
    """Raise UsageError for a target or a weight that is missing, of another shape or out of range; add the weight."""
    main, weight_dims = ("targets", "B T") if task.per_token else (task.target_field, "B")
    fields[main]  # raises UsageError if it is missing
    targets = TARGETS.get(main, {})
    sizes["xywh"] = 4
    for name, dims in targets.items():
        if name in fields:
            check_dims(f"the field {name!r}", fields[name], dims, sizes)
    weight = fields.setdefault("weight", jnp.ones([sizes[dim] for dim in weight_dims.split()]))
    check_dims("the field 'weight'", weight, weight_dims, sizes)
    limits = {"targets": getattr(model.config, "vocab", None)}
    limits |= dict.fromkeys(("label", "label_b"), 2 if task.single_score else sizes.get("classes"))
    for name in limits.keys() & targets.keys() & batch.keys():
        check_ids(f"the field {name!r}", batch[name], limits[name])
    if "labels" in targets and not isinstance(fields["labels"], jax.core.Tracer):
        least, most = fields["labels"].min(), fields["labels"].max()
        if not 0 <= least <= most <= 1:
            raise UsageError(f"the field 'labels' must be from 0 to 1, not {least} to {most}")


def _default_loss(model: Model) -> str:
    for trait, name in DEFAULTS.items():
        if trait in model.traits:
            return name
    raise UsageError(f"{model.family} as configured has no usual loss; give one, such as loss='softmax', if it fits")
