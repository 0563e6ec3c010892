"""Optimizers against the papers in numpy, which leaf gets what, and states that are saved and sharded."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import models
from models.core.spec import Spec, abstract, flatten, lecun_normal
from tests.support.cases import tiny_model
from tests.support.harness import Trainer, save, target_of
from tests.support.optimizers import F32, GRADIENTS, START, TABLE, by_optax, draw, settings
from train import checkpoint
from train.sharding import mesh
from train.update import optim, param_groups, step

DECOUPLED = {"adamw", "lion", "adafactor", "muon", "schedule_free"}


# By hand, one matrix or vector at a time, in float64


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def orthogonal(x: np.ndarray) -> np.ndarray:
    """Five steps of the quintic Newton-Schulz iteration, as Jordan 2024 writes it."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def adam(cfg: Any, t: int, g: np.ndarray, s: dict[str, Any]) -> np.ndarray:
    s["m"] = cfg.beta1 * s.get("m", 0.0) + (1 - cfg.beta1) * g
    s["v"] = cfg.beta2 * s.get("v", 0.0) + (1 - cfg.beta2) * g * g
    return s["m"] / (1 - cfg.beta1**t) / (np.sqrt(s["v"] / (1 - cfg.beta2**t)) + cfg.eps)


def lion(cfg: Any, g: np.ndarray, s: dict[str, Any]) -> np.ndarray:
    m = s.get("m", 0.0)
    s["m"] = cfg.beta2 * m + (1 - cfg.beta2) * g
    return np.sign(cfg.beta1 * m + (1 - cfg.beta1) * g)


def adafactor(t: int, g: np.ndarray, p: np.ndarray, s: dict[str, Any]) -> np.ndarray:
    """Algorithm 4, and 5 for what is no large matrix."""
    keep, square = 1 - t**-0.8, g * g + 1e-30
    if g.ndim == 2 and min(g.shape) >= 128:
        s["r"] = keep * s.get("r", 0.0) + (1 - keep) * square.sum(1)
        s["c"] = keep * s.get("c", 0.0) + (1 - keep) * square.sum(0)
        v = np.outer(s["r"], s["c"]) / s["r"].sum()
    else:
        v = s["v"] = keep * s.get("v", 0.0) + (1 - keep) * square
    u = g / np.sqrt(v)
    return u / max(1.0, rms(u)) * max(1e-3, rms(p))


def muon(cfg: Any, t: int, g: np.ndarray, s: dict[str, Any]) -> np.ndarray:
    """Nesterov's mean of the gradients with Dozat's correction, made orthogonal, at RMS 0.2."""
    b = cfg.momentum
    s["m"] = b * s.get("m", 0.0) + (1 - b) * g
    ahead = b * s["m"] / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t)
    return orthogonal(ahead) * 0.2 * max(g.shape) ** 0.5


def direction(cfg: Any, t: int, g: np.ndarray, p: np.ndarray, s: dict[str, Any]) -> np.ndarray:
    if cfg.name in ("adam", "adamw") or (cfg.name == "muon" and g.ndim == 1):
        return adam(cfg, t, g, s)
    if cfg.name == "lion":
        return lion(cfg, g, s)
    if cfg.name == "adafactor":
        return adafactor(t, g, p, s)
    if cfg.name == "muon":
        return muon(cfg, t, g, s)
    if cfg.name in ("momentum", "nesterov"):
        s["m"] = cfg.momentum * s.get("m", 0.0) + g
        return s["m"] if cfg.name == "momentum" else g + cfg.momentum * s["m"]
    return g


def by_hand(cfg: Any, p: np.ndarray, gradients: list[np.ndarray], decayed: bool, lr: float) -> np.ndarray:
    """One leaf after these gradients, which are clipped already."""
    p, state = p.astype(np.float64), dict[str, Any]()
    if cfg.name == "schedule_free":
        return schedule_free(cfg, p, gradients, decayed, lr)[0]
    for t, g in enumerate(gradients, 1):
        decay = cfg.weight_decay * p if decayed else 0.0
        coupled = cfg.name not in DECOUPLED
        u = direction(cfg, t, g.astype(np.float64) + (decay if coupled else 0.0), p, state)
        p = p - lr * (u + (0.0 if coupled else decay))
    return p


def schedule_free(
    cfg: Any, p: np.ndarray, gradients: list[np.ndarray], decayed: bool, lr: float
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 at a constant rate: y where gradients are taken, and the average x."""
    x = z = y = p
    v = 0.0
    for t, g in enumerate(gradients, 1):
        v = cfg.beta2 * v + (1 - cfg.beta2) * g.astype(np.float64) ** 2
        u = g / (np.sqrt(v / (1 - cfg.beta2**t)) + cfg.eps)
        z = z - lr * (u + (cfg.weight_decay * y if decayed else 0.0))
        x = (1 - 1 / t) * x + z / t
        y = cfg.beta1 * x + (1 - cfg.beta1) * z
    return y, x


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
@pytest.mark.parametrize(
    ("weight_decay", "clip_norm"),
    [
        *((0.0, None), (0.3, 0.5)),  # neither, and what both together are: the grid is weekly
        *(pytest.param(*one, marks=pytest.mark.weekly) for one in ((0.3, None), (0.0, 0.5))),
    ],
)
def test_three_updates_by_hand(name: str, weight_decay: float, clip_norm: float | None) -> None:
    """Moments, their correction, decay (of matrices only) and clipping by the global norm."""
    cfg, lr = settings(name=name, weight_decay=weight_decay, clip_norm=clip_norm, beta2=0.99), 0.1
    params, _ = by_optax(cfg, TABLE, START, GRADIENTS, lr)
    norms = [math.sqrt(sum(np.square(x).sum() for x in g.values())) for g in GRADIENTS]
    shrink = [1.0 if clip_norm is None else min(1.0, clip_norm / n) for n in norms]
    assert clip_norm is None or min(shrink) < 1
    for leaf in START:
        own = [g[leaf] * s for g, s in zip(GRADIENTS, shrink, strict=True)]
        want = by_hand(cfg, START[leaf], own, decayed=leaf == "w", lr=lr)
        np.testing.assert_allclose(params[leaf], want, rtol=F32, atol=1e-6)


def test_adafactor_keeps_rows_and_columns_of_a_large_matrix() -> None:
    """Three updates of a matrix of 130 x 128, whose state is 258 numbers."""
    table = {"w": Spec((130, 128), "embed mlp", lecun_normal, fan_in="embed")}
    start, gradients = draw(130, 128), [draw(130, 128, seed=n) * 10.0**-n for n in range(3)]
    cfg = settings(name="adafactor", weight_decay=0.1)
    params, state = by_optax(cfg, table, {"w": start}, [{"w": g} for g in gradients], 0.1)
    np.testing.assert_allclose(params["w"], by_hand(cfg, start, gradients, True, 0.1), rtol=F32, atol=1e-6)
    assert sum(x.size for x in jax.tree.leaves(state)) < 130 + 128 + 5


def test_schedule_free_evaluates_the_average() -> None:
    """The parameters are y, `eval_params` gives x; frozen leaves and other optimizers give what they have."""
    cfg = settings(name="schedule_free", beta2=0.99, weight_decay=0.1)
    params, state = by_optax(cfg, TABLE, START, GRADIENTS, 0.1)
    average = optim.eval_params(cfg, state, params)
    for leaf in START:
        want = schedule_free(cfg, START[leaf], [g[leaf] for g in GRADIENTS], leaf == "w", 0.1)[1]
        np.testing.assert_allclose(average[leaf], want, rtol=F32, atol=1e-6)
        assert (average[leaf] != params[leaf]).any()
    half = settings(name="schedule_free", beta2=0.99, weight_decay=0.1, freeze="b")
    params, state = by_optax(half, TABLE, START, GRADIENTS, 0.1)
    some = optim.eval_params(half, state, params)
    np.testing.assert_allclose(some["w"], average["w"], rtol=F32, atol=1e-6)
    np.testing.assert_array_equal(some["b"], START["b"])
    assert optim.eval_params(settings(name="adamw"), None, params) is params


def test_schedule_free_keeps_its_sums_in_float32() -> None:
    """Under bf16 parameters too: the count of updates would stop at 256."""
    tx = optim.make(settings(name="schedule_free"), TABLE)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), START)
    state = tx.init(params)
    _, after = jax.jit(tx.update)(params, state, params, lr=jnp.float32(0.1))
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    average = optim.eval_params(settings(name="schedule_free"), after, params)
    assert all(x.dtype == jnp.bfloat16 for x in average.values())


def test_a_small_gradient_is_not_clipped() -> None:
    """Clipping never enlarges."""
    tx = optim.make(settings(name="sgd", clip_norm=100.0), TABLE)
    g = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    updates, _ = jax.jit(tx.update)(g, tx.init(g), g, lr=jnp.float32(1))
    assert all((updates[k] == 1).all() for k in g)


# Which leaf gets what


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embeddings", [True, False])
def test_what_decays_in_a_gpt(tied: bool, embeddings: bool) -> None:
    """Matrices do, biases and norms never, the tables of tokens and positions by the knob."""
    specs = models.build("gpt", vocab=50, context=8, width=8, depth=2, heads=2, tied=tied).specs["params"]
    got = {name for name, on in flatten(param_groups.decay_mask(specs, embeddings)).items() if on}
    want = {f"blocks/{part}/kernel" for part in ("qkv", "out", "up", "down")}
    want |= {"embed/token", "embed/position"} if embeddings else set()
    want |= set() if tied else {"head"}
    assert got == want


MUON = {  # leaf -> rows and columns, as dims; all other leaves are Adam's
    "mlp": {"hidden/0/kernel": ((0,), (1,)), "hidden/1/kernel": ((0,), (1,))},
    "cnn": {
        "stages/0/kernel": ((0, 1, 2), (3,)),
        "stages/1/kernel": ((0, 1, 2), (3,)),
        "hidden/0/kernel": ((0,), (1,)),
    },
    "gpt": {
        "blocks/qkv/kernel": ((2,), (3, 4)),
        "blocks/out/kernel": ((1, 2), (3,)),
        "blocks/up/kernel": ((1,), (2,)),
        "blocks/down/kernel": ((1,), (2,)),
    },
}


@pytest.mark.parametrize("family", list(MUON))
def test_which_leaf_gets_muon(family: str) -> None:
    """By the table, and as the state has it: a moment of Muon's here, Adam's two there, never both."""
    model = tiny_model(family, **({"tied": False} if family == "gpt" else {}))
    specs = flatten(model.specs["params"])
    dims = {name: optim.muon_dims(spec) for name, spec in specs.items()}
    assert {name: tuple(d) for name, d in dims.items() if d} == MUON[family]

    tx = optim.make(settings(name="muon"), model.specs["params"])
    state = flatten(jax.eval_shape(tx.init, abstract(model.specs["params"])))
    for name in specs:
        kind = "muon" if name in MUON[family] else "adam"
        found = [path for path in state if path.endswith(f"/{name}")]
        assert len(found) == (1 if kind == "muon" else 2)
        assert all(f"/{kind}/" in path for path in found)


def alone(spec: Spec, x: np.ndarray) -> list[np.ndarray]:
    """The plain matrices, tables or vectors that a leaf stacks."""
    stacked, inside, outside = param_groups.group_dims(spec)
    size = lambda group: int(np.prod([spec.shape[i] for i in group]))  # noqa: E731
    shape = (size(inside), size(outside)) if inside else [spec.shape[i] for i in outside]
    return list(np.transpose(x, stacked + inside + outside).reshape(size(stacked), *shape))


def plain(spec: Spec, shape: tuple[int, ...]) -> Spec:
    """The table's line of one of them."""
    rest = " ".join(spec.names[i] for i in param_groups.group_dims(spec)[2])
    return Spec(shape, "embed mlp", lecun_normal, fan_in="embed") if spec.fan_in else Spec(shape, rest, lecun_normal)


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_a_stack_is_updated_as_its_parts_alone(name: str) -> None:
    """A GPT against its plain matrices, tables and vectors: layers, and q, k and v, know nothing of each other."""
    model = models.build("gpt", vocab=100, vocab_multiple=64, context=8, width=128, depth=2, heads=2)
    specs, cfg = model.specs["params"], settings(name=name)
    start = jax.tree.map(lambda s: draw(*s.shape, seed=9), specs)
    gradients = [jax.tree.map(lambda s, n=n: draw(*s.shape, seed=n) * (n + 1), specs) for n in range(2)]

    def parts(tree: Any) -> dict[str, np.ndarray]:
        flat, table = flatten(tree), flatten(specs)
        return {f"{k} {i}": x for k, spec in table.items() for i, x in enumerate(alone(spec, flat[k]))}

    apart = {k: plain(flatten(specs)[k.split(" ")[0]], x.shape) for k, x in parts(start).items()}
    assert sum(k.startswith("blocks/qkv/kernel") for k in apart) == 6
    assert sum(k.startswith("blocks/up/kernel") for k in apart) == 2
    together, _ = by_optax(cfg, specs, start, gradients, 0.1)
    want, _ = by_optax(cfg, apart, parts(start), [parts(g) for g in gradients], 0.1)
    for key, got in parts(together).items():
        np.testing.assert_allclose(got, want[key], rtol=2e-5, atol=2e-5, err_msg=key)


EVERY_MESH = ("dp:8", "fsdp:8", "dp:2,fsdp:2,tp:2")


@pytest.mark.parametrize("mesh_text", EVERY_MESH)
@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_moments_lie_as_their_parameters(name: str, mesh_text: str) -> None:
    """What has a parameter's path and shape; all else is whole, rows and columns of Adafactor too."""
    model = tiny_model("gpt")
    place = mesh.make_placement(mesh.make_mesh(mesh_text), model.specs)
    tx = optim.make(settings(name=name), model.specs["params"])
    found = step.state_shardings(model, tx, place, step.StepOptions())
    state = flatten(jax.eval_shape(tx.init, abstract(model.specs["params"])))
    params, moments = flatten(model.specs["params"]), 0
    for path, sharding in flatten(found["opt"]).items():
        own = [s for k, s in params.items() if path.endswith(f"/{k}") and s.shape == state[path].shape]
        assert sharding.spec == (place(own[0].axes) if own else P()), path
        moments += bool(own)
    times = {"sgd": 0, "adam": 2, "adamw": 2, "adafactor": 0, "schedule_free": 2}
    matrices = len(MUON["gpt"])
    assert moments == (2 * len(params) - matrices if name == "muon" else times.get(name, 1) * len(params))


SHARDED = [pytest.param("muon", "gpt", m, marks=pytest.mark.slow) for m in EVERY_MESH]
SHARDED += [
    ("adafactor", "mlp", EVERY_MESH[2]),
    ("schedule_free", "mlp", EVERY_MESH[2]),
]


@pytest.mark.parametrize(("name", "family", "mesh_text"), SHARDED)
def test_sharded_updates_are_close_to_unsharded_ones(name: str, family: str, mesh_text: str) -> None:
    """By the losses of four updates."""
    got = Trainer(family, mesh_text, lr=3e-3, optimizer=name, model=tiny_model(family)).steps(4)
    np.testing.assert_allclose(got, unsharded(name, family), rtol=2e-4)


_losses: dict[tuple[str, str], list[float]] = {}


def unsharded(name: str, family: str) -> list[float]:
    if (name, family) not in _losses:
        _losses[name, family] = Trainer(family, lr=3e-3, optimizer=name, model=tiny_model(family)).steps(4)
    return _losses[name, family]


FIRST = ("adamw", "muon", "schedule_free")  # the others resume in the slow suite


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FIRST)) for n in optim.OPTIMIZERS]
)
def test_every_optimizer_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Saved, restored and trained on, with a frozen leaf; the loss of one batch falls."""
    lr = {"sgd": 0.1, "momentum": 0.03, "nesterov": 0.03, "lion": 1e-3}.get(name, 1e-2)
    model, knobs = tiny_model("mlp", hidden=(32,)), {"freeze": "hidden/0/bias"}
    trainer = Trainer("mlp", "fsdp:2", lr=lr, optimizer=name, model=model, knobs=knobs)
    first = trainer.steps(2, one_batch=True)
    save(tmp_path, trainer)
    half = checkpoint.digests(trainer.state)
    later = trainer.steps(2, first=2, one_batch=True)
    straight = checkpoint.digests(trainer.state)
    trainer.state = checkpoint.restore(str(tmp_path), 2, target_of(trainer))
    assert checkpoint.digests(trainer.state) == half
    assert trainer.steps(2, first=2, one_batch=True) == later
    assert checkpoint.digests(trainer.state) == straight
    assert later[-1] < first[0]
