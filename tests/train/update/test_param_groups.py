"""Rates, freezing and layer decay by patterns of leaves."""

import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from errors import UsageError
from models.core.spec import Spec, flatten, zeros
from tests.support.cases import batch_for, tiny_model
from tests.support.harness import Trainer
from tests.support.optimizers import F32, GRADIENTS, START, TABLE, by_optax, settings
from train.update import optim, param_groups


def moved(trainer: Trainer, before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) - before[k] for k, v in flatten(trainer.state["params"]).items()}


def params_of(trainer: Trainer) -> dict[str, np.ndarray]:
    return {k: np.array(v) for k, v in flatten(trainer.state["params"]).items()}


FROZEN = {  # family -> patterns, and the leaves that they match
    "mlp": ("hidden/0/*", {"hidden/0/kernel", "hidden/0/bias"}),
    "gpt": (
        "embed/*, blocks/norm1/*",
        {"embed/token", "embed/position", "blocks/norm1/scale", "blocks/norm1/bias"},
    ),
}


@pytest.mark.parametrize(
    ("name", "family", "mesh_text"),
    [("schedule_free", "mlp", "fsdp:2"), pytest.param("adamw", "gpt", "dp:2,fsdp:2,tp:2", marks=pytest.mark.slow)],
)
def test_a_frozen_leaf_never_changes(name: str, family: str, mesh_text: str) -> None:
    """Not by a bit, under decay and clipping, and it has no moments."""
    patterns, held = FROZEN[family]
    knobs = {"freeze": patterns, "weight_decay": 0.5, "clip_norm": 1.0} | (
        {"layer_decay": 0.5} if family == "gpt" else {}
    )
    trainer = Trainer(family, mesh_text, optimizer=name, knobs=knobs)
    before = params_of(trainer)
    trainer.steps(2)
    for leaf, change in moved(trainer, before).items():
        assert (leaf in held) == (not change.any()), leaf
    assert not [k for k in flatten(trainer.state["opt"]) if any(k.endswith(f"/{leaf}") for leaf in held)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_leaves_are_left_out_of_the_norm(accumulate: int) -> None:
    """What clipping and the check for finite numbers see is the gradient of the others."""
    patterns, held = FROZEN["mlp"]
    trainer = Trainer("mlp", accumulate=accumulate, knobs={"freeze": patterns})
    gradient = Trainer("mlp", accumulate=accumulate).gradient(batch_for("mlp"))[1]
    metrics = trainer.step(batch_for("mlp"))
    want = math.sqrt(sum(np.square(g).sum() for k, g in gradient.items() if k not in held))
    np.testing.assert_allclose(metrics["grad_norm"], want, rtol=F32)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_the_trained_leaves_do_not_see_the_frozen_ones(name: str) -> None:
    """What remains moves as it would in a table of its own."""
    cfg = settings(name=name, weight_decay=0.1, clip_norm=0.5, freeze="b")
    params, _ = by_optax(cfg, TABLE, START, GRADIENTS, 0.1)
    cfg = replace(cfg, freeze=None)
    want, _ = by_optax(cfg, {"w": TABLE["w"]}, {"w": START["w"]}, [{"w": g["w"]} for g in GRADIENTS], 0.1)
    np.testing.assert_allclose(params["w"], want["w"], rtol=F32)
    np.testing.assert_array_equal(params["b"], START["b"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_rates_multiply_what_a_leaf_moves(name: str) -> None:
    """Decay too; the first pattern that matches a leaf counts, and a leaf without one keeps the rate."""
    knobs = {"weight_decay": 0.1}
    plain = Trainer("mlp", optimizer=name, knobs=knobs)
    patterned = {"lr_multipliers": "hidden/0/bias:10, hidden/*:0.25 ,*/bias:3"}
    other = Trainer("mlp", optimizer=name, knobs=knobs | patterned)
    before = params_of(plain)
    for trainer in (plain, other):
        trainer.steps(1)
    want = {"hidden/0/bias": 10.0, "hidden/0/kernel": 0.25, "hidden/1/bias": 0.25, "hidden/1/kernel": 0.25}
    want |= {"head/bias": 3.0, "head/kernel": 1.0}
    once = moved(plain, before)
    for leaf, change in moved(other, before).items():
        np.testing.assert_allclose(change, want[leaf] * once[leaf], rtol=1e-4, atol=1e-6)


def test_rates_of_schedule_free_are_those_of_z() -> None:
    """The average follows what the leaf's own rate gives: as a run of that rate alone."""
    cfg = settings(name="schedule_free", lr_multipliers="w:0.5")
    params, state = by_optax(cfg, TABLE, START, GRADIENTS, 0.1)
    cfg = replace(cfg, lr_multipliers=None)
    slow, other = by_optax(cfg, TABLE, START, GRADIENTS, 0.05)
    np.testing.assert_allclose(params["w"], slow["w"], rtol=F32)
    average = [optim.eval_params(cfg, s, p)["w"] for s, p in ((state, params), (other, slow))]
    np.testing.assert_allclose(*average, rtol=F32, atol=1e-6)


def test_layer_decay_falls_towards_the_embeddings() -> None:
    """1 above the layers, d in the last of three, d^3 in the first, d^4 below; times the rates of leaves."""
    specs = tiny_model("gpt", depth=3, tied=False).specs["params"]
    zero, g = (jax.tree.map(lambda s, v=v: np.full(s.shape, v, np.float32), specs) for v in (0, 1))
    after, _ = by_optax(settings(name="sgd", layer_decay=0.5, lr_multipliers="blocks/up/*:2"), specs, zero, [g], 1.0)
    for leaf, value in flatten(after).items():
        layer = {"blocks": [0.125, 0.25, 0.5], "embed": [0.0625], "norm": [1.0], "head": [1.0]}[leaf.split("/")[0]]
        want = np.array(layer).reshape(-1, *[1] * (value.ndim - 1)) * (2 if "/up/" in leaf else 1)
        np.testing.assert_array_equal(value, np.broadcast_to(-want, value.shape), err_msg=leaf)


def test_layer_decay_needs_one_stack() -> None:
    """Without layers, or with stacks of several depths, there is no order to fall by."""
    with pytest.raises(UsageError, match="no stacked layers"):
        param_groups.lr_multipliers(None, 0.5, TABLE)
    stacks = {str(n): Spec((n, 4), "layers norm", zeros) for n in (2, 3)}
    with pytest.raises(UsageError, match="stacks of 2 and 3"):
        param_groups.lr_multipliers(None, 0.5, stacks)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"name": "adamm"}, "'adam'"),
        ({"momentum": 1.0}, r"optim\.momentum.*\[0, 1\)"),
        ({"beta2": -0.1}, r"optim\.beta2"),
        ({"lr": -1.0}, r"optim\.lr.*0 or more"),
        ({"weight_decay": -1.0}, r"optim\.weight_decay"),
        ({"eps": 0.0}, r"optim\.eps.*positive"),
        ({"clip_norm": 0.0}, r"optim\.clip_norm.*positive"),
        ({"layer_decay": 0.0}, r"optim\.layer_decay.*above 0"),
        ({"name": "schedule_free", "beta1": 0.0}, r"optim\.beta1.*schedule_free"),
        ({"lr_multipliers": "w"}, "PATTERN:FACTOR.*'w'"),
        ({"lr_multipliers": "w:0.1,b:x"}, "PATTERN:FACTOR.*b:x'"),
        ({"lr_multipliers": "w:0"}, "positive.*'w:0'"),
        ({"lr_multipliers": ""}, "PATTERN:FACTOR"),
        ({"lr_multipliers": "v*:0.1"}, r"optim\.lr_multipliers 'v\*'.*b, w"),
        ({"freeze": "w,c"}, r"optim\.freeze 'c'.*b, w"),
        ({"freeze": ""}, r"optim\.freeze ''"),
        ({"freeze": "*"}, "nothing to train"),
    ],
)
def test_bad_optimizers_are_refused(bad: dict[str, Any], says: str) -> None:
    """Unknown names, values beyond their bounds, patterns that match nothing."""
    with pytest.raises(UsageError, match=says):
        optim.make(settings(**bad), TABLE)


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    """Folders with a star are among what is offered."""
    specs = tiny_model("gpt").specs["params"]
    for pattern, near in (("embd/*", r"'embed/\*'"), ("blocks/qvk/kernel", "'blocks/qkv/kernel'")):
        with pytest.raises(UsageError, match=f"did you mean {near}"):
            param_groups.freeze_mask(pattern, specs)
