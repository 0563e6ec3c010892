"""A short run of the launcher, for the fixtures `finished_run` and `finished_run_copy` of conftest.py."""

import io
import json
import os
from pathlib import Path

import launch
from configs import reader
from train import checkpoint
from train.runtime import Runtime

ARGS = [
    "--config=configs/mlp.py:digits+dropout",
    "--config.train.steps=30",
    "--config.eval.every=10",
    "--config.checkpoint.every=10",
    "--config.checkpoint.keep=3",
    "--config.mesh=fsdp:4,tp:2",
    "--config.model.classes=16",
]


def train(workdir: Path, *more: str) -> int:
    return launch.main(["train", f"--workdir={workdir}", *ARGS, *more])


def runtime(**more) -> Runtime:
    return Runtime(lambda: 0.0, os.environ, io.StringIO(), **more)


def config_of(workdir: Path, step: int):
    return reader.from_json(json.dumps(checkpoint.load_manifest(str(workdir), step)["config"]))


def manifest(n: int, metrics: dict[str, float] | None = None) -> checkpoint.Manifest:
    """A minimal valid manifest."""
    empty = {"config": {}, "table": {}, "versions": {}, "mesh": {}, "history": [], "data": []}
    none = {"revision": None, "tokenizer": None, "classes": None}
    phases = [{"from_step": 0, "batch_size": 1, "weights": [1.0]}]
    return {"step": n, **empty, **none, "phases": phases, "metrics": metrics}
