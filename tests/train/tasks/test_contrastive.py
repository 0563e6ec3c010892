"""Contrastive learning: the loss against loops and PyTorch, on a mesh, with padding; a run and what it refuses."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from data.images import augment
from models import Model
from models.core.spec import Outputs
from tests.support.cases import B, batch_for
from tests.support.harness import Trainer, assert_gradients_close
from train.record import metrics
from train.sharding import mesh
from train.tasks import Forward
from train.tasks.contrastive import Contrastive, normalise

pytestmark = pytest.mark.usefixtures("no_plots")

NO_TORCH = "PyTorch is not installed (requirements-parity.txt)"
ONES = np.ones(B, np.float32)


class Itself(Model):
    """A model whose value is its input."""

    def apply(self, variables: Any, inputs: Any, **rest: Any) -> Outputs:  # type: ignore[override]
        return Outputs(inputs["image"])


def views(rows: int = B) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [rows 6] in pairs: most of a pair are each other's nearest."""
    draw = np.random.default_rng(0)
    one = draw.normal(size=(rows, 6)).astype(np.float32)
    return one, (one + 0.7 * draw.normal(size=one.shape)).astype(np.float32)


def terms(one: np.ndarray, two: np.ndarray, weight: np.ndarray, text: str = "dp:1", temperature: float = 0.1) -> Any:
    """The loss's terms of vectors on a mesh, and the gradients of its sum."""
    place = mesh.make_placement(mesh.make_mesh(text, jax.devices()[: int(text[3:])]), {})
    batch = {"image": one, "image_b": two, "weight": weight}
    put = {k: jax.device_put(v, place.sharding(mesh.batch_axes(k, v.ndim))) for k, v in batch.items()}

    def loss(one: Any, two: Any, weight: Any) -> Any:
        forward = Forward(Itself("itself", None), {}, place)
        found = Contrastive(temperature).loss(forward, {"image": one, "image_b": two, "weight": weight}, {})
        return jnp.sum(found["loss"][0]), found

    grad = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    with jax.set_mesh(place.mesh):
        return jax.device_get(grad(put["image"], put["image_b"], put["weight"])[::-1])


def by_loops(one: np.ndarray, two: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 1 of arXiv:2002.05709 and the retrieval of each pair, means over its views: [n D], [n D] -> [n], [n]."""
    z = np.concatenate([one, two]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    n, losses, right = len(one), np.zeros(2 * len(one)), np.zeros(2 * len(one))
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        near = np.array([z[i] @ z[k] / temperature for k in others])
        losses[i] = -(z[i] @ z[j] / temperature) + math.log(np.exp(near).sum())
        right[i] = others[int(near.argmax())] == j
    return (losses[:n] + losses[n:]) / 2, (right[:n] + right[n:]) / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_and_retrieval_are_those_of_loops(temperature: float) -> None:
    got, _ = terms(*views(), ONES, temperature=temperature)
    nats, right = by_loops(*views(), temperature)
    assert 0 < right.mean() < 1
    np.testing.assert_allclose(got["loss"][0], nats, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["accuracy"][0], right)


def test_gradients_are_pytorchs() -> None:
    """Cross-entropy of each view among all others, as SimCLR's code has it."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    one, two = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in views())
    z = torch.nn.functional.normalize(torch.cat([one, two]))
    near = (z @ z.T / 0.1).masked_fill(torch.eye(2 * B, dtype=torch.bool), -math.inf)
    label = torch.cat([torch.arange(B) + B, torch.arange(B)])
    (torch.nn.functional.cross_entropy(near, label, reduction="sum") / 2).backward()
    _, grads = terms(*views(), ONES)
    for got, want in zip(grads, (one.grad, two.grad), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_rows_on_eight_devices_see_each_other() -> None:
    whole, parts = terms(*views(), ONES), terms(*views(), ONES, "dp:8")
    for got, want in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_padding_row_is_no_negative() -> None:
    """Rows of weight 0 change neither the others' loss nor their gradients, whatever is in them."""
    (one, two), live = views(), 11
    weight = np.where(np.arange(B) < live, ONES, 0)
    got, grads = terms(one, two, weight)
    want, _ = by_loops(one[:live], two[:live], 0.1)
    np.testing.assert_allclose(got["loss"][0][:live], want, rtol=1e-5, atol=1e-6)
    assert not np.any(got["loss"][0][live:])
    assert not any(np.any(g[live:]) for g in grads)
    one[live:], two[live:] = 0, 7
    other, _ = terms(one, two, weight)
    np.testing.assert_array_equal(other["loss"][0], got["loss"][0])


def test_vectors_of_zero_have_a_finite_gradient() -> None:
    assert np.isfinite(jax.grad(lambda x: jnp.sum(normalise(x)))(jnp.zeros((2, 3)))).all()


def test_an_update_is_the_same_on_a_mesh() -> None:
    """Two forward passes of a network, its embeddings gathered over the rows' devices."""
    batch = batch_for("vit")
    del batch["label"]
    batch["image_b"] = batch["image"] + 0.3 * np.random.default_rng(1).normal(size=batch["image"].shape).astype("f")
    (loss, want), (other, got) = (
        Trainer("vit", text, task=Contrastive(), lr=1e-3).gradient(batch) for text in ("dp:1", "dp:2,fsdp:2,tp:2")
    )
    assert other == pytest.approx(loss, rel=1e-5)
    assert_gradients_close(got, want, 1e-3)


def test_two_views_are_draws_of_their_own() -> None:
    """The first is what an image without a second one is; the second depends on the row alone too."""
    image = np.random.default_rng(0).integers(1, 256, (8, 6, 6, 1)).astype(np.uint8)
    plain, double = (augment.ImagePipeline(3, (("crop", 2),), two_views=two) for two in (False, True))
    rows = np.arange(8)
    one, two = plain({"image": image}, 4, rows), double({"image": image}, 4, rows)
    np.testing.assert_array_equal(two["image"], one["image"])
    assert (two["image_b"] != two["image"]).any()
    part = double({"image": image[[6, 1]]}, 4, np.array([6, 1]))
    np.testing.assert_array_equal(part["image_b"], two["image_b"][[6, 1]])


RUN = ["--config=configs/cnn.py:digits+contrastive", "--config.log.table=false", "--config.log.every=10"]


@pytest.mark.slow
def test_a_run_learns_to_find_the_other_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By more than chance, one of 127; `eval` draws the same views again, on other devices too, or other views."""
    assert launch.main(["train", f"--workdir={tmp_path}/w", *RUN, "--config.train.steps=200"]) == 0
    assert launch.main(["eval", f"--workdir={tmp_path}/w", "--config.mesh=fsdp:*"]) == 0
    assert launch.main(["eval", f"--workdir={tmp_path}/w", "--config.data.augment=crop:3"]) == 0
    one, two, other = (line.split("test: ")[1] for line in capsys.readouterr().out.splitlines() if "test: " in line)
    assert one == two != other
    (line,) = (line["metrics"] for line in metrics.read(str(tmp_path / "w")) if line["kind"] == "eval")
    assert line["accuracy"] > 0.4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.accumulate=2"], ["train.accumulate = 2", "contrastive"]),
        (["data.augment=None"], ["data.augment", "contrastive"]),
        (["data.augment=crop:1,mixup:1"], ["mixup", "contrastive"]),
        (["train.temperature=0"], ["train.temperature", "positive"]),
        (["loss=softmax", "train.temperature=1"], ["train.temperature", "loss is contrastive"]),
        (["train.label_smoothing=0.1"], ["label_smoothing", "softmax"]),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["train", f"--workdir={tmp_path}/w", *RUN, *(f"--config.{s}" for s in settings)]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "w").exists()
