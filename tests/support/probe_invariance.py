"""Prints digests of what must not depend on devices, processes, mesh or accumulation: run by test_invariance.

python -m tests.support.probe_invariance COORDINATOR PROCESSES PROCESS DEVICES_HERE MESH …

A mesh is one axis, as fsdp:8, on so many of the first devices. One process alone looks at no coordinator.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.knobs import OptimConfig
from data import sampler, sources
from data.images import augment
from data.text import packing, tokenizers
from data.types import ExampleSource
from models import Model, build
from models.core.layers import dropout
from models.core.spec import Outputs, Spec, zeros
from train import checkpoint
from train.sharding import device_batches, mesh
from train.tasks import SingleForwardTask, WeightedSums
from train.update import optim, step

BATCH, SEED, STEPS = 32, 5, (0, 7)
STRATEGIES = ("dp", "fsdp", "tp")


class Mask(Model):
    """A model whose value is nothing but a dropout mask, drawn as the families draw theirs."""

    @property
    def specs(self) -> dict[str, Any]:  # type: ignore[override]
        return {"params": {"bias": Spec((1,), "norm", zeros)}}

    def apply(self, variables: Any, inputs: Any, *, key: Any, place: Any, **rest: Any) -> Outputs:  # type: ignore[override]
        ones = jax.sharding.reshard(jnp.ones((inputs["id"].shape[0], 64)), place("batch width"))
        return Outputs(dropout(ones, key, 0.5, "probe", place("batch width")) + 0 * variables["params"]["bias"][None])

    def update_stats(self, stats: Any, metrics: Any) -> Any:
        return stats


class MaskCode(SingleForwardTask):
    """Sums of whole numbers, exact in float32: a row's id times a number that its mask decides."""

    output_kind, target_field, unit = "classifier", "label", ""

    def terms(self, value: jax.Array, batch: dict[str, jax.Array]) -> WeightedSums:
        code = jnp.sum((value > 0) * (jnp.arange(64) ** 2 % 101)[None], -1)
        return {"loss": (code * batch["id"], batch["weight"])}


def mask_digest(place: mesh.Placement, accumulate: int) -> list[float]:
    """The masks of two updates, as the trainer's own step draws them."""
    settings = OptimConfig(name="sgd")
    model = Mask("mask", None)
    tx = optim.make(settings, model.specs["params"])
    task, options = MaskCode(), step.StepOptions(accumulate=accumulate)
    update = step.make_step(model, task, tx, lambda n: jnp.asarray(0.0), place, options)
    shardings = step.state_shardings(model, tx, place, options)

    def start() -> Any:
        params = {"bias": jnp.zeros((1,))}
        return {
            "step": jnp.zeros((), jnp.int32),
            "seed": jnp.uint32(SEED),
            "params": params,
            "stats": {},
            "opt": tx.init(params),
            "ema": {},
            "carry": {},
        }

    state, found = jax.jit(start, out_shardings=shardings)(), []
    rows = device_batches.local_rows(place, BATCH)
    local = {"id": np.asarray(rows, np.float32) + 1, "weight": np.ones(len(rows), np.float32)}
    for _ in range(2):
        state, metrics = update(state, device_batches.to_global_batch(local, rows, BATCH, place))
        found.append(float(metrics["loss"]))
    return found


def digests(text: str, accumulations: tuple[int, ...], devices: Any = None) -> dict[str, Any]:
    """Token ids, augmented images, initial weights and dropout masks on a mesh."""
    model = build("gpt", vocab=257, context=16, width=32, depth=2, heads=8)
    place = mesh.make_placement(mesh.make_mesh(text, devices), model.specs)
    texts = sources.load("pydoc_text", "train")
    digits = sources.load("digits", "train")
    words = sampler.BatchSampler(
        (packing.WindowSource(texts, tokenizers.ByteTokenizer(), 16, SEED),), (sampler.Phase(0, BATCH),), SEED
    )
    images = augment.ImagePipeline(SEED, augment.parse("flip,crop:2"))
    pictures = sampler.BatchSampler((ExampleSource(digits),), (sampler.Phase(0, BATCH),), SEED, images)
    found: dict[str, Any] = {}
    with jax.set_mesh(place.mesh):
        rows = device_batches.local_rows(place, BATCH)
        for name, source in (("text", words), ("images", pictures)):
            for n in STEPS:
                found[f"{name} {n}"] = checkpoint.digests(
                    device_batches.to_global_batch(source.batch(n, rows), rows, BATCH, place)
                )
        key = step.stream_key(SEED, "params")
        weights = model.init(key, place.shardings(model.specs))
        found["weights"] = checkpoint.digests(weights)
        for accumulate in accumulations:
            if BATCH % (place.batch_shards * accumulate) == 0:
                found[f"masks of {accumulate}"] = mask_digest(place, accumulate)
    return found


if __name__ == "__main__":
    coordinator, processes, process, here = sys.argv[1], *map(int, sys.argv[2:5])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", here)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, processes, process)
    result = {text: digests(text, (1, 4), jax.devices()[: int(text.split(":")[1])]) for text in sys.argv[5:]}
    if process == 0:
        print("DIGESTS " + json.dumps(result))
