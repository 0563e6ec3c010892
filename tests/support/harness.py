"""Updates of tiny models on any mesh. Each program is compiled once per worker."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from configs.knobs import OptimConfig
from models.core.spec import flatten, initialize
from tests.support.cases import CASES, batch_for, random_variables, tiny_model
from tests.support.runs import manifest
from train import checkpoint
from train.sharding import mesh
from train.tasks import TASKS, Task
from train.update import optim, param_groups, step


@dataclass(frozen=True)
class Program:
    """An update with its placement, optimizer and shardings."""

    place: mesh.Placement
    cfg: OptimConfig
    tx: Any
    update: Callable[..., Any]
    shardings: Any  # of the state


class Programs:
    """A least-recently-used cache of programs, or of initial states on the host, by their settings."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._made: dict[Any, Any] = {}

    def clear(self) -> None:
        self._made.clear()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        key = repr(key)
        self._made[key] = found = self._made.pop(key) if key in self._made else make()
        while len(self._made) > self.limit:
            del self._made[next(iter(self._made))]
        return found


_programs, _starts = Programs(16), Programs(8)


def clear_programs() -> None:
    """Clear the cached programs: for tests that change settings outside of the cache's key."""
    _programs.clear()


@dataclass
class Trainer:
    """A model's update on a mesh of the first devices."""

    name: str  # a key of CASES
    mesh_text: str = "dp:1"
    accumulate: int = 1
    lr: float = 1e-2
    optimizer: str = "adamw"
    seed: int = 0
    dtype: Any = jnp.float32
    options: dict[str, Any] = field(default_factory=dict)  # of step.StepOptions
    model: models.Model | None = None  # None is the tiny one
    task: Task | None = None  # None is the case's
    knobs: dict[str, Any] = field(default_factory=dict)  # of the section optim

    def __post_init__(self) -> None:
        self.model = self.model or tiny_model(self.name)
        self.task = self.task or TASKS[CASES[self.name].loss]
        self.program = _programs.get(vars(self), self._compile)
        self.place, self.cfg, self.tx = self.program.place, self.program.cfg, self.program.tx
        self.update = self.program.update
        self.restart()

    def _compile(self) -> Program:
        count = int(np.prod([int(p.split(":")[1]) for p in self.mesh_text.split(",")]))
        place = mesh.make_placement(mesh.make_mesh(self.mesh_text, jax.devices()[:count]), self.model.specs)
        cfg = OptimConfig(**{"name": self.optimizer, **self.knobs})
        tx = optim.make(cfg, self.model.specs["params"])
        options = self._options(cfg)
        rate = lambda n: jnp.asarray(self.lr)  # noqa: E731
        update = step.make_step(self.model, self.task, tx, rate, place, options)
        return Program(place, cfg, tx, update, step.state_shardings(self.model, tx, place, options))

    def _options(self, cfg: Any) -> step.StepOptions:
        frozen = param_groups.freeze_mask(cfg.freeze, self.model.specs["params"])
        return step.StepOptions(dtype=self.dtype, accumulate=self.accumulate, freeze_mask=frozen, **self.options)

    def restart(self) -> None:
        """Reset to the initial state, computed on one device; it is equal on every mesh."""
        key = [self.model, self.optimizer, self.seed, self.dtype, self.options, self.knobs]
        start = _starts.get(key, self._draw)
        # a copy: the update donates its state, and must not overwrite the cached arrays
        self.state = jax.device_put(jax.tree.map(np.array, start), self.program.shardings)

    def _draw(self) -> Any:
        one = mesh.make_placement(mesh.make_mesh("dp:1", jax.devices()[:1]), self.model.specs)
        with jax.set_mesh(one.mesh):
            return jax.device_get(step.init_on_mesh(self.model, self.tx, one, self.seed, self._options(self.cfg)))

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {k: jax.device_put(v, self.place.sharding(mesh.batch_axes(k, v.ndim))) for k, v in batch.items()}

    def step(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One update -> its metrics."""
        with jax.set_mesh(self.place.mesh):
            self.state, metrics = self.update(self.state, self.put(batch))
        return {k: np.asarray(v) for k, v in metrics.items()}

    def steps(self, count: int, first: int = 0, one_batch: bool = False) -> list[float]:
        return [
            float(self.step(batch_for(self.name, 0 if one_batch else n))["loss"]) for n in range(first, first + count)
        ]

    def gradient(self, batch: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
        """The first update's loss and its gradient by path, gathered: Adam's first moment is then 1 - beta1 of it."""
        self.restart()
        metrics = self.step(batch)
        assert metrics["skipped"] == 0
        is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
        (adam,) = (x for x in jax.tree.leaves(self.state["opt"], is_leaf=is_adam) if is_adam(x))
        found = {k: np.asarray(v) / np.float32(1 - self.cfg.beta1) for k, v in flatten(adam.mu).items()}
        return float(metrics["loss"]), found


def save(folder: Path, trainer: Trainer) -> None:
    store = checkpoint.Store(str(folder), keep=2, keep_best=0)
    store.save(trainer.state, manifest(int(trainer.state["step"])), None)
    store.close()


def bits_of(state: Any) -> dict[str, bytes]:
    """The bits of each leaf, gathered."""
    return {name: np.asarray(leaf).tobytes() for name, leaf in flatten(state).items()}


def target_of(trainer: Trainer) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trainer.state)


@lru_cache(maxsize=4)
def random_variables_for(model: models.Model) -> dict[str, Any]:
    """Random variables on the device; no leaf is all 0."""
    return jax.device_put(random_variables(model))


@lru_cache(maxsize=4)
def jit_init(model: models.Model) -> Callable[..., Any]:
    """Initial variables from a key, jitted."""
    return jax.jit(partial(initialize, model.specs))


@lru_cache(maxsize=4)
def initial_variables(model: models.Model) -> dict[str, Any]:
    """Initial variables from key 0."""
    return jit_init(model)(jax.random.key(0))


@lru_cache(maxsize=4)
def jit_predict(model: models.Model) -> Callable[..., Any]:
    """The model's forward pass, jitted."""
    return jax.jit(model.predict)


def assert_gradients_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
    """Leaf by leaf, by norm, with a floor for leaves that hardly matter: 0.01 of the whole over sqrt(leaves)."""
    assert got.keys() == want.keys()
    whole = np.sqrt(sum(float(np.sum(np.square(g))) for g in want.values()))
    floor = 0.01 * whole / np.sqrt(len(want))
    for name, b in want.items():
        error = float(np.linalg.norm(got[name] - b))
        assert error <= tolerance * max(float(np.linalg.norm(b)), floor), f"{name}: {error} of {np.linalg.norm(b)}"
