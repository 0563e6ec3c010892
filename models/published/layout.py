"""How one leaf of a table lies in a foreign file."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One leaf: its path here, the tensor's name there, and `ours = theirs.reshape(split).transpose(order)`."""

    path: str
    name: str
    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]  # of the foreign tensor

    def __post_init__(self) -> None:
        assert math.prod(self.split) == math.prod(self.shape)
        assert sorted(self.order) == list(range(len(self.split)))

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """The leaf, from the foreign tensor."""
        return tensor.reshape(self.split).transpose(self.order)

    def theirs(self, leaf: np.ndarray) -> np.ndarray:
        """The foreign tensor, from the leaf."""
        return leaf.transpose(np.argsort(self.order)).reshape(self.shape)
