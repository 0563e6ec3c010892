"""Focal loss and class weights, against PyTorch and numbers worked out by hand."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from errors import UsageError
from tests.support.cases import batch_for
from tests.support.harness import Trainer, assert_gradients_close
from train.tasks import SingleForwardTask
from train.tasks.classification import Focal, Softmax

pytestmark = pytest.mark.usefixtures("no_plots")

NO_TORCH = "PyTorch is not installed (requirements-parity.txt)"
WEIGHTS = (0.5, 2.0, 1.0, 3.0)


def terms(task: SingleForwardTask, value: Any, batch: dict[str, Any]) -> Any:
    return jax.device_get(jax.jit(task.terms)(value, batch))


def mean_loss(task: SingleForwardTask, value: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """The ratio of totals and its gradient."""

    def loss(value: jax.Array, batch: dict[str, Any]) -> jax.Array:
        total, weight = task.terms(value, batch)["loss"]
        return jnp.sum(total) / jnp.sum(weight)

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(value, batch))


def problem(rows: int = 12) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores of 4 classes, the last two rows padding."""
    draw = np.random.default_rng(0)
    weight = np.ones(rows, np.float32)
    weight[-2:] = 0
    batch = {"label": draw.integers(0, 4, rows).astype(np.int32), "weight": weight}
    return (2 * draw.normal(size=(rows, 4))).astype(np.float32), batch


def torch_loss(value: np.ndarray, label: np.ndarray, gamma: float, weights: Any) -> tuple[float, np.ndarray]:
    """The mean loss of PyTorch and its gradient, in float64: CrossEntropyLoss, or eq. 5 of arXiv:1708.02002."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    x, y = torch.tensor(value, dtype=torch.float64, requires_grad=True), torch.tensor(label, dtype=torch.int64)
    alpha = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    if gamma:
        p = torch.softmax(x, -1)[torch.arange(len(y)), y]
        rows = torch.ones_like(p) if alpha is None else alpha[y]
        loss = (-rows * (1 - p) ** gamma * torch.log(p)).sum() / rows.sum()
    else:
        loss = torch.nn.CrossEntropyLoss(weight=alpha)(x, y)
    loss.backward()
    return loss.item(), x.grad.numpy()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_and_class_weights_are_pytorchs(gamma: float, weights: tuple[float, ...] | None) -> None:
    """Value and gradient; padding counts for nothing; gamma 0 is cross-entropy."""
    value, batch = problem()
    live = batch["weight"] > 0
    want, slope = torch_loss(value[live], batch["label"][live], gamma, weights)
    tasks: list[SingleForwardTask] = [Focal(focal_gamma=gamma, class_weights=weights)]
    tasks += [] if gamma else [Softmax(class_weights=weights)]
    for task in tasks:
        got, slopes = mean_loss(task, value, batch)
        assert float(got) == pytest.approx(want, rel=1e-5)
        np.testing.assert_allclose(slopes[live], slope, rtol=1e-4, atol=1e-7)
        assert not np.any(slopes[~live])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_certain_row_has_a_finite_slope(gamma: float) -> None:
    """A probability of 1, of 0, and all classes alike."""
    value = np.float32([[200.0, 0.0], [-200.0, 0.0], [0.0, 0.0]])
    batch = {"label": np.zeros(3, np.int32), "weight": np.ones(3, np.float32)}
    got, slopes = mean_loss(Focal(focal_gamma=gamma), value, batch)
    assert float(got) == pytest.approx((200 + 0.5**gamma * math.log(2)) / 3, rel=1e-5)
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes[:2], [[0, 0], [-1 / 3, 1 / 3]], atol=1e-6)


def test_class_weights_leave_accuracy_alone() -> None:
    value, batch = problem()
    got, want = (terms(Softmax(class_weights=weights), value, batch) for weights in (WEIGHTS, None))
    for i in range(2):
        np.testing.assert_array_equal(got["accuracy"][i], want["accuracy"][i])
    np.testing.assert_allclose(got["loss"][1], batch["weight"] * np.float32(WEIGHTS)[batch["label"]])
    np.testing.assert_allclose(got["loss"][0], want["loss"][0] * np.float32(WEIGHTS)[batch["label"]], rtol=1e-6)


@pytest.mark.parametrize("task", [Softmax(class_weights=WEIGHTS), Focal(class_weights=WEIGHTS)])
def test_a_mixed_row_counts_as_its_two_labels(task: SingleForwardTask) -> None:
    """Loss and weight are those of two rows, of one label each, weighted by their shares."""
    value, batch = problem()
    other, share = (batch["label"] + 1) % 4, np.linspace(0, 1, 12, dtype=np.float32)
    mixed = {**batch, "label_b": other, "lam": share}
    two = {
        "label": np.concatenate([batch["label"], other]),
        "weight": np.concatenate([share * batch["weight"], (1 - share) * batch["weight"]]),
    }
    got, want = mean_loss(task, value, mixed), mean_loss(task, np.concatenate([value, value]), two)
    assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-5)
    np.testing.assert_allclose(got[1], want[1][:12] + want[1][12:], rtol=1e-4, atol=1e-7)


def test_a_weighted_mean_is_the_same_whole_accumulated_and_on_a_mesh() -> None:
    """Microbatches with other labels have other weights, and share one total."""
    batch, task = batch_for("mlp"), Softmax(class_weights=WEIGHTS)
    (loss, want), *others = (
        Trainer("mlp", text, accumulate, task=task).gradient(batch)
        for text, accumulate in (("dp:1", 1), ("dp:1", 4), ("dp:4", 2), ("fsdp:2,tp:4", 1))
    )
    plain, _ = Trainer("mlp").gradient(batch)
    assert abs(loss - plain) > 1e-3
    for other, grads in others:
        assert other == pytest.approx(loss, rel=1e-5)
        assert_gradients_close(grads, want, 1e-4)


def test_the_number_of_class_weights_is_that_of_the_classes() -> None:
    value, batch = problem()
    with pytest.raises(UsageError, match=r"train\.class_weights.* 4 .* 3"):
        terms(Softmax(class_weights=(1.0, 2.0, 3.0)), value, batch)


RUN = ["--config=configs/mlp.py:digits", "--config.train.steps=20", "--config.log.table=false"]


def test_a_run_trains_and_evaluates_by_the_same_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`eval` of its checkpoint reports what the run did; its loss is focal and weighted, its accuracy is not."""
    weights = f"--config.train.class_weights={','.join(['1'] * 9)},5"
    assert launch.main(["train", f"--workdir={tmp_path}/w", *RUN, "--config.loss=focal", weights]) == 0
    assert launch.main(["eval", f"--workdir={tmp_path}/w", "--config.eval.batch=8"]) == 0
    one, two = (line.split("test: ")[1] for line in capsys.readouterr().out.splitlines() if "test: " in line)
    assert one == two


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.class_weights=1,2"], ["class_weights", "10", "2"]),
        (["train.class_weights=1,0"], ["class_weights", "positive"]),
        (["train.focal_gamma=-1", "loss=focal"], ["focal_gamma", "-1"]),
        (["train.focal_gamma=1"], ["focal_gamma", "loss is focal", "softmax"]),
        (["train.class_weights=1,2", "loss=quadratic"], ["class_weights", "softmax or focal", "quadratic"]),
        (["train.label_smoothing=0.1", "loss=focal"], ["label_smoothing", "softmax"]),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["train", f"--workdir={tmp_path}/w", *RUN, *(f"--config.{s}" for s in settings)]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "w").exists()
