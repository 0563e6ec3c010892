"""Stochastic rounding of bfloat16 parameters: unbiased, the same on any mesh, and enough to learn by small steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.core.spec import Spec, zeros
from tests.support.cases import batch_for
from tests.support.harness import Trainer
from train.sharding import mesh
from train.update.precision import cast_parameters, round_stochastically

SPECS = {"kernel": Spec((16, 8), "embed mlp", zeros, "embed"), "bias": Spec((8,), "mlp", zeros)}


def test_the_mean_of_what_is_rounded_is_the_value() -> None:
    """1 + 2^-10 lies an eighth of the way from 1 to the next bfloat16: it goes up once in eight times."""
    noise = jnp.arange(2**16, dtype=jnp.uint16)  # each of the values that noise can have
    for value in (1 + 2**-10, -(1 + 2**-10), 3e-39, 0.1):
        rounded = np.asarray(round_stochastically(jnp.full(2**16, value, jnp.float32), noise), np.float64)
        assert len(set(rounded)) == 2
        np.testing.assert_allclose(rounded.mean(), np.float64(np.float32(value)), rtol=1e-7)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 2.0**100, np.inf, -np.inf, np.nan])
def test_what_bfloat16_holds_stays(value: float) -> None:
    rounded = round_stochastically(jnp.full(3, value), jnp.array([0, 2**15, 2**16 - 1], jnp.uint16))
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), np.full(3, jnp.bfloat16(value), np.float32))


def test_the_noise_is_the_same_on_any_mesh_and_another_for_each_leaf_and_update() -> None:
    def cast(mesh_text: str, devices: int, update: int) -> dict[str, np.ndarray]:
        place = mesh.make_placement(mesh.make_mesh(mesh_text, jax.devices()[:devices]), SPECS)
        shardings = place.shardings(SPECS)
        new = {k: jax.device_put(np.full(s.shape, 0.1, np.float32), shardings[k]) for k, s in SPECS.items()}
        old = jax.tree.map(lambda x: x.astype(jnp.bfloat16), new)
        specs = jax.tree.map(lambda s: s.spec, shardings)
        with jax.set_mesh(place.mesh):
            out = jax.jit(lambda n, o: cast_parameters(n, o, jax.random.key(update), specs))(new, old)
        assert out["kernel"].sharding.is_equivalent_to(shardings["kernel"], 2)
        return {k: np.asarray(v, np.float32) for k, v in out.items()}

    one, sharded, later = cast("dp:1", 1, 0), cast("fsdp:4,tp:2", 8, 0), cast("dp:1", 1, 1)
    np.testing.assert_array_equal(one["kernel"], sharded["kernel"])
    np.testing.assert_array_equal(one["bias"], sharded["bias"])
    assert (one["kernel"] != later["kernel"]).any()
    assert (one["kernel"][0] != one["bias"]).any()


def test_small_updates_are_learnt_from_as_in_float32() -> None:
    """At a rate of 2e-5 an update is far below half of a bfloat16's last bit: rounded to the nearest, nothing moves."""
    fall = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        trainer, losses = Trainer("mlp", lr=2e-5, dtype=dtype), []
        batch = trainer.put(batch_for("mlp"))
        with jax.set_mesh(trainer.place.mesh):
            for _ in range(400):
                trainer.state, metrics = trainer.update(trainer.state, batch)
                losses.append(metrics["loss"])
        fall[dtype] = float(losses[0]) - float(losses[-1])
    assert fall[jnp.float32] > 0.02
    assert fall[jnp.bfloat16] == pytest.approx(fall[jnp.float32], rel=0.05)
