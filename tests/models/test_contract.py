"""Every family, at a tiny size, through the same laws.

A family's laws share its programs: its tests run one after another in one worker (conftest.py), and a forward pass or
an update is traced and compiled once for all of them (harness.py). The full grids are marked weekly.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.core.spec import flatten
from tests.support.cases import CASES, B, T, batch_for, hardest, meshes_for, second, tiny_model, to_inputs, with_dropout
from tests.support.harness import (
    Trainer,
    assert_gradients_close,
    bits_of,
    initial_variables,
    jit_predict,
    random_variables_for,
    save,
    target_of,
)
from train import checkpoint
from train.generate import beam_search

NAMES = sorted(CASES)
FORMS = [name for name in NAMES if name not in (CASES[name].family, "linen")]  # a family's further ones
LATE = (  # families of the slow suite: they are made of what goes through every law under another name
    *("gpt_oss", "deepseek", "llama4", "gemma", "gemma4", "grok"),
    *("transformer", "seq2seq", "vgg", "resnet"),
)
FIRST = ("mlp",)  # goes through every law in the default suite, the others in the slow one
LR = 2e-2  # one rate for all laws, so that a family without dropout overfits by the program of its reference
TRAINED = ("mlp", "cnn", "gpt", "mixtral")  # are updated in the default suite, and on their hardest mesh
# in the slow suite these are run eagerly, and their updates traced on further meshes; all others weekly
OLDER = ("cnn", "rnn", "gpt", "vit", "transformer", "yolo", "mixtral", "resnet")


def late(name: str, first: tuple[str, ...] = ()) -> Any:
    """A name; of a late family, or of one that is not among the `first` of a long law, among the slow tests.

    A family's further forms go through the long laws weekly.
    """
    if first and name in FORMS:
        return pytest.param(name, marks=pytest.mark.weekly)
    slow = name in (*LATE, *FORMS) or (first and name not in first)
    return pytest.param(name, marks=[pytest.mark.slow] if slow else [])


LONG = [late(name, FIRST) for name in NAMES]
FURTHER = [late(n, FIRST) if n in (*FIRST, *OLDER) else pytest.param(n, marks=pytest.mark.weekly) for n in NAMES]


def with_trait(*traits: str) -> list[Any]:
    return [late(n) for n in NAMES if set(traits) <= tiny_model(n).traits]


def on(name: str, mesh: str = "dp:1", accumulate: int = 1, **change: Any) -> Trainer:
    """A family's trainer with dropout on."""
    return Trainer(name, mesh, accumulate, lr=LR, model=with_dropout(name, **change))


def elsewhere(name: str) -> Trainer:
    """On the second mesh, in microbatches where rows are independent, with layers unrolled and rematerialised."""
    fields = {"remat": "full", "scan": False} if hasattr(tiny_model(name).config, "remat") else {}
    return on(name, second(name), 1 if "batch_coupled" in tiny_model(name).traits else 4, **fields)


def test_every_family_is_tested_and_has_legal_traits() -> None:
    assert {tiny_model(name).family for name in NAMES} == set(models.FAMILIES)
    assert all(tiny_model(name).traits <= models.TRAITS for name in NAMES)
    for module in models.FAMILIES.values():
        assert module.TRAITS <= models.TRAITS
        assert module.__doc__
        assert all(reason for reason in module.ZERO_GRAD.values())


MAPS = {"yolo": ((4, 2, 2), (8, 4, 1)), "yolo_region": ((2, 4, 2),)}  # rows, columns, anchors of a detector's grids


def numbers(value: Any) -> np.ndarray:
    """All of a value, of a detector's grids too."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(value)])


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_dtypes_follow_the_table(name: str) -> None:
    model = tiny_model(name)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    for part, table in model.specs.items():
        leaves = flatten(variables[part])
        assert {k: (s.shape, jnp.dtype("float32")) for k, s in flatten(table).items()} == {
            k: (v.shape, v.dtype) for k, v in leaves.items()
        }
    batch = batch_for(name)
    value = jax.eval_shape(model.predict, variables, to_inputs(batch))
    last = {"language_model": "vocab", "encoder_decoder": "vocab", "classifier": "classes", "regressor": "outputs"}
    if "detector" in model.traits:
        want = [(B, *cells, 5 + model.config.classes) for cells in MAPS[name]]
    else:
        size = getattr(model.config, next(last[trait] for trait in last if trait in model.traits))
        want = [(*batch["tokens"].shape, size) if size == getattr(model.config, "vocab", None) else (B, size)]
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(value)] == [(shape, jnp.float32) for shape in want]


BARE = [name for name in NAMES if not {"mask", "source"} & set(batch_for(name))]
EARLY = ("mlp", "cnn", "gpt", "elman_values", "yolo", "linen")


@pytest.mark.parametrize("name", [n if n in EARLY else pytest.param(n, marks=pytest.mark.weekly) for n in BARE])
def test_a_bare_array_is_the_main_input(name: str) -> None:
    model, batch = tiny_model(name), batch_for(name)
    main = next(batch[k] for k in ("tokens", "image", "features") if k in batch)
    predict, variables = jit_predict(model), random_variables_for(model)
    np.testing.assert_array_equal(numbers(predict(variables, main)), numbers(predict(variables, batch)))


@pytest.mark.parametrize("name", FURTHER)
def test_jit_equals_eager(name: str) -> None:
    model, inputs = tiny_model(name), to_inputs(batch_for(name))
    compiled = jit_predict(model)(random_variables_for(model), batch_for(name))
    with jax.disable_jit():
        eager = model.predict(random_variables_for(model), inputs)
    np.testing.assert_allclose(numbers(compiled), numbers(eager), rtol=2e-5, atol=2e-5)


UPDATED = {name: late(name, () if name in FORMS else TRAINED) for name in NAMES}


@pytest.mark.parametrize("name", UPDATED.values())
def test_gradients_are_finite_and_not_zero(name: str) -> None:
    found, zero = reference(name)[1], tiny_model(name).module.ZERO_GRAD
    whole = np.sqrt(sum(np.sum(np.square(g)) for g in found.values()))
    for leaf, g in found.items():
        assert np.isfinite(g).all(), leaf
        if leaf in zero:
            assert np.linalg.norm(g) < 1e-6 * whole, leaf
        else:
            assert np.linalg.norm(g) > 1e-6 * whole, leaf


@pytest.mark.parametrize("name", [late(n, ("mixtral",)) for n in NAMES if hasattr(tiny_model(n).config, "experts")])
def test_an_expert_learns_of_its_own_tokens_alone(name: str) -> None:
    """One token reaches as many experts as are active; the gradients of all others are zero, bit for bit."""
    model = tiny_model(name)
    variables = initial_variables(model)

    def out(params: Any) -> Any:
        found = model.apply({**variables, "params": params}, jnp.array([[7]]), train=True)
        return sum(jnp.sum(jnp.square(x)) for x in (found.value, *(value.x for value in found.mtp_values)))

    grads = flatten(jax.jit(jax.grad(out))(variables["params"]))
    for path, spec in flatten(model.specs["params"]).items():
        if "experts" in spec.names:
            rest = tuple(i for i, axis in enumerate(spec.names) if axis not in ("layers", "experts"))
            moved = np.any(np.asarray(grads[path]) != 0, rest)
            np.testing.assert_array_equal(moved.sum(-1), model.config.experts_per_token)


def test_the_laws_hold_with_every_kind_of_noise_on() -> None:
    for name, kinds in (("vit", "dropout drop_path"), ("transformer", "dropout dropout_attention dropout_hidden")):
        assert {getattr(with_dropout(name).config, kind) for kind in kinds.split()} == {0.25}


@pytest.mark.parametrize("name", [late(n, FIRST) for n in NAMES if hasattr(tiny_model(n).config, "dropout")])
def test_noise_is_drawn_a_row_in_training_alone(name: str) -> None:
    """Equal rows part ways, another key draws anew, the same one again; in evaluation a key is not looked at."""
    model, batch = with_dropout(name), {k: np.repeat(v[:1], B, 0) for k, v in batch_for(name).items()}
    variables, keys = random_variables_for(tiny_model(name)), [jax.random.key(k) for k in (1, 1, 2)]
    train = jax.jit(lambda v, x, key: model.apply(v, x, train=True, key=key).value)
    one, same, other = (np.asarray(train(variables, batch, key)) for key in keys)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert all((one[0] != one[row]).any() for row in range(1, B))
    still = np.asarray(jax.jit(lambda v, x, key: model.apply(v, x, key=key).value)(variables, batch, keys[0]))
    want = jit_predict(tiny_model(name))(variables, batch)
    np.testing.assert_array_equal(still[..., : want.shape[-1]], want)
    np.testing.assert_array_equal(still[1:], np.broadcast_to(still[:1], still[1:].shape))


def on_meshes() -> list[Any]:
    """Every name on the hardest mesh, late ones in the slow suite; some on every mesh there, all others weekly."""
    found = []
    for name in NAMES:
        for mesh in dict.fromkeys((hardest(name), *meshes_for(name))):
            late_mesh = pytest.mark.slow if name in FIRST else pytest.mark.weekly
            marks = UPDATED[name].marks if mesh == hardest(name) else [late_mesh]
            found.append(pytest.param(name, mesh, marks=marks))
    return found


@pytest.mark.parametrize(("name", "mesh"), on_meshes())
def test_sharded_equals_unsharded(name: str, mesh: str) -> None:
    assert_same_update(on(name, mesh), name)


@pytest.mark.parametrize("name", FURTHER)
def test_an_update_is_legal_on_further_meshes(name: str) -> None:
    """Shardings are checked as a program is traced: of one row on one device, and of heads in groups under tp, too.

    What is computed elsewhere here, or weekly, is not traced again.
    """
    wide = "dp:2,tp:4" if "kv_heads" in CASES[name].fields else "tp:2,dp:4"
    experts = ["dp:2,ep:4"] if hasattr(tiny_model(name).config, "experts") else []
    for mesh, rows in (("dp:1", 1), *((mesh, B) for mesh in (wide, *experts))):
        trainer = on(name, mesh)
        batch = {k: v[:rows] for k, v in batch_for(name).items()}
        with jax.set_mesh(trainer.place.mesh):
            jax.eval_shape(trainer.update, trainer.state, trainer.put(batch))


_references: dict[str, tuple[float, dict[str, np.ndarray]]] = {}


def reference(name: str) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradient of the first update on one device."""
    if name not in _references:
        _references[name] = on(name).gradient(batch_for(name))
    return _references[name]


def assert_same_update(trainer: Trainer, name: str, rtol: float = 2e-6) -> None:
    """Loss and gradient of the first update are the reference's."""
    (loss, gradient), (want, wanted) = trainer.gradient(batch_for(name)), reference(name)
    np.testing.assert_allclose(loss, want, rtol=rtol)
    assert_gradients_close(gradient, wanted, 2e-5)


@pytest.mark.parametrize("name", LONG)
def test_accumulated_unrolled_and_rematerialised_equals_whole_on_another_mesh(name: str) -> None:
    assert_same_update(elsewhere(name), name)


@pytest.mark.weekly
@pytest.mark.parametrize("name", [n for n in NAMES if "batch_coupled" not in tiny_model(n).traits])
def test_accumulated_equals_whole_with_dropout_on(name: str) -> None:
    assert_same_update(on(name, "dp:2", 4), name, rtol=1e-6)


@pytest.mark.parametrize("name", LONG)
def test_overfits_one_batch(name: str) -> None:
    """A loss of a tenth within 80 updates; of seq2seq, which has two recurrent nets, within 120."""
    trainer = Trainer(name, lr=LR, model=tiny_model(name))
    losses = trainer.steps(1, one_batch=True)
    while losses[-1] >= 0.1 * losses[0] and len(losses) < (120 if name == "seq2seq" else 80):
        losses += trainer.steps(1, one_batch=True)
    assert losses[-1] < 0.1 * losses[0], losses[::10]


@pytest.mark.parametrize("name", LONG)
def test_resumed_equals_straight_bit_for_bit(name: str, tmp_path) -> None:
    """On the same mesh; on another, and in parts, by later losses: rounding differs. A restore compares digests."""
    trainer = on(name, hardest(name))
    trainer.steps(2)
    save(tmp_path, trainer)
    half = bits_of(trainer.state)
    later = trainer.steps(2, first=2)
    straight = bits_of(trainer.state)
    trainer.state = checkpoint.restore(str(tmp_path), 2, target_of(trainer))
    assert bits_of(trainer.state) == half
    assert trainer.steps(2, first=2) == later
    assert bits_of(trainer.state) == straight
    other = elsewhere(name)
    other.state = checkpoint.restore(str(tmp_path), 2, target_of(other))
    assert bits_of(other.state) == half
    np.testing.assert_allclose(other.steps(2, first=2), later, rtol=2e-4)


@pytest.mark.parametrize("name", [late(n, FIRST) for n in NAMES if hasattr(tiny_model(n).config, "compute")])
def test_bfloat16_is_close_to_float32(name: str) -> None:
    all_experts = {"gemma4": {"experts_per_token": 4}}.get(
        name, {}
    )  # rounding changes choices, which a norm shows in full
    model, low = tiny_model(name, **all_experts), tiny_model(name, compute="bfloat16", **all_experts)
    full, half = (numbers(jit_predict(m)(initial_variables(model), batch_for(name))) for m in (model, low))
    assert half.dtype == np.float32
    assert 0 < np.linalg.norm(half - full) < 0.03 * np.linalg.norm(full)


LAYERED = [n for n in NAMES if hasattr(tiny_model(n).config, "remat")]
CHANGES = ({"scan": False}, {"remat": "dots"}, {"remat": "full"})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("gpt", {"remat": "dots"}, marks=pytest.mark.slow),
        *(pytest.param(name, change, marks=pytest.mark.weekly) for name in LAYERED for change in CHANGES),
    ],
)
def test_scan_and_remat_change_nothing(name: str, change: dict) -> None:
    assert_same_update(on(name, **change), name)


@pytest.mark.parametrize("name", with_trait("causal"))
def test_no_token_sees_a_later_one(name: str) -> None:
    """Another token at time t leaves all earlier logits as they were, bit for bit, and changes those from t on."""
    model, batch = tiny_model(name), batch_for(name)
    variables, predict = random_variables_for(model), jit_predict(model)
    tokens, before = batch["tokens"], predict(variables, batch)
    for t in (0, 5, tokens.shape[1] - 1):
        other = tokens.copy()
        other[:, t] = (other[:, t] + 1) % model.config.vocab
        after = predict(variables, {**batch, "tokens": other})
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (np.abs(after[:, t:] - before[:, t:]).max((0, 2)) > 0).all()


@pytest.mark.parametrize("name", with_trait("cached", "language_model"))
def test_cached_decoding_equals_the_full_forward(name: str) -> None:
    model = tiny_model(name)
    variables, batch = random_variables_for(model), batch_for(name)
    full, tokens = jit_predict(model)(variables, batch), jnp.asarray(batch["tokens"])
    step = jax.jit(lambda v, tokens, cache: model.apply(v, tokens, cache=cache))
    cache, parts = model.cache(B, T), []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 12), (12, T)):
        out = step(variables, tokens[:, start:stop], cache)
        cache = out.cache
        parts.append(out.value[..., : model.config.vocab])
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", with_trait("cached", "encoder_decoder"))
def test_cached_decoding_reads_the_source_once(name: str) -> None:
    """As the full forward, in parts, in a cache with room for more, and after its rows have changed places."""
    model, batch = tiny_model(name), {k: jnp.asarray(v) for k, v in batch_for(name).items()}
    variables, tokens, full = (
        random_variables_for(model),
        batch["tokens"],
        jit_predict(model)(random_variables_for(model), batch),
    )
    step, cache, parts = jax.jit(lambda v, inputs, cache: model.apply(v, inputs, cache=cache)), model.cache(B, T), []
    rows, table = jnp.array([2, 0, 0, *range(3, B)]), model.cache_specs(B, T)
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 12), (12, T)):
        inputs = {**batch, "tokens": tokens[:, start:stop]} if start == 0 else {"tokens": tokens[:, start:stop]}
        out = step(variables, inputs, cache)
        assert jax.tree.map(lambda s: s.shape, table) == jax.tree.map(lambda x: x.shape, out.cache)
        parts, cache = [*parts, out.value[..., : model.config.vocab]], out.cache
        if start == 6:
            cache, tokens, full = beam_search.gather_cache_rows(cache, table, rows), tokens[rows], full[rows]
            parts = [part[rows] for part in parts]
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", with_trait("encoder_decoder"))
def test_padding_of_a_source_is_not_read(name: str) -> None:
    """What stands there changes nothing, bit for bit; what is a token does. A mask of ones is as none."""
    model, batch = tiny_model(name), batch_for(name)
    variables, predict = random_variables_for(model), jit_predict(model)
    before, pad = predict(variables, batch), batch["source_mask"] == 0
    other = np.where(pad, (batch["source"] + 1) % 90, batch["source"])
    np.testing.assert_array_equal(predict(variables, {**batch, "source": other}), before)
    assert (predict(variables, {**batch, "source": np.where(pad, other, (other + 1) % 90)}) != before).any((1, 2)).all()
    batch["source_mask"] = np.ones_like(batch["source_mask"])
    bare = {k: v for k, v in batch.items() if k != "source_mask"}
    np.testing.assert_allclose(predict(variables, bare), predict(variables, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", with_trait("running_stats"))
def test_running_statistics_move_in_training_only(name: str) -> None:
    model, batch = tiny_model(name), to_inputs(batch_for(name))
    variables = random_variables_for(model)
    still = jax.jit(model.apply)(variables, batch).stats
    out = jax.jit(partial(model.apply, train=True))(variables, batch, key=jax.random.key(1))
    moved = model.update_stats(out.stats, jax.tree.map(lambda x: jnp.sum(x, 0), out.metrics))
    for name, before in flatten(variables["stats"]).items():
        np.testing.assert_array_equal(flatten(still)[name], before)
        assert (flatten(moved)[name] != before).any()


@pytest.mark.parametrize("name", LONG)
def test_a_bad_update_never_exists(name: str) -> None:
    trainer, batch = on(name, hardest(name)), batch_for(name)
    trainer.steps(1)
    before = bits_of(trainer.state)
    metrics = trainer.step({**batch, "weight": batch["weight"] * np.float32("nan")})
    assert metrics["skipped"] == 1
    after = bits_of(trainer.state)
    assert {k for k in after if after[k] != before[k]} == {"step"}
    assert int(trainer.state["step"]) == 2
    assert np.isfinite(trainer.steps(1, first=2)[0])
