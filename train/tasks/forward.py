"""The forward pass as a task calls it, once or more, and what is kept of its outputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models import Model
from models.core.spec import Array, Outputs, Place

Batch = dict[str, Array]
WeightedSums = dict[str, tuple[Array, Array]]  # name -> (sum [B ...], weight [B]), never means of means
Frozen = Mapping[str, Any]  # name -> variables that are not trained, as "reference" -> {"params": ..., "stats": ...}


class Forward:
    """A model with the current variables, the rows' keys, the place and the cache: `forward(batch) -> Outputs`.

    `keys` are the rows' PRNG keys [B], for a task's own draws too, or None: then nothing is drawn. Each call starts
    from the running statistics of the call before, as in PyTorch, and from the first call's cache. A task calls it
    outside of jax's transformations, as its outputs are kept.
    """

    def __init__(
        self,
        model: Model,
        variables: Any,
        place: Place,
        *,
        keys: Array | None = None,
        train: bool = False,
        cache: Any = None,
    ) -> None:
        self.keys, self.place = keys, place
        self._model, self._variables, self._train, self._cache = model, variables, train, cache
        self._calls: list[tuple[Batch, Outputs]] = []

    def __call__(self, batch: Batch, *, variables: Any = None, keys: Array | None = None) -> Outputs:
        """Apply the model to fields of the batch's rows; the value of a language model is a LazyLogits.

        With `variables`, such as frozen["reference"], it runs as in evaluation, and its other outputs do not count.
        `keys` [B] replace the rows' keys in training: two calls with the same keys draw the same dropout masks.
        """
        if variables is not None:
            return self._model.apply(variables, batch, place=self.place, logits=False)
        key = (self.keys if keys is None else keys) if self._train else None
        out = self._model.apply(
            self._variables, batch, train=self._train, key=key, cache=self._cache, place=self.place, logits=False
        )
        if self._train and self._variables.get("stats"):
            self._variables = {**self._variables, "stats": out.stats}
        self._calls.append((batch, out))
        return out

    @property
    def outputs(self) -> list[Outputs]:
        """The outputs of each call with the current variables."""
        return [out for _, out in self._calls]

    @property
    def stats(self) -> Any:
        """The running statistics after the last call."""
        return self._variables["stats"]

    def metrics(self, batch: Batch) -> WeightedSums:
        """The model's metrics by row, with zero weight for padding rows; those of several calls are added."""
        found: WeightedSums = {}
        for fields, out in self._calls:
            for name, pair in mask_padding_rows(out.metrics, fields.get("weight", batch["weight"])).items():
                found[name] = jax.tree.map(jnp.add, found[name], pair) if name in found else pair
        return found

    def aux_losses(self) -> dict[str, Array]:
        """The model's auxiliary losses, each a mean over rows and over calls: name -> []."""
        found: dict[str, list[Array]] = {}
        for out in self.outputs:
            for name, (total, weight) in out.aux_losses.items():
                found.setdefault(name, []).append(total / weight)
        return {name: values[0] if len(values) == 1 else jnp.mean(jnp.stack(values)) for name, values in found.items()}


def mask_padding_rows(metrics: WeightedSums, weight: Array) -> WeightedSums:
    """A model's metrics by row, with zero weight for padding rows, whose batch weight is 0: weight [B ...]."""
    live = (jnp.max(weight.reshape(len(weight), -1), 1) > 0).astype(jnp.float32)
    return {k: (s * jnp.expand_dims(live, range(1, s.ndim)), n * live) for k, (s, n) in metrics.items()}
