"""The composition root of training: from a config to a trained model in a workdir."""

import dataclasses
from pathlib import Path

import jax
import optax
from etils import epath

from configs import reader
from configs.knobs import RunConfig
from configs.unread import unread as find_unread
from data import sampler
from errors import UsageError, raise_with, unknown
from train import checkpoint, init_from, resume, together
from train.evaluate.callbacks import find_callbacks
from train.introduction import introduce
from train.plan import flops
from train.plots import curves
from train.record import metrics, profile
from train.runtime import Runtime
from train.setup import checks, run_data
from train.setup.facts import Unread
from train.setup.setup import Setup, dataset_title, set_up
from train.tasks import with_options
from train.trainer import RunResult, Trainer, read_result
from train.update import optim, schedules, step


def train(
    config: RunConfig,
    workdir: str,
    runtime: Runtime,
    unread: Unread = find_unread,
    devices: list[jax.Device] | None = None,
    saved: RunConfig | None = None,
) -> RunResult:
    """Train in a workdir on devices (None: all), resuming from its newest restorable checkpoint.

    `unread` lists the knobs of the config that have no effect. `saved` is `saved_config(workdir)`, if it is known.
    Raises UsageError for a config that cannot run, and for a workdir of another run.
    """
    config, changes = _continue(config, saved, workdir, runtime)
    setup, data = _set_up(config, workdir, runtime, unread, devices)
    called = find_callbacks(config.eval.callbacks, setup.model)
    with setup.activate():
        tx = optim.make(config.optim, setup.model.specs["params"])
        batches = run_data.make_batches(setup, data, resume.first_phase(config))
        data.check_readable(runtime)
        update = make_update(setup, tx, mixes=batches.mixup is not None)
        if not checkpoint.steps(workdir):  # trace first, so that an error of the update leaves no folder
            checkpoint.check_dtypes(state := resume.abstract_state(setup, tx))
            jax.eval_shape(update, state, run_data.batch_shapes(setup, batches, 0))
        if result := _prepare_workdir(setup, workdir):
            return result
        with checkpoint.lock(workdir):
            together.check_shared_workdir(workdir, runtime)
            state, resume_point = resume.resume_or_init(setup, tx, workdir, data.identity, changes)
            start = resume_point.start
            if start >= config.train.steps and (resume_point.evaluated or not len(data.held_out)):
                _draw_curve(setup, workdir)
                return _complete(setup, workdir, start)
            batches = dataclasses.replace(batches, phases=resume_point.phases)
            cost = _introduce(setup, data, update, state, batches, start, workdir)
            window = profile.parse_window(config.log.profile, config.train.steps)
            if window and window[1] <= start:
                runtime.say(f"no profile: updates {config.log.profile} are already done")
            with profile.profile_steps(update, start, window, str(Path(workdir) / "profile")) as profiled_update:
                result = Trainer(setup, data, profiled_update, batches, resume_point, workdir, cost, called).run(state)
            _draw_curve(setup, workdir)
            return result


def saved_config(workdir: str) -> RunConfig | None:
    """The config of the newest readable checkpoint, or None if there is no checkpoint."""
    saved = next(iter(checkpoint.readable_manifests(workdir).values()), None)
    return None if saved is None else reader.from_manifest(saved)


def _continue(
    config: RunConfig, saved: RunConfig | None, workdir: str, runtime: Runtime
) -> tuple[RunConfig, list[str]]:
    """The config, completed by that of the workdir's checkpoints if there are any, and its changes of their schedule.

    Raises UsageError for a workdir of another run.
    """
    if config.resume not in reader.RESUME:
        raise unknown("resume", config.resume, reader.RESUME)
    saved = saved or saved_config(workdir)
    config = init_from.with_vocab_size(config, saved)
    if saved is None:
        return config, []
    changes = reader.refuse_other_run(workdir, saved, config)
    for path, digest in saved.code.items():
        if config.code.get(path, digest) != digest:
            runtime.say(f"config  {path} has changed since the checkpoints of {workdir}")
    return config, changes


def _set_up(
    config: RunConfig, workdir: str, runtime: Runtime, unread: Unread, devices: list[jax.Device] | None
) -> tuple[Setup, run_data.RunData]:
    """The checked set-up of a run, and its data. Raises one UsageError for all that is wrong with the config."""
    with raise_with([*checks.find_problems(config), *unread(config, {})]):  # reported together with any later problem
        checks.check_choices(config)
        profile.parse_window(config.log.profile, config.train.steps)
        data = run_data.load(config, runtime)
        together.check_same_data(runtime, data.identities(config))
        tokenizer = resume.find_tokenizer(config, workdir)
        setup = set_up(config, runtime, data.corpora[0], tokenizer, devices, unread=unread)
    if config.log.wandb:
        metrics.import_wandb()
    return setup, data


def make_update(setup: Setup, tx: optax.GradientTransformation, mixes: bool) -> step.Update:
    """The jitted update of a run, whose batches may mix rows. Raises UsageError for knobs that do not go together."""
    config, train = setup.config, setup.config.train
    has_extras = bool(train.label_smoothing or train.z_loss or train.class_weights or mixes)
    if train.gradient != "autodiff" and has_extras:
        extras = "train.label_smoothing, train.z_loss, train.class_weights, mixup nor cutmix"
        raise UsageError(f"train.gradient = {train.gradient!r} supports neither {extras}")
    task = with_options(setup.task, label_smoothing=train.label_smoothing, z_loss=train.z_loss)
    rate = schedules.make(config.schedule, config.optim.lr, train.steps)
    return step.make_step(setup.model, task, tx, rate, setup.place, setup.options)


def _prepare_workdir(setup: Setup, workdir: str) -> RunResult | None:
    """Make the workdir writable; if it is not and the run has made all its updates, return the run's result.

    Raises UsageError if it is not writable and updates are left.
    """
    try:
        checkpoint.prepare(workdir)
        return None
    except UsageError:
        newest = next(iter(checkpoint.readable_manifests(workdir)), 0)
        if newest < setup.config.train.steps:
            raise
        return _complete(setup, workdir, newest)  # nothing needs to be written


def _introduce(
    setup: Setup,
    data: run_data.RunData,
    update: step.Update,
    state: step.State,
    batches: sampler.BatchSampler,
    start: int,
    workdir: str,
) -> int:
    """In process 0 write the config and print the run's summary -> FLOPs of an update, 0 in the others."""
    shapes = run_data.batch_shapes(setup, batches, start)
    if jax.process_index():
        return 0
    checkpoint.write_atomic(epath.Path(workdir) / "config.json", setup.config.to_json())
    cost = _count_flops(setup, update, state, shapes)
    introduce(setup, data, batches, start, cost, workdir)
    if setup.config.log.hlo:
        profile.write_programs(update, state, shapes, Path(workdir) / "hlo")
    return cost


def _count_flops(setup: Setup, update: step.Update, state: step.State, batch: dict[str, jax.ShapeDtypeStruct]) -> int:
    """FLOPs of an update. Raises UsageError for sharding rules that the model does not take."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    try:
        return flops.count(update, shapes, batch)
    except (TypeError, ValueError) as error:
        if not setup.config.rules:
            raise
        first = str(error).splitlines()[0]
        raise UsageError(f"the rules {dict(setup.config.rules)} cannot shard this model: {first}") from error


def _complete(setup: Setup, workdir: str, steps: int) -> RunResult:
    """The result of a run that has made all its updates, and says so."""
    setup.runtime.say(
        f"{workdir} is complete: {steps:,} of {setup.config.train.steps:,} updates. "
        f"To continue: --config.train.steps={2 * steps} --config.resume=extend"
    )
    return read_result(workdir, steps)


def _draw_curve(setup: Setup, workdir: str) -> None:
    """Draw the loss curve of a local workdir, and print its path and the newest checkpoint."""
    if jax.process_index() or "://" in workdir:
        return
    try:
        title = f"{setup.model.family} on {dataset_title(setup.config)}"
        picture = curves.draw_loss(workdir, title, setup.task.unit)
        where = f"curve in {picture}, " if picture else ""
    except Exception as error:  # a plotting error must not fail a run
        where = f"no curve drawn: {checkpoint.reason(error)}; "
    setup.runtime.say(f"{where}checkpoint {checkpoint.steps(workdir)[-1]:,} in {workdir}/checkpoints")
