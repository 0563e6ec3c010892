"""How well rows of several labels are predicted: mean average precision and macro F1, with standard errors over rows.

Standard errors are by the delta method: a metric is a smooth function of how often each row is counted, and its
derivatives by these counts are the rows' influences, whose spread is the metric's (Efron 1982, chapter 6). Rows of one
cluster add up first.
"""

import math

import numpy as np

from train.evaluate.evaluate import Scores

RECALLS = np.linspace(0, 1, 101)


def average_precision(score: np.ndarray, label: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision of one class, and the influence of each row on it: score [n], label [n] of 0 and 1 -> [], [n].

    The mean over positive rows of the precision among the rows of at least their score; NaN where there is none.
    """
    truth = label.astype(np.float64)
    total = truth.sum()
    if not total:
        return math.nan, np.full(len(truth), math.nan)
    levels, level = np.unique(-score, return_inverse=True)  # highest first; rows of one score are one level
    here, right = np.bincount(level, minlength=len(levels)), np.bincount(level, truth, len(levels))
    seen, hits = np.cumsum(here), np.cumsum(right)
    precision = hits / seen
    value = float(right @ precision / total)
    # A row more at some level changes the precision of that level and of all below, at which `right` rows are counted.
    below = lambda x: np.cumsum(x[::-1])[::-1]  # noqa: E731
    gain, cost = below(right / seen), below(right * hits / seen**2)
    return value, (truth * (precision[level] - value + gain[level]) - cost[level]) / total


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


def f1(hit: np.ndarray, counted: np.ndarray) -> tuple[float, np.ndarray]:
    """F1 of one class and the influence of each row: 2 TP [n], 2 TP + FP + FN [n] -> [], [n]; NaN without any."""
    total = counted.sum()
    if not total:
        return math.nan, np.full(len(counted), math.nan)
    value = float(hit.sum() / total)
    return value, (hit - value * counted) / total


def with_precision(scores: Scores, names: tuple[str, ...], clusters: np.ndarray) -> Scores:
    """Scores with `map`, `average_precision/<class>`, `f1_macro` and `f1/<class>`; unchanged where there are no rows.

    The means are over the classes that have a positive row. Clusters are the rows' [n or more].
    """
    if scores.rows is None or scores.rows.prediction is None or scores.rows.label is None:
        return scores
    guess, truth = scores.rows.prediction.astype(np.float64), scores.rows.label > 0
    _, cluster = np.unique(clusters[: len(guess)], return_inverse=True)
    positive = np.flatnonzero(truth.any(0))
    whole = np.isfinite(guess).all()
    metrics, stderr = dict(scores.metrics), dict(scores.stderr)

    def add(name: str, value: float, influence: np.ndarray) -> None:
        metrics[scores.prefix + name] = value if whole else math.nan
        stderr[scores.prefix + name] = _clustered_stderr(influence, cluster) if whole else math.nan

    def add_classes(mean: str, each: str, found: dict[int, tuple[float, np.ndarray]]) -> None:
        values, influences = zip(*found.values(), strict=True)
        add(mean, float(np.mean(values)), np.mean(influences, 0))
        for k, (value, influence) in found.items():
            add(f"{each}/{names[k]}", value, influence)

    if len(positive):
        twice, said = 2.0 * (truth & (guess >= 0.5)), truth.astype(np.float64) + (guess >= 0.5)
        add_classes(
            "map", "average_precision", {k: average_precision(guess[:, k], truth[:, k]) for k in map(int, positive)}
        )
        add_classes("f1_macro", "f1", {k: f1(twice[:, k], said[:, k]) for k in map(int, positive)})
    return scores._replace(metrics=metrics, stderr=stderr)


def _clustered_stderr(influence: np.ndarray, cluster: np.ndarray) -> float:
    """The standard error of what rows have these influences on: [n], clusters [n] -> []; NaN for one cluster."""
    sums = np.bincount(cluster, influence)
    count = len(sums)
    return math.sqrt(count / (count - 1) * float(np.square(sums).sum())) if count > 1 else math.nan
