"""Multi-label metrics: mean average precision and macro F1, with standard errors over rows.

Standard errors are by the delta method: a metric is a smooth function of how often each row is counted, and its
derivatives by these counts are the rows' influences. The sum of their squares is the metric's variance (Efron 1982,
chapter 6). Influences of a cluster's rows are added first.
"""

import math

import numpy as np

from train.evaluate.evaluate import Scores

RECALLS = np.linspace(0, 1, 101)


def average_precision(score: np.ndarray, label: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision of one class, and the influence of each row on it: score [n], label [n] of 0 and 1 -> [], [n].

    It is the mean, over positive rows, of the precision among all rows with at least their score; NaN without any.
    """
    positive = label.astype(np.float64)
    total = positive.sum()
    if not total:
        return math.nan, np.full(len(positive), math.nan)
    levels, level = np.unique(-score, return_inverse=True)  # highest score first; rows of equal score share a level
    here, right = np.bincount(level, minlength=len(levels)), np.bincount(level, positive, len(levels))
    predicted, found = np.cumsum(here), np.cumsum(right)
    precision = found / predicted
    value = float(right @ precision / total)
    # Another row at some level changes the precision of that level and of all lower ones, with `right` rows each.
    below = lambda x: np.cumsum(x[::-1])[::-1]  # noqa: E731
    gain, cost = below(right / predicted), below(right * found / predicted**2)
    return value, (positive * (precision[level] - value + gain[level]) - cost[level]) / total


def precision_recall_curves(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision at each of RECALLS, the best at that recall or more, and average precision of each class.

    score [n C], label [n C] of 0 and 1 -> [C R], [C]; NaN for a class without a positive row.
    """
    lines = np.full((score.shape[1], len(RECALLS)), math.nan)
    averages = np.array([average_precision(s, t)[0] for s, t in zip(score.T, label.T, strict=True)])
    for k in np.flatnonzero(label.any(0)):
        order = np.argsort(-score[:, k], kind="stable")
        hits = np.cumsum(label[order, k] > 0)
        best = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        lines[k] = best[np.searchsorted(hits / hits[-1], RECALLS)]
    return lines, averages


def f1(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, np.ndarray]:
    """F1 of one class and the influence of each row: 2 TP [n], 2 TP + FP + FN [n] -> [], [n]; NaN without any."""
    total = denominator.sum()
    if not total:
        return math.nan, np.full(len(denominator), math.nan)
    value = float(numerator.sum() / total)
    return value, (numerator - value * denominator) / total


def with_precision(scores: Scores, names: tuple[str, ...], clusters: np.ndarray) -> Scores:
    """Add `map`, `average_precision/<class>`, `f1_macro` and `f1/<class>` to scores; unchanged if they have no rows.

    The means are over the classes that have a positive row. Clusters are the rows' [n or more].
    """
    if scores.rows is None or scores.rows.prediction is None or scores.rows.label is None:
        return scores
    prediction, label = scores.rows.prediction.astype(np.float64), scores.rows.label > 0
    _, cluster = np.unique(clusters[: len(prediction)], return_inverse=True)
    positive = np.flatnonzero(label.any(0))
    finite = np.isfinite(prediction).all()
    metrics, stderr = dict(scores.metrics), dict(scores.stderr)

    def add(name: str, value: float, influence: np.ndarray) -> None:
        metrics[scores.prefix + name] = value if finite else math.nan
        stderr[scores.prefix + name] = _clustered_stderr(influence, cluster) if finite else math.nan

    def add_classes(mean: str, each: str, found: dict[int, tuple[float, np.ndarray]]) -> None:
        values, influences = zip(*found.values(), strict=True)
        add(mean, float(np.mean(values)), np.mean(influences, 0))
        for k, (value, influence) in found.items():
            add(f"{each}/{names[k]}", value, influence)

    if len(positive):
        numerator, denominator = 2.0 * (label & (prediction >= 0.5)), label.astype(np.float64) + (prediction >= 0.5)
        add_classes(
            "map",
            "average_precision",
            {k: average_precision(prediction[:, k], label[:, k]) for k in map(int, positive)},
        )
        add_classes("f1_macro", "f1", {k: f1(numerator[:, k], denominator[:, k]) for k in map(int, positive)})
    return scores._replace(metrics=metrics, stderr=stderr)


def _clustered_stderr(influence: np.ndarray, cluster: np.ndarray) -> float:
    """The standard error of a metric from its rows' influences [n] and clusters [n] -> []; NaN for one cluster."""
    sums = np.bincount(cluster, influence)
    count = len(sums)
    return math.sqrt(count / (count - 1) * float(np.square(sums).sum())) if count > 1 else math.nan
