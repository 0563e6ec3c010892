"""Boxes that overlap, and their intersection over union by hand."""

import numpy as np


def draw_boxes(draw: np.random.Generator, *shape: int) -> np.ndarray:
    """Boxes that often overlap."""
    return np.concatenate([draw.uniform(0.2, 0.8, (*shape, 2)), draw.uniform(0.1, 0.5, (*shape, 2))], -1).astype("f4")


def iou_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)
    ]
    inside = max(sides[0], 0) * max(sides[1], 0)
    union = a[2] * a[3] + b[2] * b[3] - inside
    return inside / union if union else 0.0
