"""Networks carried over: a folder of the Hugging Face hub made a checkpoint, and a checkpoint made such a folder."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from data import tokenizer_writer
from errors import UsageError
from models import published
from train import begin, checkpoint, restored, run
from train.host import Host
from train.setup import Config


def take_in(cfg: Config, folder: str, workdir: str, host: Host) -> None:
    """Write a folder of the hub into a new workdir, as its checkpoint 0: parameters and tokenizer, no more.

    Raises UsageError for a workdir that has checkpoints, and as `restored.open_published`.
    """
    if checkpoint.steps(workdir):
        raise UsageError(f"{workdir} holds checkpoints already; give a folder without any")
    model = published.read_config(folder)
    blank = restored.no_text(cfg, restored.loss_of(model), getattr(model.config, "classes", None))
    opened = restored.open_published(cfg, folder, host, blank)
    setup, config = opened.setup, opened.setup.model.config
    for field in dataclasses.fields(config):
        if field.name not in ("compute", "attention", "remat", "scan"):  # those are the trainer's
            setup.cfg.model[field.name] = getattr(config, field.name)
    zero = {
        "step": np.zeros((), np.int32),
        "seed": np.zeros((), np.uint32),
        "stats": {},
        "opt": {},
        "ema": {},
        "carry": {},
    }
    state = {**jax.device_put(zero, setup.place.whole), "params": opened.variables["params"]}
    store = checkpoint.Store(workdir, keep=1, keep_best=0)
    origin = begin.Origin(0, (begin.first_phase(setup.cfg),))
    store.save(state, run.manifest_of(setup, 0, origin, [], None), setup.description)
    store.close()
    host.say(f"checkpoint 0 in {workdir}/checkpoints; to train from it: --config.init_from={workdir}")


def put_out(cfg: Config, workdir: str, n: int, to: str, host: Host) -> None:
    """Write a checkpoint as a folder of the hub, with its tokenizer; of a run with a running mean, that.

    Raises UsageError for a family or a config that has no place there, and for a folder that holds a model.
    """
    head = checkpoint.load_manifest(workdir, n)["table"].get("params/head/bias")
    blank = restored.no_text(cfg, cfg.loss, head["shape"][-1] if head else None)
    opened = restored.open_checkpoint(cfg, workdir, n, host, blank)
    published.save_pretrained(opened.setup.model, opened.variables, to)
    names = [f"{opened.setup.model.count():,} parameters"]
    if opened.setup.tokenizer is not None:
        tokenizer_writer.write(opened.setup.tokenizer, Path(to))
        names.append("its tokenizer")
    host.say(f"{opened.name}: {' and '.join(names)} in {to}")
