"""The trainer's parts, each against numbers worked out by hand or in numpy."""

import io
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import models
from data.evaluation import Exam
from errors import UsageError
from models.layers import MASKED
from models.spec import Spec, zeros
from tests import harness
from train import evaluate, mesh
from train.host import Host
from train.record import flops, metrics
from train.update import losses

F32 = 1e-5  # relative: a few roundings of float32

# Losses


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_cross_entropy_is_minus_log_softmax(shape: tuple[int, ...]) -> None:
    """Against numpy in float64, for rows and for sequences."""
    logits, label = 3 * draw(*shape), np.random.default_rng(1).integers(0, 7, shape[:-1]).astype(np.int32)
    want = -np.take_along_axis(log_softmax(logits), label[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), jnp.asarray(label)), want, rtol=F32, atol=1e-6)


def test_masked_columns_count_for_nothing() -> None:
    """The padding of a vocabulary changes neither loss nor gradient, and takes no gradient itself."""
    logits, label = jnp.asarray(draw(4, 6)), jnp.array([0, 5, 2, 3])
    padded = jnp.pad(logits, ((0, 0), (0, 3)), constant_values=MASKED)
    total = lambda x: jnp.sum(losses.cross_entropy(x, label))  # noqa: E731
    np.testing.assert_allclose(total(padded), total(logits), rtol=F32)
    slope = jax.grad(total)(padded)
    np.testing.assert_allclose(slope[:, :6], jax.grad(total)(logits), rtol=F32, atol=1e-7)
    assert not slope[:, 6:].any()


def test_large_logits_stay_finite() -> None:
    """Logits of a thousand overflow exp, not the loss."""
    got = losses.cross_entropy(jnp.array([[1000.0, 0.0], [-1000.0, 0.0]]), jnp.array([1, 1]))
    np.testing.assert_allclose(got, [1000.0, 0.0])


def test_hits_give_ties_to_the_first() -> None:
    """Of equal largest logits the first is the guess, as in argmax; a model that says nothing guesses class 0."""
    logits = jnp.array([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    np.testing.assert_array_equal(losses.hits(logits, jnp.array([1, 2, 0, 0])), [1, 0, 1, 1])
    random = np.random.default_rng(2).integers(0, 3, (50, 4)).astype(np.float32)  # full of ties
    label = np.random.default_rng(3).integers(0, 4, 50).astype(np.int32)
    np.testing.assert_array_equal(losses.hits(jnp.asarray(random), jnp.asarray(label)), random.argmax(-1) == label)


def test_softmax_task_weighs_rows() -> None:
    """Sums carry the weight, so that a padded row adds nothing to sum or weight."""
    logits, label, weight = draw(4, 3), np.array([0, 1, 2, 0], np.int32), np.array([1, 1, 1, 0], np.float32)
    got = losses.softmax(jnp.asarray(logits), {"label": jnp.asarray(label), "weight": jnp.asarray(weight)})
    want = -np.take_along_axis(log_softmax(logits), label[:, None], -1)[:, 0] * weight
    np.testing.assert_allclose(got["loss"][0], want, rtol=F32)
    np.testing.assert_array_equal(got["accuracy"][0], (logits.argmax(-1) == label) * weight)
    assert all((w == weight).all() for _, w in got.values())


def test_quadratic_task_is_half_the_squared_distance() -> None:
    """Nielsen's equation 6, a row at a time."""
    value, label, weight = draw(4, 3), np.array([0, 1, 2, 0], np.int32), np.array([1, 1, 0, 2], np.float32)
    got = losses.quadratic(jnp.asarray(value), {"label": jnp.asarray(label), "weight": jnp.asarray(weight)})
    want = 0.5 * np.square(value - np.eye(3, dtype=np.float32)[label]).sum(-1) * weight
    np.testing.assert_allclose(got["loss"][0], want, rtol=F32)


def test_next_token_counts_tokens_and_bytes() -> None:
    """Nats a token and bits a byte, of the tokens that weigh."""
    logits, targets = draw(2, 3, 5), np.array([[0, 1, 2], [3, 4, 0]], np.int32)
    weight, size = np.array([[1, 1, 1], [1, 0, 0]], np.float32), np.array([[1, 2, 4], [3, 0, 0]], np.float32)
    batch = {"targets": targets, "weight": weight, "bytes": size}
    got = losses.next_token(jnp.asarray(logits), {k: jnp.asarray(v) for k, v in batch.items()})
    nats = (-np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0] * weight).sum(-1)
    np.testing.assert_allclose(got["loss"][0], nats, rtol=F32)
    np.testing.assert_array_equal(got["loss"][1], [3, 1])
    np.testing.assert_allclose(got["bits_per_byte"][0], nats / np.log(2), rtol=F32)
    np.testing.assert_array_equal(got["bits_per_byte"][1], [7, 3])
    del batch["bytes"]
    assert "bits_per_byte" not in losses.next_token(jnp.asarray(logits), {k: jnp.asarray(v) for k, v in batch.items()})


# Evaluation


def test_ratio_of_plain_rows_is_the_mean_and_its_standard_error() -> None:
    """With unit weights and a cluster a row: mean, and deviation over the root of n."""
    x = draw(40).astype(np.float64)
    mean, error = evaluate._ratio(x, np.ones(40), np.arange(40))
    assert mean == pytest.approx(x.mean(), rel=1e-12)
    assert error == pytest.approx(x.std(ddof=1) / math.sqrt(40), rel=1e-12)


def test_ratio_of_clusters() -> None:
    """Rows of a cluster are summed first; the error agrees with the jackknife over clusters, within 3 % of itself."""
    rng = np.random.default_rng(0)
    cluster = np.sort(rng.integers(0, 200, 1000))
    _, cluster = np.unique(cluster, return_inverse=True)
    weights = rng.integers(1, 30, 1000).astype(np.float64)
    sums = weights * (2 + rng.normal(size=cluster.max() + 1)[cluster] + 0.3 * rng.normal(size=1000))
    mean, error = evaluate._ratio(sums, weights, cluster)
    assert mean == pytest.approx(sums.sum() / weights.sum(), rel=1e-12)

    without = np.array([sums[cluster != i].sum() / weights[cluster != i].sum() for i in range(cluster.max() + 1)])
    n = len(without)
    jackknife = math.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    assert error == pytest.approx(jackknife, rel=0.03)  # the two differ by terms of order 1/n = 0.005
    naive = evaluate._ratio(sums, weights, np.arange(1000))[1]
    assert error > 1.5 * naive  # rows of a cluster share its noise


def test_ratio_of_too_little() -> None:
    """One cluster has no error; no weight has no value."""
    mean, error = evaluate._ratio(np.array([2.0, 4.0]), np.array([1.0, 1.0]), np.array([0, 0]))
    assert mean == 3
    assert math.isnan(error)
    assert all(map(math.isnan, evaluate._ratio(np.zeros(3), np.zeros(3), np.arange(3))))


@pytest.mark.parametrize("size", [1, 8, 11, 64])
def test_scores_do_not_depend_on_the_batch_size(size: int) -> None:
    """A batch is rounded up to the mesh, padding is cut off, and the figures are the same to the last bit."""
    place = mesh.place_on(mesh.make_mesh("dp:8"), {})
    x = draw(37)
    exam = Exam({"x": x, "weight": np.ones(37, np.float32)}, np.arange(37) // 2)

    def examine(variables: Any, batch: dict[str, jax.Array]) -> Any:
        loss = (batch["x"] * batch["weight"] + (1 - batch["weight"]) * 1e9, batch["weight"])
        return {"loss": loss}, {"guess": batch["x"] > 0, "truth": batch["x"]}

    got = evaluate.evaluate(examine, None, exam, place, size)
    assert (got.examples, got.clusters) == (37, 19)
    assert got.rows is not None
    for have, kept in zip(got.rows, (x, np.ones(37), x > 0, x), strict=True):
        np.testing.assert_array_equal(have, kept)
    want = evaluate._ratio(x.astype(np.float64), np.ones(37), np.arange(37) // 2)
    assert (got.metrics["loss"], got.stderr["loss"]) == want


def test_a_limit_measures_the_first_batches() -> None:
    """And says how many examples those were."""
    place = mesh.place_on(mesh.make_mesh("dp:8"), {})
    exam = Exam({"x": np.arange(37, dtype=np.float32)}, np.arange(37))
    examine = lambda _, b: ({"loss": (b["x"] * b["weight"], b["weight"])}, {})  # noqa: E731
    got = evaluate.evaluate(examine, None, exam, place, 8, limit=2)
    assert got.metrics == {"loss": 7.5}
    assert (got.examples, got.clusters) == (16, 16)
    assert got.rows is not None
    np.testing.assert_array_equal(got.rows.loss, np.arange(16))
    assert got.rows.guess is None


def test_a_row_has_the_ratio_of_its_own_sums() -> None:
    """A window's loss is a token's; a row that weighs nothing has none, and no padding gets in."""
    place = mesh.place_on(mesh.make_mesh("dp:8"), {})
    weight = np.zeros((5, 3), np.float32)
    for row, tokens in enumerate((3, 1, 0, 2, 3)):
        weight[row, :tokens] = 1
    exam = Exam({"x": np.arange(5, dtype=np.float32), "weight": weight}, np.arange(5))

    def examine(variables: Any, batch: dict[str, jax.Array]) -> Any:
        told = jnp.sum(batch["weight"], -1)
        return {"loss": (batch["x"] * told, told)}, {}

    rows = evaluate.evaluate(examine, None, exam, place, 8).rows
    assert rows is not None
    np.testing.assert_array_equal(rows.loss, [0, 1, math.nan, 3, 4])
    np.testing.assert_array_equal(rows.weight, [3, 1, 0, 2, 3])


@pytest.mark.parametrize("name", ["mlp", "elman_values"])
def test_answers_on_a_mesh_are_the_models(name: str) -> None:
    """Guesses of classes that lie on two devices are the argmax of the scores; accuracy is the share that is right."""
    model, task = harness.tiny(name), losses.TASKS[harness.LOSS[name]]
    batch = harness.batch_for(name)
    place = mesh.place_on(mesh.make_mesh("dp:2,fsdp:2,tp:2"), model.specs)
    exam = Exam({k: v for k, v in batch.items() if k != "weight"}, np.arange(harness.B))
    variables = model.init(jax.random.key(0))
    value = np.asarray(model.predict(variables, batch))
    jax.set_mesh(place.mesh)
    placed = jax.device_put(variables, place.shardings(model.specs))
    got = evaluate.evaluate(evaluate.make_examiner(model, task, place), placed, exam, place, 8)
    assert got.rows is not None
    if name == "mlp":
        assert place("batch classes") == P(("dp", "fsdp"), "tp")
        np.testing.assert_array_equal(got.rows.guess, value.argmax(-1))
        np.testing.assert_array_equal(got.rows.truth, batch["label"])
        assert got.metrics["accuracy"] == (value.argmax(-1) == batch["label"]).mean()
    else:
        np.testing.assert_allclose(got.rows.guess, value, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(got.rows.truth, batch["target"])


def test_a_single_score_tells_two_classes() -> None:
    """Above 0 is class 1; what the hinge loss counts as right is what is guessed right."""
    score, label = np.array([[2.0], [-1.0], [0.5], [-3.0]], np.float32), np.array([1, 1, 0, 0], np.int32)
    batch = {"label": jnp.asarray(label), "weight": jnp.ones(4)}
    answers = losses.TASKS["hinge"].answers(jnp.asarray(score), batch)
    np.testing.assert_array_equal(answers["guess"], [1, 0, 1, 0])
    right = losses.hinge(jnp.asarray(score), batch)["accuracy"][0]
    np.testing.assert_array_equal(right, answers["guess"] == label)


def test_what_is_many_values_a_row_is_not_kept() -> None:
    """Logits of a text, or a regressor's image, would fill the memory of the host."""
    tokens = {"targets": jnp.zeros((2, 3), jnp.int32), "weight": jnp.ones((2, 3))}
    assert losses.TASKS["next_token"].answers(jnp.zeros((2, 3, 5)), tokens) == {}
    image = jnp.zeros((2, losses.FEW + 1))
    assert losses.TASKS["squared"].answers(image, {"target": image, "weight": jnp.ones(2)}) == {}


# Metrics


def host(now: list[float]) -> Host:
    return Host(lambda: now[0], {}, io.StringIO())


def test_a_resume_voids_later_lines(tmp_path: Path) -> None:
    """Lines of a greater step than the resume's are dropped, others and the event stay, in order."""
    now = [100.0]
    recorder = metrics.Recorder(str(tmp_path), host(now))
    for step in (10, 20, 30):
        recorder.write("train", step, {"loss": step / 10})
    recorder.close()
    now[0] = 500.0
    recorder = metrics.Recorder(str(tmp_path), host(now))
    recorder.write("event", 20, {}, note="resumed from checkpoint 20")
    recorder.write("train", 30, {"loss": 9.0})
    recorder.write("event", 30, {}, note="skipped: the loss or the gradient was not finite")
    recorder.close()

    lines = metrics.read(str(tmp_path))
    assert [(x["kind"], x["step"]) for x in lines] == [
        ("train", 10), ("train", 20), ("event", 20), ("train", 30), ("event", 30)
    ]  # fmt: skip
    assert lines[3]["metrics"] == {"loss": 9.0}
    assert [x["wall"] for x in lines] == [0, 0, 400, 400, 400]  # since the first start
    assert set(lines[0]) == {"v", "kind", "step", "time", "wall", "split", "metrics", "stderr"}
    assert list((tmp_path / "events").iterdir())


def test_a_torn_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    """A killed process's half line is not read, and the next recorder does not write behind it."""
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"v": 1, "kind": "train", "step": 1, "time": 5.0, "wall": 0.0, "split": None, "metrics": {}})
    path.write_text(f'{whole}\n{{"v":1,"kind":"tr')
    assert [x["step"] for x in metrics.read(str(tmp_path))] == [1]
    recorder = metrics.Recorder(str(tmp_path), host([7.0]))
    recorder.write("train", 2, {})
    recorder.close()
    assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == [1, 2]
    assert metrics.read(str(tmp_path))[1]["wall"] == 2


@pytest.mark.filterwarnings("ignore:.*NaN or Inf.*")
def test_non_finite_metrics_are_strings(tmp_path: Path) -> None:
    """JSON has no NaN: strict parsers must be able to read the file."""
    recorder = metrics.Recorder(str(tmp_path), host([0.0]))
    recorder.write("eval", 1, {"loss": math.nan, "lr": 0.5}, split="test", stderr={"loss": math.inf, "lr": -math.inf})
    recorder.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["metrics"] == {"loss": "nan", "lr": 0.5}
    assert line["stderr"] == {"loss": "inf", "lr": "-inf"}
    assert line["split"] == "test"


def test_every_metric_has_a_unit() -> None:
    """What the tasks measure is in the table of units."""
    logits = jnp.zeros((2, 3, 4))
    batch = {"targets": jnp.zeros((2, 3), jnp.int32), "weight": jnp.ones((2, 3)), "bytes": jnp.ones((2, 3))}
    rows = {"label": jnp.zeros(2, jnp.int32), "weight": jnp.ones(2)}
    names = set(losses.next_token(logits, batch)) | set(losses.softmax(logits[:, 0], rows))
    assert names | {"perplexity", "grad_norm", "lr", "skipped"} <= set(metrics.UNITS)


# FLOPs

X, W = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 4 * 8 * 8


def hidden(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.einsum("bi,io->bo", x, w))


def test_flops_of_products() -> None:
    """Two for each multiply and add, also with batch dims; elementwise work is not counted."""
    assert flops.count(hidden, X, W) == PRODUCT
    q = jax.ShapeDtypeStruct((2, 5, 3, 7), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 6, 3, 7), jnp.float32)
    assert flops.count(lambda q, k: jnp.einsum("btnh,bsnh->bnts", q, k), q, k) == 2 * (2 * 3 * 5 * 6) * 7
    assert flops.count(jnp.sin, X) == 0


def test_flops_of_loops_are_multiplied() -> None:
    """A scan's body counts once a turn, also nested."""

    def scanned(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (hidden(x, w), None), x, length=5)[0]

    assert flops.count(scanned, X, W) == 5 * PRODUCT
    nested = lambda x, w: jax.lax.scan(lambda x, _: (scanned(x, w), None), x, length=3)[0]  # noqa: E731
    assert flops.count(nested, X, W) == 15 * PRODUCT


def test_flops_of_a_branch_are_the_dearest() -> None:
    """Of a cond the larger branch counts."""
    chosen = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: hidden(hidden(x, w), w), lambda: hidden(x, w))  # noqa: E731
    assert flops.count(chosen, X, W) == 2 * PRODUCT


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_of_a_convolution(groups: int) -> None:
    """Each output element costs a kernel's products over its group's channels."""
    image = jax.ShapeDtypeStruct((2, 8, 9, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4 // groups, 6), jnp.float32)

    def conv(x: jax.Array, k: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=dims, feature_group_count=groups)

    assert flops.count(conv, image, kernel) == 2 * (2 * 6 * 7 * 6) * (3 * 3 * 4 // groups)


def test_flops_inside_jit_gradients_and_remat() -> None:
    """Whatever wraps a product, it is counted as often as it runs: forward, two backward, and again under remat."""
    assert flops.count(jax.jit(jax.jit(hidden)), X, W) == PRODUCT

    def slope(f: Any) -> Any:
        return jax.grad(lambda x, w: jnp.sum(f(f(x, w), w)), argnums=1)

    assert flops.count(slope(hidden), X, W) == (2 + 3) * PRODUCT  # the first layer needs no gradient of its input
    assert flops.count(jax.jit(slope(jax.checkpoint(hidden))), X, W) == (2 + 2 + 3) * PRODUCT


def test_flops_of_a_scanned_model_are_those_of_an_unrolled_one() -> None:
    """A GPT costs the same whether its layers are looped or not, and what its products say."""
    sizes = {"vocab": 64, "vocab_multiple": 64, "context": 8, "width": 16, "heads": 2}
    tokens = jnp.zeros((1, 8), jnp.int32)

    def cost(**more: Any) -> int:
        model = models.build("gpt", **sizes, **more)
        return flops.count(lambda v: model.predict(v, tokens), jax.eval_shape(model.init, jax.random.key(0)))

    assert cost(depth=3) == cost(depth=3, scan=False)
    layer = 2 * 8 * (12 * 16 * 16) + 2 * 2 * (8 * 8 * 16)  # kernels; scores and their sums over the whole square
    assert cost(depth=3) - cost(depth=2) == layer
    assert cost(depth=1) == layer + 2 * 8 * 16 * 64


# The mesh


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("dp:8", {"dp": 8}),
        ("dp:*", {"dp": 8}),
        ("tp:2,dp:4", {"dp": 4, "tp": 2}),
        (" tp : 2 , fsdp : * ", {"fsdp": 4, "tp": 2}),
        ("tp:*,cp:2,slice:2", {"slice": 2, "cp": 2, "tp": 2}),
        ("fsdp:8,tp:*", {"fsdp": 8, "tp": 1}),
    ],
)
def test_mesh_from_text(text: str, shape: dict[str, int]) -> None:
    """Axes in the order of AXES whatever the text's, * takes the rest, all devices once, Explicit."""
    got = mesh.make_mesh(text)
    assert dict(got.shape) == shape
    assert got.axis_names == tuple(a for a in mesh.AXES if a in shape)
    assert sorted(d.id for d in got.devices.flat) == list(range(8))
    assert set(got.axis_types) == {jax.sharding.AxisType.Explicit}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dpp:8", "did you mean 'dp'"),
        ("", "legal: .*fsdp"),
        ("dp:8,", "legal: .*fsdp"),
        ("dp:2,dp:4", "'dp' twice"),
        ("dp", "needs a size"),
        ("dp:0", "needs a size"),
        ("dp:-2", "needs a size"),
        ("dp:two", "needs a size"),
        ("dp:*,tp:*", "only one axis"),
        ("dp:4", "this run has 8"),
        ("dp:16", "this run has 8"),
        ("dp:3,tp:*", "this run has 8"),
    ],
)
def test_bad_meshes_are_refused(text: str, says: str) -> None:
    """Unknown and repeated axes, sizes that are no positive integers, products that are not the devices."""
    with pytest.raises(UsageError, match=says):
        mesh.make_mesh(text)


def spec(**dims: int) -> Spec:
    return Spec(tuple(dims.values()), " ".join(dims), zeros)


def test_names_become_partitions() -> None:
    """Each axis name gives its mesh axes, those the mesh lacks drop out, and one entry stays plain."""
    place = mesh.place_on(mesh.make_mesh("dp:2,fsdp:2,tp:2"), {})
    assert place("batch seq width") == P(("dp", "fsdp"), None, None)
    assert place("layers embed mlp") == P(None, "fsdp", "tp")
    assert place.batch_shards == 4
    plain = mesh.place_on(mesh.make_mesh("dp:8"), {})
    assert plain("batch seq width") == P("dp", None, None)
    assert plain("embed mlp") == P(None, None)


def test_every_rule_uses_known_axes_once() -> None:
    """RULES maps to AXES only, and OR_REPLICATE names rules."""
    assert {a for over in mesh.RULES.values() for a in over} <= set(mesh.AXES)
    assert set(mesh.RULES) >= mesh.OR_REPLICATE


@pytest.mark.parametrize(("size", "fits"), [(6, "4 or 8"), (3, "4 would fit"), (9, "8 or 12")])
def test_a_dim_that_does_not_divide_is_refused(size: int, fits: str) -> None:
    """The error names the leaf, the dim, the mesh axes, and the sizes that fit."""
    with pytest.raises(UsageError, match=rf"blocks/up: its dim mlp = {size} .*tp:4.*{fits}"):
        mesh.place_on(mesh.make_mesh("dp:2,tp:4"), {"blocks": {"up": spec(embed=5, mlp=size)}})


def test_small_dims_are_replicated_and_listed() -> None:
    """A name of OR_REPLICATE that does not divide is left whole everywhere, once in the list; others are cut."""
    specs = {"a": spec(embed=8, classes=8), "b": spec(embed=8, classes=10), "c": spec(embed=8, mlp=8)}
    place = mesh.place_on(mesh.make_mesh("dp:2,tp:4"), {**specs, "d": spec(classes=3)})
    assert place.replicated == ("classes 10",)
    assert place("embed classes") == P(None, None)
    assert place("embed mlp") == P(None, "tp")
    whole = mesh.place_on(mesh.make_mesh("dp:2,tp:4"), {"a": specs["a"]})
    assert whole.replicated == ()
    assert whole("embed classes") == P(None, "tp")


def test_rules_may_be_replaced() -> None:
    """Single entries, by text; None leaves the dim whole."""
    grid = mesh.make_mesh("fsdp:2,tp:4")
    assert mesh.place_on(grid, {}, {"embed": "fsdp, tp"})("embed") == P(("fsdp", "tp"))
    assert mesh.place_on(grid, {}, {"embed": None})("embed mlp") == P(None, "tp")
    assert mesh.place_on(grid, {})("embed") == P("fsdp")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embd": "tp"}, "'embed'"),
        ({"embed": "tpp"}, "'tp'"),
        ({"embed": "tp,tp"}, "twice"),
        ({"embed": 2}, "embed.*2"),
    ],
)
def test_bad_rules_are_refused(changes: dict[str, Any], says: str) -> None:
    """Unknown names, unknown axes, an axis named twice, and what is no text."""
    with pytest.raises(UsageError, match=says):
        mesh.place_on(mesh.make_mesh("tp:8"), {}, changes)


def test_a_mesh_axis_used_twice_is_refused() -> None:
    """Two dims of one array cannot lie on one mesh axis; the message names the dim to change."""
    place = mesh.place_on(mesh.make_mesh("fsdp:4,tp:2"), {}, {"width": "tp"})
    assert place("batch width") == P("fsdp", "tp")
    with pytest.raises(UsageError, match=r"twice.*'heads'"):
        place("width heads")
    with pytest.raises(UsageError, match="twice"):
        place("batch embed")


def test_an_unknown_axis_name_is_refused() -> None:
    """In a call and in a table; nothing is silently replicated."""
    place = mesh.place_on(mesh.make_mesh("dp:8"), {})
    with pytest.raises(UsageError, match=r"'widht'.*'width'"):
        place("batch widht")
    with pytest.raises(UsageError, match=r"axis name in a/b 'embd'.*'embed'"):
        mesh.place_on(mesh.make_mesh("dp:8"), {"a": {"b": spec(embd=8)}})
