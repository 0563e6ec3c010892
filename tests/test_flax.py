"""The border with Flax: a Canon model inside a user's module, and a user's module as a family."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import launch
import models
from models import as_flax
from models.spec import flatten
from tests.harness import batch_for, noisy
from train import mesh

NAMES = ("mlp", "cnn", "gpt", "rnn")


def main_input(name: str):
    return next(jnp.asarray(v) for k, v in batch_for(name).items() if k in ("tokens", "image", "features"))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_a_linen_module(name: str) -> None:
    """Same value from the same parameters; noise and running statistics only in training."""
    model, x = noisy(name), main_input(name)
    module = as_flax.Linen(model)
    variables = module.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(lambda s: s.shape, model.specs["params"])
    value = module.apply(variables, x)
    own = {"params": variables["params"], "stats": variables.get("batch_stats", {})}
    np.testing.assert_array_equal(value, model.apply(own, x).value)
    rngs = {"dropout": jax.random.key(1)}
    noise, moved = module.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
    assert (noise != value).any()
    before, after = flatten(variables.get("batch_stats", {})), flatten(moved.get("batch_stats", {}))
    assert before.keys() == after.keys()
    assert all((before[k] != after[k]).any() for k in before)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_an_nnx_module(name: str) -> None:
    """An NNX optimizer trains it; `eval` switches noise off."""
    module, x = as_flax.NNX(noisy(name), rngs=nnx.Rngs(0)), main_input(name)
    module.eval()
    value = module(x)
    np.testing.assert_array_equal(module(x), value)
    module.train()
    assert (module(x) != value).any()
    optimizer = nnx.Optimizer(module, optax.sgd(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        loss = lambda m: jnp.mean(jnp.square(jnp.where(m(x) > -1e29, m(x), 0)))  # noqa: E731
        found, grads = nnx.value_and_grad(loss)(module)
        optimizer.update(module, grads)
        return found

    losses = [float(step(module, optimizer)) for _ in range(8)]
    assert losses[-1] < losses[0]


class Scores(linen.Module):
    """A linear module whose loss has a part of its own."""

    classes: int

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(self.classes)(x.reshape(x.shape[0], -1))
        self.sow("losses", "size", jnp.sum(jnp.square(self.variables["params"]["Dense_0"]["kernel"])))
        return x


def foreign(name: str, **fields) -> models.Model:
    return models.build("flax", module=f"tests.test_flax:{name}", shape=(4,), classes=3, **fields)


def test_a_sown_loss_is_part_of_the_loss() -> None:
    model = foreign("Scores")
    variables = model.init(jax.random.key(0))
    out = model.apply(variables, jnp.ones((2, 4)), train=True, key=jax.random.key(1))
    total, weight = out.aux["sown"]
    np.testing.assert_allclose(total / weight, jnp.sum(jnp.square(variables["params"]["Dense_0"]["kernel"])), rtol=1e-6)


def test_metadata_name_axes_and_the_rest_goes_to_fsdp() -> None:
    model = models.build("flax", module="examples.linen_cnn:SmallCNN", shape=(8, 8, 1), classes=10)
    place = mesh.place_on(mesh.make_mesh("dp:2,fsdp:2,tp:2"), model.specs)
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
