"""Evaluation: metrics as exact ratios of totals, with standard errors clustered by document or example."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from data.eval_set import EvalSet
from data.progress import Tick, silent
from models import Model
from models.core.layers import per_row_keys
from models.core.spec import round_up
from train.record.metrics import flatten_metrics, is_entry
from train.sharding import device_batches
from train.sharding.compiler_options import compiler_options
from train.sharding.mesh import Placement
from train.tasks import Batch, Forward, Frozen, Task, WeightedSums
from train.update.step import stream_key

DISPLAY_NAMES = {"ece": "calibration error (ECE)"}  # for metrics with cryptic names
BINS = 15  # of confidence, as in Guo et al. 2017

EvalStep = Callable[[Any, dict[str, jax.Array]], tuple[WeightedSums, dict[str, jax.Array]]]


class Interrupted(Exception):
    """A signal arrived before an evaluation finished."""


class NotFinite(RuntimeError):
    """A model whose outputs are nan or infinite, so that its metrics are meaningless."""


class Rows(NamedTuple):
    """Results for each row, in the order of the evaluation set [n ...]."""

    loss: np.ndarray  # of each row; nan where its weight is 0
    weight: np.ndarray  # of each row in the metrics: 1, or its number of target tokens
    prediction: np.ndarray | None = None  # classes or values, if the task keeps them; a detector's boxes [n K 6]
    label: np.ndarray | None = None
    confidence: np.ndarray | None = None  # a classifier's probability of its prediction


class Scores(NamedTuple):
    """Metrics, their standard errors, and the number of rows and clusters."""

    metrics: dict[str, float]
    stderr: dict[str, float]
    examples: int
    clusters: int
    prefix: str = ""  # of the primary metrics
    rows: Rows | None = None  # None if there were no rows

    @property
    def primary_metrics(self) -> dict[str, float]:
        """The metrics by which checkpoints are compared, without their prefix."""
        return {k.removeprefix(self.prefix): v for k, v in self.metrics.items() if k.startswith(self.prefix)}

    @property
    def non_finite_rows(self) -> int:
        """The number of rows whose loss is nan or infinite."""
        return 0 if self.rows is None else int(np.sum(~np.isfinite(self.rows.loss) & (self.rows.weight > 0)))


def with_metrics(scores: Scores, metrics: dict[str, float]) -> Scores:
    """The scores with more primary metrics, which have no standard error."""
    more = {scores.prefix + name: value for name, value in metrics.items()}
    return scores._replace(metrics={**scores.metrics, **more})


def merge(scores: dict[str, Scores]) -> Scores:
    """Merge scores of several variables on one evaluation set, names prefixed. The last entry is the primary one."""
    metrics = {prefix + name: v for prefix, one in scores.items() for name, v in one.metrics.items()}
    stderr = {prefix + name: v for prefix, one in scores.items() for name, v in one.stderr.items()}
    prefix, last = list(scores.items())[-1]
    return Scores(metrics, stderr, last.examples, last.clusters, prefix, last.rows)


def make_eval_step(model: Model, task: Task, place: Placement, frozen: Frozen | None = None) -> EvalStep:
    """The jitted loss: (variables, batch) -> (sums and weights by row [B], predictions), replicated.

    A task that draws gets keys by the rows' indices in the evaluation set, so a result depends on neither batch size
    nor mesh; it gets None for a batch without `row`, the indices.
    """

    def eval_step(variables: Any, batch: Batch, frozen: Any) -> tuple[WeightedSums, dict[str, jax.Array]]:
        fields = {name: values for name, values in batch.items() if name != "row"}
        keys = per_row_keys(stream_key(0, "eval"), batch["row"]) if "row" in batch else None
        forward = Forward(model, variables, place, keys=keys)
        terms = task.loss(forward, fields, frozen)
        return {**forward.metrics(fields), **terms}, task.predictions(forward.outputs[0].value, fields)

    program = jax.jit(eval_step, out_shardings=place.replicated, compiler_options=compiler_options(place.mesh))
    return lambda variables, batch: program(variables, batch, frozen or {})


def evaluate(
    eval_step: EvalStep,
    variables: Any,
    eval_set: EvalSet,
    place: Placement,
    size: int,
    limit: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    tick: Tick = silent,
) -> Scores:
    """Evaluate variables on an evaluation set, `size` rows at a time (rounded up to the mesh), at most `limit` batches.

    Sums run in float64 on the host in the order of the examples, so they depend on neither batch size nor mesh.
    Raises Interrupted if `should_stop`, called before each batch, returns True.
    """
    rows, predictions = run_eval(eval_step, variables, eval_set, place, size, limit, should_stop, tick)
    if not rows:
        return Scores({}, {}, 0, 0)
    count = rows["loss"].shape[1]
    total, weight = rows["loss"]
    loss = np.divide(total, weight, out=np.full(count, np.nan), where=weight > 0)
    counted = rows["accuracy"][1] if "accuracy" in rows else weight  # without class weights
    if "confidence" in predictions:
        rows["ece"] = calibration(predictions["confidence"], predictions["prediction"] == predictions["label"], counted)
    return compute_scores(rows, eval_set.clusters[:count])._replace(rows=Rows(loss, counted, **predictions))


def run_eval(
    eval_step: EvalStep,
    variables: Any,
    eval_set: EvalSet,
    place: Placement,
    size: int,
    limit: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    tick: Tick = silent,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Sums and weights of each row [2 n ...] in float64, and predictions [n ...], by name. Raises as `evaluate`.

    `tick` counts batches.
    """
    size = max(1, min(size, len(eval_set)))  # no larger than the evaluation set
    size = round_up(size, place.batch_shards)
    sums: dict[str, list[np.ndarray]] = {}
    predictions: dict[str, list[np.ndarray]] = {}
    batches = -(-len(eval_set) // size)
    count = batches if limit is None else min(batches, limit)
    tick("evaluating, batches", 0, count)
    for i, batch in enumerate(itertools.islice(device_batches.eval_batches(eval_set, place, size), limit), 1):
        if should_stop():
            raise Interrupted
        terms, answers = jax.device_get(eval_step(variables, batch))
        for name, pair in terms.items():
            total, weight = (np.asarray(x, np.float64) for x in pair)
            weight = np.broadcast_to(np.expand_dims(weight, tuple(range(1, total.ndim))), total.shape)
            sums.setdefault(name, []).append(np.stack([total, weight]))
        for name, values in answers.items():
            predictions.setdefault(name, []).append(values)
        tick("evaluating, batches", i, count)
    rows = {name: np.concatenate(parts, 1)[:, : len(eval_set)] for name, parts in sums.items()}
    return rows, {name: np.concatenate(parts)[: len(eval_set)] for name, parts in predictions.items()}


def calibration_bins(confidence: np.ndarray) -> np.ndarray:
    """The index of each confidence's bin, of M equal bins ((m - 1)/M, m/M] of [0, 1]: [n] -> [n]. 0 is in the first."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence.astype(np.float64), side="left")


def calibration(confidence: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Terms of the expected calibration error by row, sums and weights: [n], [n], [n] -> [2 n].

    The error is the weighted mean over bins of |accuracy - confidence|. It is a ratio of totals: each row contributes
    its own difference, with the sign of its bin's difference. The standard error, by the delta method, takes the signs
    as fixed. Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    gap = np.where(weight > 0, weight * (right - confidence.astype(np.float64)), 0.0)
    bins = calibration_bins(confidence)
    return np.stack([gap * np.sign(np.bincount(bins, gap, BINS))[bins], weight])


def compute_scores(rows: dict[str, np.ndarray], clusters: np.ndarray | None = None) -> Scores:
    """Ratios of totals with standard errors: sums and weights [2 n ...] by name, clusters [n] (None: each row one)."""
    count = next(iter(rows.values())).shape[1]
    _, cluster = np.unique(np.arange(count) if clusters is None else clusters, return_inverse=True)
    names = sorted(rows, key=lambda n: (n != "loss", n))
    pairs = {name: _ratios(rows[name], cluster) for name in names}
    metrics, stderr = (flatten_metrics({k: v[i] for k, v in pairs.items()}, extremes=i == 0) for i in range(2))
    return Scores(metrics, stderr, count, int(cluster.max()) + 1)


def with_perplexity(scores: Scores) -> Scores:
    """The scores with `perplexity` = exp(loss) added, its standard error to first order."""
    if not scores.metrics:
        return scores
    value = math.exp(min(scores.metrics["loss"], 700.0))
    metrics = {**scores.metrics, "perplexity": value}
    return scores._replace(metrics=metrics, stderr={**scores.stderr, "perplexity": value * scores.stderr["loss"]})


def _ratios(rows: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """The ratio of totals of each entry, and its standard error: [2 n ...] -> [2 ...]."""
    flat = rows.reshape(2, rows.shape[1], -1)
    found = [_ratio(flat[0, :, i], flat[1, :, i], cluster) for i in range(flat.shape[2])]
    return np.array(found).T.reshape(2, *rows.shape[2:])


def _ratio(sums: np.ndarray, weights: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """A ratio of totals and its standard error over clusters, linearised (Cochran 1977, eq. 6.13, no f.p.c.)."""
    s, w = np.bincount(cluster, sums), np.bincount(cluster, weights)
    if not w.sum():
        return math.nan, math.nan
    mean, n = s.sum() / w.sum(), len(s)
    stderr = math.sqrt(n / (n - 1) * np.square(s - mean * w).sum()) / w.sum() if n > 1 else math.nan
    return float(mean), stderr


def check_finite_scores(name: str, scores: Scores) -> None:
    """Raise NotFinite if a loss is not finite: the other metrics then mean nothing."""
    if scores.non_finite_rows:
        raise NotFinite(
            f"{name}: the loss is not finite in {scores.non_finite_rows:,} of {scores.examples:,} rows, so these "
            f"metrics are meaningless: parameters or activations are nan or infinite"
        )


def format_scores(scores: Scores) -> str:
    """Metrics with their finite standard errors, in one line. For windows of text the errors are over documents."""
    errors = {name: f" ± {value:.4f}" for name, value in scores.stderr.items() if np.isfinite(value)}
    shown = {name: value for name, value in scores.metrics.items() if not is_entry(name)}
    parts = [f"{DISPLAY_NAMES.get(name, name)} {value:.4f}{errors.get(name, '')}" for name, value in shown.items()]
    if scores.non_finite_rows:
        parts.append(f"loss not finite in {scores.non_finite_rows:,}")
    rows = f"{scores.examples:,} example{'s' * (scores.examples != 1)}"
    if scores.clusters != scores.examples:
        rows = f"{scores.examples:,} windows of {scores.clusters:,} document{'s' * (scores.clusters != 1)}"
    return f"{', '.join(parts)} ({rows}{'; ± standard error' if errors else ''})"
