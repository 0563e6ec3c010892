"""What the contract tests share: each family at a tiny size, a batch for it, and a trainer on any mesh."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from configs import base
from models.spec import flatten
from train import losses, mesh, optim, step

B = 16  # rows of a batch: divisible by 8 devices, and by 2 microbatches on them

TINY: dict[str, dict[str, Any]] = {
    "mlp": dict(inputs=16, hidden=(32, 32), classes=4),
    "cnn": dict(inputs=(8, 8, 1), channels=(8, 16), hidden=(32,)),
    "rnn": dict(vocab=100, vocab_multiple=64, context=16, embed=16, width=32, depth=2, projection=16),
    "gpt": dict(vocab=100, vocab_multiple=64, context=16, width=32, depth=2, heads=8),
}
LOSS = {"mlp": "softmax", "cnn": "softmax", "rnn": "next_token", "gpt": "next_token"}
MESHES = ("dp:8", "fsdp:8", "tp:2,dp:4", "dp:2,fsdp:2,tp:2", "fsdp:2,cp:2,tp:2")


def tiny(family: str, **overrides: Any) -> models.Model:
    return models.build(family, **{**TINY[family], **overrides})


def batch_for(family: str, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    if LOSS[family] == "next_token":
        tokens = draw.integers(0, 100, (B, 17)).astype(np.int32)
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weight": np.ones((B, 16), np.float32)}
    shape, classes = ((8, 8, 1), 10) if family == "cnn" else ((16,), 4)
    name = "image" if family == "cnn" else "features"
    values = draw.normal(size=(B, *shape)).astype(np.float32)
    return {name: values, "label": draw.integers(0, classes, B).astype(np.int32), "weight": np.ones(B, np.float32)}


def inputs_of(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {k: jnp.asarray(v) for k, v in batch.items()}


@dataclass
class Trainer:
    """A family's update on a mesh of the first devices."""

    model: models.Model
    mesh_text: str = "dp:1"
    accumulate: int = 1
    lr: float = 1e-2
    optimizer: str = "adamw"
    seed: int = 0
    dtype: Any = jnp.float32
    more: dict[str, Any] = field(default_factory=dict)  # of step.Options

    def __post_init__(self) -> None:
        count = int(np.prod([int(p.split(":")[1]) for p in self.mesh_text.split(",")]))
        self.place = mesh.place_on(mesh.make_mesh(self.mesh_text, jax.devices()[:count]), self.model.specs)
        cfg = base.defaults()
        cfg.optim.name = self.optimizer
        self.tx = optim.make(cfg.optim, self.model.specs["params"])
        self.task = losses.TASKS[LOSS[self.model.family]]
        options = step.Options(dtype=self.dtype, accumulate=self.accumulate, **self.more)
        with jax.set_mesh(self.place.mesh):
            self.state = step.fresh_state(self.model, self.tx, self.place, self.seed, options)
        rate = lambda n: jnp.asarray(self.lr)  # noqa: E731
        self.update = step.make_step(self.model, self.task, self.tx, rate, self.place, options)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {k: jax.device_put(v, self.place.sharding(step.batch_axes(k, v.ndim))) for k, v in batch.items()}

    def steps(self, count: int, first: int = 0, one_batch: bool = False) -> list[float]:
        found = []
        with jax.set_mesh(self.place.mesh):
            for n in range(first, first + count):
                batch = self.put(batch_for(self.model.family, 0 if one_batch else n))
                self.state, metrics = self.update(self.state, batch)
                found.append(float(metrics["loss"]))
        return found

    def gradient(self, batch: dict[str, np.ndarray], train: bool = True) -> dict[str, np.ndarray]:
        """The gradient of the mean loss, by path, gathered."""

        def loss(params: Any, stats: Any, batch: Any) -> jax.Array:
            rows = (
                jnp.arange(B) if self.mesh_text == "dp:1" else jax.sharding.reshard(jnp.arange(B), self.place("batch"))
            )
            keys = models.row_keys(jax.random.key(7), rows)
            variables = {"params": params, "stats": stats}
            out = self.model.apply(variables, batch, train=train, key=keys, place=self.place)
            total, weight = self.task(out.value, batch)["loss"]
            return jnp.sum(total) / jnp.sum(weight)

        with jax.set_mesh(self.place.mesh):
            grads = jax.jit(jax.grad(loss))(self.state["params"], self.state["stats"], self.put(batch))
            return {k: np.asarray(v) for k, v in flatten(grads).items()}


def assert_gradients_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
    """Leaf by leaf, by norm, with a floor for leaves that hardly matter: 0.01 of the whole over sqrt(leaves)."""
    assert got.keys() == want.keys()
    whole = np.sqrt(sum(float(np.sum(np.square(g))) for g in want.values()))
    floor = 0.01 * whole / np.sqrt(len(want))
    for name, b in want.items():
        error = float(np.linalg.norm(got[name] - b))
        assert error <= tolerance * max(float(np.linalg.norm(b)), floor), f"{name}: {error} of {np.linalg.norm(b)}"
