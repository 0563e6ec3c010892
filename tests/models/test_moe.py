"""Mixtures of experts: two paths that agree on any mesh, routers and their metrics."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UsageError
from models.blocks.moe import moe, routers
from models.blocks.moe.dispatch import glu, mixture
from models.core.spec import flatten, unsharded
from tests.support.cases import batch_for, tiny_model
from tests.support.harness import Trainer
from train.sharding import mesh

B, T, D, E, A, F = 8, 4, 8, 4, 2, 16
AXES = {"gate": "experts embed mlp", "up": "experts embed mlp", "down": "experts mlp embed"}
BIASES = {"gate": "experts mlp", "up": "experts mlp", "down": "experts norm"}


def parts(bias: bool, seed: int = 0) -> tuple[Any, Any, Any]:
    """Tokens, logits and experts; one expert gets no token at all."""
    draw = np.random.default_rng(seed)
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    p = {name: {"kernel": 0.3 * draw.normal(size=shape)} for name, shape in shapes.items()}
    if bias:
        for name, leaf in p.items():
            leaf["bias"] = draw.normal(size=(E, shapes[name][-1]))
    logits = draw.normal(size=(B, T, E)) - 100 * (np.arange(E) == 1)
    return jax.tree.map(lambda x: jnp.asarray(np.float32(x)), (draw.normal(size=(B, T, D)), logits, p))


@cache
def run(text: str | None, dispatch: str, bias: bool, weight_inputs: bool) -> Any:
    """The mixture's answer and the gradients by tokens, logits and experts, on a mesh."""

    def value(x: Any, logits: Any, p: Any, place: Any) -> Any:
        routes = routers.softmax_then_top(logits, A, norm_topk=False)
        gate = glu("silu")
        y, served = mixture(x, routes, p, gate, dispatch=dispatch, weight_inputs=weight_inputs, place=place)
        return jnp.sum(jnp.sin(y)), (y, served)

    x, logits, p = parts(bias)
    both = jax.value_and_grad(value, (0, 1, 2), has_aux=True)
    if text is None:
        return jax.device_get(jax.jit(both, static_argnums=3)(x, logits, p, unsharded))
    place = mesh.make_placement(mesh.make_mesh(text), {})
    lies = {k: {"kernel": AXES[k]} | ({"bias": BIASES[k]} if bias else {}) for k in p}
    given = jax.device_put(
        (x, logits, p),
        (
            place.sharding("batch seq width"),
            place.sharding("batch seq choice"),
            jax.tree.map(place.sharding, lies),
        ),
    )
    with jax.set_mesh(place.mesh):
        return jax.device_get(jax.jit(lambda *v: both(*v, place))(*given))


PATHS = [(None, "dropless"), ("fsdp:2,ep:2,tp:2", "dropless"), ("ep:4,cp:2", "dropless"), ("fsdp:2,ep:2,tp:2", "dense")]


def paths() -> list[Any]:
    """Each path with biases and weighed inputs, the first two also with neither; all combinations weekly."""
    plain = [(*path, False, False) for path in PATHS[:2]]
    chosen = [*((*path, True, True) for path in PATHS), *plain]
    every = [
        (*path, bias, weight_inputs) for path in PATHS for bias in (False, True) for weight_inputs in (False, True)
    ]
    return [pytest.param(*case, marks=[] if case in chosen else [pytest.mark.weekly]) for case in every]


@pytest.mark.parametrize(("text", "dispatch", "bias", "weight_inputs"), paths())
def test_paths_agree_forward_and_backward(text: str | None, dispatch: str, bias: bool, weight_inputs: bool) -> None:
    got, want = run(text, dispatch, bias, weight_inputs), run(None, "dense", bias, weight_inputs)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.linalg.norm(np.float64(a) - b) <= 2e-5 * np.linalg.norm(b)
    assert got[0][1][1].all()
    for leaf in jax.tree.leaves(got[1][2]):
        assert not leaf[1].any()
        assert leaf[0].any()


def test_on_a_mesh_without_a_place_all_is_whole() -> None:
    """As where one device of a run writes text: no place says how to lie, and the arrays are a mesh's all the same."""

    def value(x: Any, logits: Any, p: Any) -> Any:
        y, _ = mixture(x, routers.softmax_then_top(logits, A, norm_topk=False), p, glu("silu"))
        return jnp.sum(jnp.sin(y))

    grad = jax.jit(jax.value_and_grad(value, (0, 1, 2)))
    want = grad(*parts(bias=True))
    for count in (1, 8):
        place = mesh.make_placement(mesh.make_mesh(f"dp:{count}", jax.devices()[:count]), {})
        got = grad(*jax.device_put(parts(bias=True), place.replicated))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert np.linalg.norm(np.asarray(a) - b) <= 2e-5 * np.linalg.norm(b)


def test_a_mixture_is_the_sum_over_a_tokens_experts() -> None:
    """Against a loop in numpy, one token and expert after another."""
    x, logits, p = jax.tree.map(np.float64, parts(bias=True))
    (_, (y, _)), _ = run(None, "dropless", bias=True, weight_inputs=False)
    for b, t in np.ndindex(B, T):
        shares = np.exp(logits[b, t] - logits[b, t].max())
        shares /= shares.sum()
        want = np.zeros(D)
        for e in np.argsort(-logits[b, t])[:A]:
            gate, up = (x[b, t] @ p[k]["kernel"][e] + p[k]["bias"][e] for k in ("gate", "up"))
            want += shares[e] * ((gate / (1 + np.exp(-gate)) * up) @ p["down"]["kernel"][e] + p["down"]["bias"][e])
        np.testing.assert_allclose(y[b, t], want, rtol=1e-4, atol=1e-4)


def test_the_router_stays_in_float32() -> None:
    """Logits that are equal in bfloat16 are ranked as in float32."""
    kernel = jnp.float32([[1.0, 1.0 + 2e-4]])
    logits = routers.router_logits(jnp.ones((1, 1, 1), jnp.bfloat16), {"kernel": kernel})
    assert logits.dtype == jnp.float32
    assert routers.top_k(logits, 1)[0].item() == 1


def layers(shares: Any, experts: Any) -> Any:
    """The statistics of two layers with the same shares [B T E] and choices [B T A]."""
    shares, experts = np.float32(shares), np.asarray(experts)
    routes = routers.Routes(*jax.tree.map(jnp.asarray, (experts, np.ones(experts.shape, np.float32), shares)))
    stats = router_stats(routes, experts != 3, np.arange(shares.shape[1])[None])
    return jax.tree.map(lambda x: jnp.asarray(np.stack([x, x])), stats)


router_stats, router_metrics = jax.jit(moe.router_stats), jax.jit(moe.router_metrics)
load_balancing_loss, sequence_balance_loss = jax.jit(moe.load_balancing_loss), jax.jit(moe.sequence_balance_loss)


def test_metrics_of_even_and_of_lopsided_routers() -> None:
    even = layers(np.full((1, 2, 4), 0.25), [[[0, 1], [2, 3]]])
    found = {
        k: (s / w.reshape(-1, *[1] * (s.ndim - 1)))[0] for k, (s, w) in jax.device_get(router_metrics(even)).items()
    }
    np.testing.assert_allclose(found["expert_load"], np.ones((2, 4)))
    np.testing.assert_allclose(found["router_entropy"], np.log(4), rtol=1e-6)
    np.testing.assert_allclose(found["expert_dropped"], 0.25)  # expert 3 served nobody
    assert load_balancing_loss(even) == 2  # A
    assert sequence_balance_loss(even) == 2  # 1 a layer

    one = layers([[[1, 0, 0, 0], [1, 0, 0, 0]]], [[[0, 1], [0, 2]]])
    load = jax.device_get(router_metrics(one)["expert_load"])
    np.testing.assert_allclose((load[0] / load[1][:, None, None])[0, 0], [2, 1, 1, 0])
    assert load_balancing_loss(one) == 4
    assert sequence_balance_loss(one) == 4


def test_a_balanced_run_is_of_a_whole_batch() -> None:
    plain, coupled = (models.build("mixtral", width=32, heads=4, aux_loss_weight=b).traits for b in (0.0, 0.01))
    assert coupled - plain == {"batch_coupled"}


def test_a_softmax_over_the_largest_logits_is_that_of_all_made_to_sum_to_1() -> None:
    logits = parts(bias=False)[1]
    few, all_ = routers.top_then_softmax(logits, A), routers.softmax_then_top(logits, A, norm_topk=True)
    np.testing.assert_array_equal(few.experts, all_.experts)
    np.testing.assert_array_equal(few.probs, all_.probs)
    np.testing.assert_allclose(few.weights, all_.weights, rtol=1e-6)
    raw = routers.softmax_then_top(logits, A, norm_topk=False)
    assert (jnp.sum(raw.weights, -1) < 1).all()
    np.testing.assert_allclose(raw.weights, np.sort(raw.probs, -1)[..., ::-1][..., :A], rtol=1e-6)


# Routers that choose groups first


def in_groups(scores: np.ndarray, bias: np.ndarray, groups: int, kept: int, active: int, best: int) -> set[int]:
    """Which experts a token of scores [E] is sent to."""
    chosen = scores + bias
    apart = chosen.reshape(groups, -1)
    rank = np.argsort(-np.sort(apart, -1)[:, -best:].sum(-1))[:kept]
    inside = [g * apart.shape[1] + i for g in rank for i in range(apart.shape[1])]
    return set(sorted(inside, key=lambda e: -chosen[e])[:active])


@pytest.mark.parametrize(("groups", "kept", "active"), [(1, 1, 3), (4, 2, 3), (4, 1, 2), (4, 4, 5), (2, 1, 6)])
def test_groups_are_chosen_first(groups: int, kept: int, active: int) -> None:
    """Against numpy, one token after another; the bias takes part in the choice, and not in the weights."""
    draw = np.random.default_rng(groups + active)
    logits, bias = draw.normal(size=(2, 9, 12)).astype(np.float32), draw.normal(size=12).astype(np.float32)

    @jax.jit
    def run(logits: Any, bias: Any) -> Any:
        sharp = [routers.sigmoid_in_groups(logits, bias, active, groups, kept, on, 2.5) for on in (False, True)]
        return routers.softmax_in_groups(logits, active, groups, kept, 2.5), sharp

    soft, sharp = jax.device_get(run(logits, bias))
    assert any(set(soft.experts[at]) != set(sharp[True].experts[at]) for at in np.ndindex(2, 9))
    for at in np.ndindex(2, 9):
        shares = np.exp(logits[at]) / np.exp(logits[at]).sum()
        scores = 1 / (1 + np.exp(-logits[at]))
        assert set(soft.experts[at]) == in_groups(shares, 0 * bias, groups, kept, active, best=1)
        np.testing.assert_allclose(soft.weights[at], 2.5 * shares[soft.experts[at]], rtol=1e-5)
        for on, routes in enumerate(sharp):
            experts = routes.experts[at]
            assert set(experts) == in_groups(scores, bias, groups, kept, active, best=2)
            weights = scores[experts] / (scores[experts].sum() if on else 1)
            np.testing.assert_allclose(routes.weights[at], 2.5 * weights, rtol=1e-5)
            np.testing.assert_allclose(routes.probs[at], scores / scores.sum(), rtol=1e-5)


def test_padding_does_not_count() -> None:
    """Positions below 0 count for nothing; the loss that balances is that of the others, as in transformers."""
    draw = np.random.default_rng(0)
    shares = np.exp(draw.normal(size=(2, 5, 4)).astype(np.float32))
    shares /= shares.sum(-1, keepdims=True)
    routes = routers.Routes(draw.integers(0, 4, (2, 5, 2)), np.ones((2, 5, 2), np.float32), shares)
    routes = jax.tree.map(jnp.asarray, routes)
    served, position = np.ones((2, 5, 2), bool), np.array([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]])
    got = jax.device_get(router_stats(routes, served, position))
    for row, first in ((0, 2), (1, 0)):
        cut = routers.Routes(*(jnp.asarray(np.asarray(x)[row : row + 1, first:]) for x in routes))
        alone = router_stats(cut, served[:1, first:], position[row : row + 1, first:])
        for name, value in vars(alone).items():
            np.testing.assert_allclose(getattr(got, name)[row : row + 1], value, rtol=1e-6)
    empty = router_stats(routes, served, np.full((1, 5), -1))
    layers = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[None]), empty)
    assert load_balancing_loss(layers) == sequence_balance_loss(layers) == 0


@pytest.mark.parametrize("parts", [pytest.param(4, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.weekly)])
def test_biases_move_once_an_update(parts: int) -> None:
    """By the load of the whole batch, in however many parts it comes."""
    trainer = Trainer("deepseek", accumulate=parts, optimizer="sgd", model=tiny_model("deepseek", aux_loss_weight=0.0))
    start = jax.device_get({k: trainer.state[k] for k in ("params", "stats")})
    assert trainer.steps(1)
    before, after = flatten(start["stats"]), jax.device_get(flatten(trainer.state["stats"]))
    metrics = _metrics(trainer.model)(start, batch_for("deepseek"))
    for path, name in (("blocks/moe/bias", "expert_load"), ("mtp/block/bias", "mtp_expert_load")):
        load = np.asarray(metrics[name][0]).sum(0)
        want = before[path] + 0.01 * np.sign(load.mean(-1, keepdims=True) - load)
        np.testing.assert_allclose(after[path], want, rtol=1e-6)


@cache
def _metrics(model: models.Model) -> Any:
    """A program for the model's metrics of a batch in training."""
    return jax.jit(lambda variables, batch: model.apply(variables, batch, train=True).metrics)


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("dp:4,cp:2", {"experts": "cp"}),
        ("dp:4,cp:2", {"mlp": "cp"}),
        ("dp:4,cp:2", {"width": "cp", "seq": None}),
        ("dp:4,tp:2", {"width": "tp", "mlp": None, "heads": None}),
    ],
)
def test_rules_that_would_mix_tokens_are_refused(text: str, rules: dict[str, Any]) -> None:
    x, logits, p = parts(bias=False)
    place = mesh.make_placement(mesh.make_mesh(text), {}, rules)
    routes = routers.softmax_then_top(logits, A, norm_topk=False)
    with jax.set_mesh(place.mesh), pytest.raises(UsageError, match=r"dropless: the mesh axis .* cannot shard width"):
        mixture(x, routes, p, glu("silu"), place=place)


def test_biases_move_towards_an_even_load() -> None:
    """Up where an expert got less than the mean of its layer, down where more, and not at all where as much."""
    load = jnp.float32([[[4, 0, 1, 1], [0, 0, 1, 1]], [[2, 2, 2, 2], [2, 2, 2, 2]]])  # [L B E]
    got = moe.update_expert_bias(jnp.full((2, 4), 0.5), jnp.sum(load, 1), 0.01)
    np.testing.assert_allclose(got, [[0.49, 0.51, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
