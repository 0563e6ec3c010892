"""The border with Flax: a Canon model inside a user's module, and a user's module as a family."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import launch
import models
from errors import UsageError
from models import as_flax
from models.core.spec import flatten
from tests.support.cases import batch_for, tiny_model, with_dropout
from train.sharding import mesh

pytestmark = pytest.mark.usefixtures("no_plots")

NAMES = ("mlp", "cnn", "gpt", "rnn")


def main_input(name: str):
    return next(jnp.asarray(v) for k, v in batch_for(name).items() if k in ("tokens", "image", "features"))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_a_linen_module(name: str) -> None:
    """Same value from the same parameters; noise and running statistics only in training."""
    model, x = with_dropout(name), main_input(name)
    module = as_flax.Linen(model)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(lambda s: s.shape, model.specs["params"])

    @jax.jit
    def all_of(variables, key):
        own = {"params": variables["params"], "stats": variables.get("batch_stats", {})}
        noise, moved = module.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return module.apply(variables, x), model.apply(own, x).value, noise, moved

    value, want, noise, moved = all_of(variables, jax.random.key(1))
    np.testing.assert_array_equal(value, want)
    assert (noise != value).any()
    before, after = flatten(variables.get("batch_stats", {})), flatten(moved.get("batch_stats", {}))
    assert before.keys() == after.keys()
    assert all((before[k] != after[k]).any() for k in before)


@nnx.jit
def value_of(module: nnx.Module, x: jax.Array) -> jax.Array:
    return module(x)


@pytest.mark.parametrize("name", ["mlp", "gpt", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cnn", "rnn"))])
def test_a_model_is_an_nnx_module(name: str) -> None:
    """An NNX optimizer trains it; `eval` switches noise off."""
    module, x = as_flax.NNX(with_dropout(name), rngs=nnx.Rngs(0)), main_input(name)
    module.eval()
    still = np.asarray(value_of(module, x))
    np.testing.assert_array_equal(value_of(module, x), still)
    module.train()
    optimizer = nnx.Optimizer(module, optax.sgd(1e-2), wrt=nnx.Param)

    def size(value):
        return jnp.mean(jnp.square(jnp.where(value > -1e29, value, 0)))

    @nnx.jit
    def step(module, optimizer):
        def loss(module):
            value = module(x)
            return size(value), value

        grads, value = nnx.grad(loss, has_aux=True)(module)
        optimizer.update(module, grads)
        return value

    noise, *_ = (np.asarray(step(module, optimizer)) for _ in range(8))
    assert (noise != still).any()
    module.eval()
    assert size(value_of(module, x)) < size(still)


class Scores(linen.Module):
    """A linear module whose loss has a part of its own."""

    classes: int

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(self.classes)(x.reshape(x.shape[0], -1))
        self.sow("losses", "size", jnp.sum(jnp.square(self.variables["params"]["Dense_0"]["kernel"])))
        return x


def foreign(name: str, **fields) -> models.Model:
    return models.build("flax", module=f"tests.models.test_flax:{name}", shape=(4,), classes=3, **fields)


def test_a_sown_loss_is_part_of_the_loss() -> None:
    model = foreign("Scores")
    variables = model.init(jax.random.key(0))
    out = model.apply(variables, jnp.ones((2, 4)), train=True, key=jax.random.key(1))
    total, weight = out.aux_losses["sown"]
    np.testing.assert_allclose(total / weight, jnp.sum(jnp.square(variables["params"]["Dense_0"]["kernel"])), rtol=1e-6)


def test_metadata_name_axes_and_the_rest_goes_to_fsdp() -> None:
    model = models.build("flax", module="examples.linen_cnn:SmallCNN", shape=(8, 8, 1), classes=10)
    place = mesh.make_placement(mesh.make_mesh("dp:2,fsdp:2,tp:2"), model.specs)
    specs = {k: tuple(place(s.axes)) for k, s in flatten(model.specs["params"]).items()}
    assert specs["Dense_0/kernel"] == ("fsdp", "tp")
    assert specs["Conv_1/kernel"] == (None, None, None, "fsdp")
    assert specs["Dense_1/bias"] == (None,)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--config.model.module=examples.linen_cn:SmallCNN"], "examples.linen_cn"),
        (["--config.model.module=examples.linen_cnn:SmalCNN"], "'SmallCNN'"),
        (["--config.model.module=examples.linen_cnn"], "package.file:ClassName"),
        (["--config.model.module=optax:GradientTransformation"], "neither a flax.linen.Module nor"),
        (["--config.model.args.hiden=3"], "'hidden'"),
        (["--config.model.args.hidden=wide"], "SmallCNN"),
        (["--config.data.name=moons"], "SmallCNN"),
        (["--config.loss=next_token"], "next_token"),
    ],
)
def test_a_module_that_does_not_fit_gets_one_line(args: list[str], says: str, tmp_path, capsys) -> None:
    argv = ["train", f"--workdir={tmp_path}/w", "--config=configs/flax.py:linen", *args]
    assert launch.main(argv) == launch.USAGE
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert not (tmp_path / "w").exists()


class Fixed(linen.Module):
    """Returns what `gives` asks for: scores, several things, an error of its own, noise of a stream."""

    gives: str = "few"

    @linen.compact
    def __call__(self, x, train=False):
        assert self.gives != "error", "wants images"
        if self.gives == "nothing":
            return x[:, :3]
        if self.gives == "noise" or (self.gives == "other" and train):
            x = x + jax.random.normal(self.make_rng("dropout" if self.gives == "noise" else "other"), x.shape)
        if self.gives == "sown":
            self.sow("seen", "mean", jnp.mean(x))
        x = linen.Dense(2 if self.gives == "few" else 3)(x)
        return (x, x) if self.gives == "two" else x


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        ("few", "Fixed returns shape (1, 2); it must be (1, 3)"),
        ("two", "Fixed returns a tuple; it must return one array"),
        ("nothing", "Fixed has no parameters"),
        ("error", "Fixed cannot be built with gives='error' and run on (1, 4): wants images"),
        ("other", "Fixed draws from a stream that model.streams = ('dropout',) lacks: add other"),
    ],
)
def test_a_module_is_tried_when_it_is_built(gives: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        foreign("Fixed", args={"gives": gives}).specs  # noqa: B018
    assert str(refused.value) == says


@pytest.mark.parametrize("wanted", [{"classes": 3}, {"outputs": 3}, {"vocab": 3}])
def test_the_shape_of_a_value_goes_by_what_it_predicts(wanted: dict[str, int]) -> None:
    model = models.build("flax", module="tests.models.test_flax:Fixed", args={"gives": "all"}, shape=(5, 4), **wanted)
    if "vocab" in wanted:
        assert model.predict(model.init(jax.random.key(0)), jnp.ones((2, 5, 4))).shape == (2, 5, 3)
    else:
        with pytest.raises(UsageError, match=r"returns shape \(1, 5, 3\); it must be \(1, 3\)"):
            model.specs  # noqa: B018


def test_what_is_sown_is_not_kept() -> None:
    model = foreign("Fixed", args={"gives": "sown"})
    variables = model.init(jax.random.key(0))
    assert set(variables) == {"params"}
    assert not model.apply(variables, jnp.ones((2, 4)), train=True, key=jax.random.key(1)).stats


def test_noise_that_is_always_drawn_is_fixed_in_use() -> None:
    model = foreign("Fixed", args={"gives": "noise"})
    variables, x = model.init(jax.random.key(0)), jnp.ones((2, 4))
    np.testing.assert_array_equal(model.predict(variables, x), model.predict(variables, x))


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_a_modules_noise_follows_the_key_in_training_only(name: str) -> None:
    model, x = tiny_model(name), main_input(name)
    variables = model.init(jax.random.key(0))
    for train in (True, False):
        run = jax.jit(lambda key, train=train: model.apply(variables, x, train=train, key=key).value)
        one, two = (np.asarray(run(jax.random.key(n))) for n in (1, 2))
        assert (one != two).any() == train


def test_an_nnx_module_of_ours_writes_its_statistics_back() -> None:
    module, x = as_flax.NNX(with_dropout("cnn"), rngs=nnx.Rngs(0)), main_input("cnn")
    values = lambda: [np.asarray(v) for v in jax.tree.leaves(nnx.state(module, nnx.BatchStat))]  # noqa: E731
    before = values()
    assert before
    value_of(module, x)
    after = values()
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    module.eval()
    value_of(module, x)
    assert all((a == b).all() for a, b in zip(after, values(), strict=True))


class Layer(nnx.Module):
    """A linear layer with noise."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))
        self.linear = nnx.Linear(width, width, kernel_init=kernel, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(self.linear(x))


class Stack(nnx.Module):
    """Scanned layers, a table, and noise of the caller's."""

    def __init__(self, classes: int, depth: int = 3, *, rngs: nnx.Rngs):
        named = {nnx.PARTITION_NAME: "layers"}
        make = nnx.vmap(lambda rngs: Layer(4, rngs=rngs), in_axes=(0,), out_axes=0, transform_metadata=named)
        self.layers = nnx.split_rngs(splits=depth)(make)(rngs)
        self.table = nnx.Variable(jnp.arange(4.0))
        self.dropout = nnx.Dropout(0.5)
        self.head = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, x, *, rngs=None):
        run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(self.dropout(run(x + self.table[...][None], self.layers), rngs=rngs))


class Heir(Stack):
    """Built as its parent."""


class Unseeded(nnx.Module):
    """Draws nothing."""

    def __init__(self, classes: int):
        self.kernel = nnx.Param(jnp.ones((4, classes)))

    def __call__(self, x):
        return x @ self.kernel[...]


def test_an_nnx_module_may_stack_its_layers() -> None:
    model, x = foreign("Heir", args={"depth": 2}), jnp.ones((2, 4))
    kernel, bias = (flatten(model.specs["params"])[f"layers/linear/{n}"] for n in ("kernel", "bias"))
    assert (kernel.shape, kernel.axes, kernel.fan_in) == ((2, 4, 4), "layers embed mlp", "embed")
    assert bias.fan_in == ""
    variables = model.init(jax.random.key(0))
    first, second = variables["params"]["layers"]["linear"]["kernel"]
    assert (first != second).any()
    np.testing.assert_array_equal(variables["stats"]["state"]["table"], jnp.arange(4.0))
    run = jax.jit(lambda key: model.apply(variables, x, train=True, key=key).value)
    one, two = (np.asarray(run(jax.random.key(n))) for n in (1, 2))
    assert (one != two).any()
    np.testing.assert_array_equal(model.predict(variables, x), model.predict(variables, x))


def test_an_nnx_module_may_draw_nothing() -> None:
    model = foreign("Unseeded")
    np.testing.assert_array_equal(model.predict(model.init(jax.random.key(0)), jnp.ones((2, 4))), 4 * jnp.ones((2, 3)))


class Bare(nnx.Module):
    """Holds an array that is no variable."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = jnp.arange(4.0)
        self.linear = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(x + self.table[None])


def test_a_bare_array_is_refused() -> None:
    with pytest.raises(UsageError, match="Bare holds a bare array"):
        foreign("Bare").specs  # noqa: B018


class MaskedLinear(linen.Module):
    """A linear module that is built with a dict and takes a mask."""

    classes: int
    opts: dict
    pair: tuple

    @linen.compact
    def __call__(self, x, mask=None):
        if mask is not None:
            x = x * mask[:, :, None]
        return linen.Dense(self.classes, use_bias=self.opts["bias"]["use"])(x.reshape(x.shape[0], -1))


def test_a_dict_reaches_a_module_as_a_dict_and_a_tuple_as_a_tuple() -> None:
    args = {"opts": {"bias": {"use": False}}, "pair": (("a", 1),)}
    model = models.build("flax", module="tests.models.test_flax:MaskedLinear", args=args, shape=(2, 4), classes=3)
    assert set(flatten(model.specs["params"])) == {"Dense_0/kernel"}
    assert dict(model.config.args)["pair"] == (("a", 1),)


def test_a_module_whose_call_names_the_mask_gets_it() -> None:
    args = {"opts": {"bias": {"use": True}}, "pair": ()}
    model = models.build("flax", module="tests.models.test_flax:MaskedLinear", args=args, shape=(2, 4), classes=3)
    variables, x = model.init(jax.random.key(0)), jnp.ones((2, 2, 4))
    hidden = model.predict(variables, {"features": x, "mask": jnp.zeros((2, 2))})
    np.testing.assert_array_equal(hidden, jnp.zeros((2, 3)))
    assert (model.predict(variables, x) != hidden).any()


def test_a_modules_parameters_are_drawn_at_once(monkeypatch) -> None:
    model, calls, init = tiny_model("linen"), [], linen.Module.init
    model.specs  # noqa: B018
    monkeypatch.setattr(linen.Module, "init", lambda *args, **kwargs: calls.append(1) or init(*args, **kwargs))
    model.init(jax.random.key(0))
    assert len(calls) == 1


class Scanned(linen.Module):
    """Layers under linen.scan, their kernels' axes named."""

    classes: int

    @linen.compact
    def __call__(self, x):
        kernel = linen.with_partitioning(linen.initializers.lecun_normal(), ("embed", "mlp"))
        named = {linen.PARTITION_NAME: "layers"}
        stack = linen.scan(
            lambda layer, x, _: (x + layer(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params=named,
        )
        x, _ = stack(linen.Dense(4, kernel_init=kernel), x, None)
        return linen.Dense(self.classes)(linen.LayerNorm()(x))


def test_vectors_and_stacks_are_not_contracted() -> None:
    found = {name: (spec.axes, spec.fan_in) for name, spec in flatten(foreign("Scanned").specs["params"]).items()}
    assert [fan_in for axes, fan_in in found.values() if axes == "layers embed mlp"] == ["embed"]
    assert {fan_in for name, (_, fan_in) in found.items() if not name.endswith("kernel")} == {""}
