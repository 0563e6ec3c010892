"""What a task is: a loss with its metrics, and what data, models and plots need to know of it."""

from abc import abstractmethod
from typing import Any, Protocol, runtime_checkable

from models.core.spec import Array
from train.tasks.forward import Batch, Forward, Frozen, WeightedSums


@runtime_checkable
class Task(Protocol):
    """A loss with its metrics. A subclass sets `output_kind`, `target_field` and `unit`, and defines `loss`.

    A subclass that is a frozen dataclass may have fields with the names of knobs `train.*`: `train/tasks/__init__.py`
    sets them from the config.
    """

    output_kind: str  # the trait of the models that it trains
    target_field: str  # the batch's target field
    unit: str  # of the loss
    per_token: bool = False  # whether the loss is per token
    single_score: bool = False  # whether the model has one score instead of one per class
    mixes_labels: bool = False  # whether it supports rows mixed by mixup or CutMix
    couples_rows: bool = False  # whether a row's loss depends on the other rows of its batch
    two_views: bool = False  # whether a row has its image twice, augmented: `image` and `image_b`

    @abstractmethod
    def loss(self, forward: Forward, batch: Batch, frozen: Frozen) -> WeightedSums:
        """Sums and weights by row, by name. Training minimises `loss`, the ratio of its totals.

        `frozen` holds variables that no gradient reaches, for `forward(batch, variables=frozen[name])`.
        """

    def loss_weight(self, batch: Batch) -> Array:
        """The weights of `loss`, as a function of the batch alone: [B] or [B T]."""
        return batch["weight"]

    def predictions(self, value: Any, batch: Batch) -> dict[str, Array]:
        """`prediction` and, except for boxes, `label` of each row, from the value of the first forward pass; or {}.

        A classifier's are classes [B], with several labels per row each class's probability [B C].
        """
        return {}

    @property
    def is_language_model(self) -> bool:
        """Whether its rows are windows of running text."""
        return self.output_kind == "language_model"

    @property
    def is_regression(self) -> bool:
        """Whether its targets are values."""
        return self.output_kind == "regressor"

    @property
    def has_boxes(self) -> bool:
        """Whether its targets are boxes in an image."""
        return self.target_field == "boxes"

    @property
    def is_multilabel(self) -> bool:
        """Whether a row has any number of labels."""
        return self.target_field == "labels"

    @property
    def has_classes(self) -> bool:
        """Whether its targets are of the data's classes."""
        return self.target_field in ("label", "labels", "boxes")


class SingleForwardTask(Task):
    """A task with one forward pass, whose loss and metrics are a function of the model's value."""

    def loss(self, forward: Forward, batch: Batch, frozen: Frozen) -> WeightedSums:
        """Sums and weights by row of the model's value."""
        return self.terms(forward(batch).value, batch)

    @abstractmethod
    def terms(self, value: Any, batch: Batch) -> WeightedSums:
        """Sums and weights by row, by name."""
