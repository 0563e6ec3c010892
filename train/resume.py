"""How a run starts: from a fresh state, another run's parameters, or its own newest restorable checkpoint."""

import dataclasses
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import optax

from configs import reader
from configs.knobs import RunConfig
from data import sampler
from data.files import expand_home
from data.text import tokenizer_reader, tokenizers
from errors import UsageError
from models import pretrained
from train import checkpoint, companions, init_from, loop
from train.setup.setup import Setup, dataset_names
from train.update import step


@dataclass(frozen=True)
class ResumePoint:
    """The point at which a run starts or resumes."""

    start: int  # finished updates
    phases: tuple[sampler.Phase, ...]
    history: list[dict[str, Any]] = field(default_factory=list)  # schedule changes, each with its first update
    evaluated: bool = True  # whether the checkpoint was evaluated when it was saved
    skipped: int = 0  # consecutive newest updates that were not finite under the current schedule
    files: dict[str, str] = field(default_factory=dict)  # companion files of a pretrained model (train/companions.py)


def first_phase(config: RunConfig) -> sampler.Phase:
    """The phase that the config describes, starting at update 0. Raises UsageError for invalid data.weights."""
    weights = config.data.weights or (1.0,) * len(dataset_names(config))
    if len(weights) != len(dataset_names(config)) or min(weights) < 0 or not sum(weights):
        raise UsageError(
            f"data.weights = {weights} must give each data set of {config.data.name!r} a weight of 0 or more"
        )
    least = min(w for w in weights if w) / sum(weights)
    if least < sampler.MIN_WEIGHT:
        raise UsageError(
            f"data.weights = {weights}: each weight's share of the sum must be 0 or at least {sampler.MIN_WEIGHT}, "
            f"not {least:.1g}"
        )
    return sampler.Phase(0, config.train.batch, tuple(map(float, weights)))


def resume_or_init(
    setup: Setup, tx: optax.GradientTransformation, workdir: str, identity: list[dict[str, Any]], changes: list[str]
) -> tuple[step.State, ResumePoint]:
    """The state to start from, and its ResumePoint.

    `changes` lists this run's changes to the schedule. Raises UsageError if data or batch differ from the checkpoint's,
    and RuntimeError if the run had stopped because its updates were not finite.
    """
    config = setup.config
    phase = first_phase(config)
    if not checkpoint.steps(workdir):
        state = step.init_on_mesh(setup.model, tx, setup.place, config.seed, setup.options)
        if config.init_from:
            state, report = init_from.load(
                state, setup.model, tx, config, setup.tokenizer_fingerprint, setup.runtime.say
            )
            setup.runtime.say(str(report))
        return state, ResumePoint(
            0, (phase,), files=companions.from_source(config.init_from, setup.tokenizer_fingerprint)
        )

    target = abstract_state(setup, tx)

    def restore(n: int) -> step.State:
        checkpoint.load_tokenizer(workdir, n)  # raises CorruptCheckpoint if its tokenizer is missing
        return checkpoint.restore(workdir, n, target)

    found, state = checkpoint.first_restorable(
        workdir, checkpoint.select(workdir, "latest"), restore, setup.runtime.say
    )
    checkpoint.quarantine(workdir, newer_than=found)
    manifest = checkpoint.load_manifest(workdir, found)
    if manifest["data"] != identity:
        raise UsageError(
            f"the data of {workdir} has changed: it was {manifest['data']}, it is {identity}; restore the old data, "
            f"or start from these parameters in another --workdir with --config.init_from={workdir}"
        )
    reader.say_changes(manifest.get("named_code") or {}, setup.runtime.say)
    phases = sampler.phases_from_json(manifest["phases"])
    if config.train.stateful and phases[-1].batch_size != phase.batch_size:
        raise UsageError(
            f"train.batch = {phase.batch_size}: with train.stateful it must stay {phases[-1].batch_size}, as in the "
            f"checkpoint"
        )
    if (phases[-1].batch_size, phases[-1].weights) != (phase.batch_size, phase.weights):
        phases = (*phases, dataclasses.replace(phase, from_step=found))
    history = manifest.get("history", []) + ([{"from_step": found, "changes": changes}] if changes else [])
    setup.runtime.say(f"resuming {workdir} from checkpoint {found:,}")
    skipped = 0 if changes else manifest.get("skipped", 0)
    if loop.has_stalled(skipped, found, config.train.max_skipped, config.train.steps):
        raise RuntimeError(
            f"{workdir} has stopped at update {found}: the last {skipped} updates were not finite and changed no "
            f"parameter. Lower optim.lr and add --config.resume=extend, or set optim.clip_norm in another --workdir"
        )
    return state, ResumePoint(
        found, phases, history, manifest["metrics"] is not None, skipped, manifest.get("files") or {}
    )


def abstract_state(setup: Setup, tx: optax.GradientTransformation) -> step.State:
    """The state as ShapeDtypeStructs with this run's shardings: the target of a restore."""
    shapes = jax.eval_shape(partial(step.init_state, setup.model, tx, setup.config.seed, setup.options))
    shardings = step.state_shardings(setup.model, tx, setup.place, setup.options)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def find_tokenizer(config: RunConfig, workdir: str) -> dict[str, Any] | None:
    """The description of the tokenizer that existing parameters use, or None.

    It comes from this run's checkpoints, else from `init_from` if its tokenizer is of the config's kind.
    """
    for n in checkpoint.readable_manifests(workdir):
        with suppress(checkpoint.CorruptCheckpoint):
            return checkpoint.load_tokenizer(workdir, n)
    if config.init_from is None:
        return None
    name = expand_home(config.init_from)
    if pretrained.is_pretrained(name):
        own = config.data.tokenizer == "subword"  # without a file name: the folder's tokenizer
        return tokenizer_reader.read_tokenizer(name).description() if own else None
    workdir, steps = init_from.candidate_checkpoints(name)
    read = partial(checkpoint.load_tokenizer, workdir)
    # `init_from.load` reports the corrupt ones
    _, description = checkpoint.first_restorable(workdir, steps, read, lambda line: None)
    return (
        description if description and description["kind"] == tokenizers.tokenizer_kind(config.data.tokenizer) else None
    )
