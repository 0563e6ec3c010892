"""The composition root: from a config to a trained, restored, evaluated or sampled model."""

import dataclasses
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
from etils import epath

import models
from data import augment, evaluation, plan, sources, tokenizers
from errors import UsageError, unknown
from models import Model
from models.spec import abstract, flatten
from train import checkpoint, evaluate, feed, flops, loop, losses, mesh, metrics, optim, plots, sample, step, summary
from train.host import Host

Config = Any  # an ml_collections ConfigDict with the knobs of configs/base.py
PRECISIONS = {  # -> dtype of activations, dtype of parameters, of f32 products
    "f32": ("float32", jnp.float32, "highest"),
    "bf16": ("bfloat16", jnp.float32, "default"),
    "bf16_params": ("bfloat16", jnp.bfloat16, "default"),
}


@dataclass(frozen=True)
class Setup:
    """What a config means on this machine: the model, its task, its placement."""

    cfg: Config
    host: Host
    model: Model
    task: losses.Task
    place: mesh.Placement
    dtype: Any
    tokenizer: tokenizers.Tokenizer | None

    @property
    def context(self) -> int | None:
        """Tokens a row, of a language model."""
        return self.model.config.context if self.tokenizer else None

    @property
    def prepare(self) -> augment.Images:
        """What happens to images that are evaluated."""
        return augment.Images(self.cfg.seed, (), self.cfg.data.mean, self.cfg.data.deviation)


def load_source(cfg: Config, host: Host, name: str, split: str) -> sources.Source:
    """A source of the config's data section."""
    return sources.load(name, split, field=cfg.data.field, data_dir=host.environ.get("TFDS_DATA_DIR"))


def names_of(cfg: Config) -> list[str]:
    """The data sets of a config: one, or the parts of a mixture."""
    return [n.strip() for n in cfg.data.name.split(",")]


def make_tokenizer(cfg: Config, host: Host) -> tokenizers.Tokenizer:
    """The tokenizer of a config; `char` reads every split, so that held-out text can be told."""
    if cfg.data.tokenizer != "char":
        return tokenizers.make(cfg.data.tokenizer, ())
    corpus: list[str] = []
    for name in names_of(cfg):
        for split in sources.splits_of(name, host.environ.get("TFDS_DATA_DIR")):
            source = load_source(cfg, host, name, split)
            corpus += source.documents if isinstance(source, sources.Texts) else ()
    return tokenizers.make("char", corpus)


def set_up(
    cfg: Config,
    host: Host,
    example: sources.Source,
    tokenizer: dict[str, Any] | None,
    devices: list[jax.Device] | None = None,
) -> Setup:
    """Model, task and placement (on all devices where None) for a config and the kind of its data.

    `tokenizer` is a checkpoint's description; None makes one as the config says.

    Raises UsageError for whatever does not fit together.
    """
    if cfg.train.precision not in PRECISIONS:
        raise unknown("precision", cfg.train.precision, PRECISIONS)
    if cfg.loss not in losses.TASKS:
        raise unknown("loss", cfg.loss, losses.TASKS)
    if not 0 <= cfg.seed < 2**32:
        raise UsageError(f"seed must lie between 0 and 2^32 - 1, not {cfg.seed}")
    compute, dtype, precision = PRECISIONS[cfg.train.precision]
    jax.config.update("jax_default_matmul_precision", precision)

    text = isinstance(example, sources.Texts)
    if text != (cfg.loss == "next_token"):
        kind = "text, for loss next_token" if text else "labelled examples, for loss softmax or quadratic"
        raise UsageError(f"data set {cfg.data.name!r} holds {kind}; the config has loss {cfg.loss!r}")
    made = (tokenizers.restore(tokenizer) if tokenizer else make_tokenizer(cfg, host)) if text else None
    fields = {k: v for k, v in cfg.model.items() if k not in ("family", "size")}
    if isinstance(example, sources.Examples):
        facts = {"classes": example.classes}
    else:
        facts = {"vocab": made.vocab if made else 0}
    model = _build(cfg, fields, {**facts, "compute": compute, "remat": cfg.train.remat, "scan": cfg.train.scan})
    if ("language_model" in model.traits) != text:
        raise UsageError(f"family {cfg.model.family!r} cannot learn from {cfg.data.name!r} by loss {cfg.loss!r}")
    for name, value in facts.items():
        if getattr(model.config, name) < value:
            raise UsageError(f"model.{name} = {getattr(model.config, name)} is too small for the data's {value}")
    place = mesh.place_on(mesh.make_mesh(cfg.mesh, devices), model.specs, cfg.rules.to_dict())
    jax.set_mesh(place.mesh)
    return Setup(cfg, host, model, losses.TASKS[cfg.loss], place, dtype, made)


def _build(cfg: Config, fields: dict[str, Any], defaults: dict[str, Any]) -> Model:
    """The model, with what the data and the precision say where neither config nor size does."""
    family = cfg.model.family
    if family not in models.FAMILIES:
        raise unknown("family", family, models.FAMILIES)
    module = models.FAMILIES[family]
    known = {f.name for f in dataclasses.fields(module.Config)}
    if cfg.train.remat != "none" and "remat" not in known:
        raise UsageError(f"train.remat = {cfg.train.remat!r}: family {family!r} has no stacked layers to recompute")
    given = {*fields, *module.SIZES.get(cfg.model.size, {})}
    return models.build(
        family, cfg.model.size, **fields, **{k: v for k, v in defaults.items() if k in known and k not in given}
    )


# Training


def train(cfg: Config, config_json: str, workdir: str, host: Host) -> str | None:
    """Train in a workdir, from its newest good checkpoint if it has one -> the signal that ended it early, or None."""
    corpora = [load_source(cfg, host, name, cfg.data.split) for name in names_of(cfg)]
    held_out = load_source(cfg, host, names_of(cfg)[0], cfg.eval.split)
    setup = set_up(cfg, host, corpora[0], None)
    feed.check_batch(cfg.train.batch, cfg.train.accumulate, setup.place)
    check_values(cfg)
    tx = optim.make(cfg.optim, setup.model.specs["params"])
    rate = optim.schedule(cfg.schedule, cfg.optim.lr, cfg.train.steps)
    batches = plan.Plan(_corpora(setup, corpora), (_first_phase(cfg),), cfg.seed, _augment(cfg))
    identity = [source.identity for source in corpora]

    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    with checkpoint.lock(workdir):
        state, start, phases = _begin(setup, tx, workdir, identity)
        batches = dataclasses.replace(batches, phases=phases)
        if start >= cfg.train.steps:
            host.say(
                f"{workdir} is complete: {start:,} of {cfg.train.steps:,} updates. "
                f"To go on: --config.train.steps={2 * start} --config.resume=extend"
            )
            return None
        if jax.process_index() == 0:
            (epath.Path(workdir) / "config.json").write_text(config_json)
        update = step.make_step(setup.model, setup.task, tx, rate, setup.place, setup.dtype, cfg.train.accumulate)
        _introduce(setup, corpora, held_out, update, state, batches, start, workdir)
        return _train(setup, update, state, batches, start, held_out, workdir, identity)


LEAST = {  # of knobs that count something
    1: (
        *("train.steps", "log.every", "data.prefetch", "eval.every", "eval.batch", "eval.limit"),
        *("checkpoint.every", "checkpoint.keep"),
    ),
    0: ("checkpoint.keep_best", "data.workers", "train.max_skipped"),
}


def check_values(cfg: Config) -> None:
    """Hold the numbers of a config to their ranges. Raises UsageError that names key, value and range."""
    for least, keys in LEAST.items():
        for key in keys:
            section, name = key.split(".")
            value = cfg[section][name]
            if value is not None and value < least:
                raise UsageError(f"config key {key!r} must be {least} or more{_or_none(key)}, not {value}")
    if cfg.data.deviation <= 0:
        raise UsageError(f"config key 'data.deviation' must be positive, not {cfg.data.deviation}")


def _or_none(key: str) -> str:
    return ", or None" if key in ("eval.every", "eval.batch", "eval.limit", "checkpoint.every") else ""


def _first_phase(cfg: Config) -> plan.Phase:
    """The phase that the config describes, from update 0 on."""
    weights = cfg.data.weights or (1.0,) * len(names_of(cfg))
    if len(weights) != len(names_of(cfg)) or min(weights) < 0 or not sum(weights):
        raise UsageError(f"data.weights = {weights} must give each of {cfg.data.name!r} a share of 0 or more")
    return plan.Phase(0, cfg.train.batch, tuple(map(float, weights)))


def _corpora(setup: Setup, corpora: list[sources.Source]) -> tuple[plan.Corpus, ...]:
    made: list[plan.Corpus] = []
    kinds = {(type(s).__name__, getattr(s, "classes", None)) for s in corpora}
    if len(kinds) > 1:
        what = " and ".join(f"{kind}{f' of {n} classes' if n else ''}" for kind, n in sorted(kinds, key=str))
        raise UsageError(f"data.name = {setup.cfg.data.name!r} is no mixture of one kind: it has {what}")
    for source in corpora:
        if isinstance(source, sources.Examples):
            made.append(plan.ExampleCorpus(source))
        else:
            assert setup.tokenizer is not None
            assert setup.context is not None
            made.append(plan.WindowCorpus(source, setup.tokenizer, setup.context, setup.cfg.seed))
    return tuple(made)


def _augment(cfg: Config) -> augment.Images:
    return augment.Images(cfg.seed, augment.parse(cfg.data.augment), cfg.data.mean, cfg.data.deviation)


def _begin(
    setup: Setup, tx: optax.GradientTransformation, workdir: str, identity: list[dict[str, Any]]
) -> tuple[step.State, int, tuple[plan.Phase, ...]]:
    """The state to go on from, its step, and the phases: fresh, or of the newest good checkpoint."""
    cfg = setup.cfg
    phase = _first_phase(cfg)
    if not checkpoint.steps(workdir):
        return step.fresh_state(setup.model, tx, setup.place, cfg.seed, setup.dtype), 0, (phase,)

    target = _target(setup, tx)
    read = partial(checkpoint.restore, workdir, target=target)
    found, state = checkpoint.first_good(workdir, checkpoint.select(workdir, "latest"), read, setup.host.say)
    checkpoint.set_aside(workdir, newer_than=found)
    manifest = checkpoint.load_manifest(workdir, found)
    if manifest["data"] != identity:
        raise UsageError(f"the data of {workdir} has changed: it was {manifest['data']}, it is {identity}")
    phases = plan.phases_from(manifest["phases"])
    if (phases[-1].batch_size, phases[-1].weights) != (phase.batch_size, phase.weights):
        phases = (*phases, dataclasses.replace(phase, from_step=found))
    setup.host.say(f"resuming {workdir} from checkpoint {found:,}")
    return state, found, phases


def _target(setup: Setup, tx: optax.GradientTransformation) -> step.State:
    shapes = jax.eval_shape(partial(step.init_state, setup.model, tx, setup.cfg.seed, setup.dtype))
    shardings = step.state_shardings(setup.model, tx, setup.place, setup.dtype)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _introduce(
    setup: Setup,
    corpora: list[sources.Source],
    held_out: sources.Source,
    update: Callable[..., Any],
    state: step.State,
    batches: plan.Plan,
    start: int,
    workdir: str,
) -> None:
    if jax.process_index():
        return
    cfg, host, model = setup.cfg, setup.host, setup.model
    if cfg.log.table:
        host.say(*summary.table(model, setup.place, setup.dtype), "")
    rows = batches.phase(start).batch_size
    shapes = {k: (v.shape, v.dtype) for k, v in batches.batch(start, [0]).items()}
    batch = {
        k: jax.ShapeDtypeStruct((rows, *s[1:]), d, sharding=setup.place.sharding(step.batch_axes(len(s))))
        for k, (s, d) in shapes.items()
    }
    cost = flops.count(
        update, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state), batch
    )
    size = ", ".join(f"{c.identity['name']} ({len(c):,} {'documents' if isinstance(c, sources.Texts) else 'examples'}"
                     f"{f', {len(k) * k.context:,} tokens' if isinstance(k, plan.WindowCorpus) else ''})"
                     for c, k in zip(corpora, batches.corpora, strict=True))  # fmt: skip
    size_name = f", size {cfg.model.size}" if cfg.model.size else ""
    coupled = "; batch_coupled: accumulation changes its statistics" if "batch_coupled" in model.traits else ""
    host.say(
        f"model   {model.family}{size_name}: {model.count():,} parameters, {cfg.train.precision}{coupled}",
        f"data    {size}, split {cfg.data.split}; held out: {cfg.eval.split} ({len(held_out):,})",
        f"batch   {rows:,} rows an update, {cfg.train.accumulate} microbatch(es); {cfg.train.steps:,} updates in all",
        f"mesh    {summary.mesh_line(setup.place)}",
        f"cost    {summary.quantity(cost, 'FLOP')} an update",
        f"files   {workdir}/{{config.json, metrics.jsonl, events/, plots/, checkpoints/}}",
        "",
    )


def _train(
    setup: Setup,
    update: Callable[..., Any],
    state: step.State,
    batches: plan.Plan,
    start: int,
    held_out: sources.Source,
    workdir: str,
    identity: list[dict[str, Any]],
) -> str | None:
    cfg, host, main = setup.cfg, setup.host, jax.process_index() == 0
    recorder = metrics.Recorder(workdir, host) if main else metrics.Nothing()
    store = checkpoint.Store(workdir, cfg.checkpoint.keep, cfg.checkpoint.keep_best)
    exam = evaluation.exam(held_out, setup.tokenizer, setup.context, setup.prepare)
    examine = evaluate.make_examiner(setup.model, setup.task, setup.place)
    size = lambda n: batches.phase(n).batch_size  # noqa: E731
    limits = cfg.log.every, cfg.train.steps, size, setup.context or 0, cfg.train.max_skipped
    progress = loop.Progress(host, recorder, *limits, loud=main)
    if recorder.continues:
        recorder.write("event", start, {}, note=f"resumed from update {start}")

    def measure(n: int, state: step.State) -> evaluate.Scores:
        rows, limit = cfg.eval.batch or cfg.train.batch, None if n == cfg.train.steps else cfg.eval.limit
        scores = evaluate.evaluate(examine, _variables(state), exam, setup.place, rows, limit)
        recorder.write("eval", n, scores.metrics, split=cfg.eval.split, stderr=scores.stderr)
        progress.say(f"step {n:,}  {cfg.eval.split}: {in_words(scores)}")
        return scores

    def save(n: int, state: step.State, scores: evaluate.Scores | None) -> None:
        store.save(state, manifest_of(setup, n, batches.phases, identity, scores), _description(setup))

    feeding = feed.training(
        batches, setup.place, start, cfg.train.steps, workers=cfg.data.workers, prefetch=cfg.data.prefetch
    )
    try:
        _, signal = loop.run(
            state,
            update,
            feeding,
            progress,
            start,
            cfg.train.steps,
            measure,
            save,
            cfg.eval.every,
            cfg.checkpoint.every,
        )
    finally:
        store.close()
        recorder.close()
    if main and "://" not in workdir:
        title = f"{setup.model.family} on {cfg.data.name}" + (", quadratic cost" if cfg.loss == "quadratic" else "")
        picture, newest = plots.curve(workdir, title), checkpoint.steps(workdir)[-1]
        host.say(f"curve in {picture}, checkpoint {newest:,} in {workdir}/checkpoints")
    return signal


def _variables(state: step.State) -> dict[str, Any]:
    return {"params": state["params"], "stats": state["stats"]}


def _description(setup: Setup) -> dict[str, Any] | None:
    return setup.tokenizer.description() if setup.tokenizer else None


def in_words(scores: evaluate.Scores) -> str:
    """Metrics with their standard errors, in one line."""
    parts = [f"{name} {value:.4f} ± {scores.stderr[name]:.4f}" for name, value in scores.metrics.items()]
    return f"{', '.join(parts)} ({scores.examples:,} examples in {scores.clusters:,} clusters)"


def manifest_of(
    setup: Setup,
    n: int,
    phases: tuple[plan.Phase, ...],
    identity: list[dict[str, Any]],
    scores: evaluate.Scores | None,
) -> checkpoint.Manifest:
    """What a checkpoint says of itself, but for the digests that the save adds."""
    table = {k: {"shape": list(s.shape), "axes": s.axes} for k, s in flatten(setup.model.specs).items()}
    versions = {m.__name__: m.__version__ for m in (jax, flax, optax, np)} | {"python": platform.python_version()}
    versions["orbax"] = orbax.checkpoint.__version__
    return {
        "step": n,
        "config": setup.cfg.to_dict(),
        "table": table,
        "versions": versions,
        "revision": setup.host.revision,
        "mesh": dict(setup.place.mesh.shape),
        "phases": plan.phases_as_json(phases),
        "data": identity,
        "tokenizer": tokenizers.fingerprint(setup.tokenizer) if setup.tokenizer else None,
        "metrics": scores.metrics if scores else None,
    }


# From a checkpoint


def restore_variables(setup: Setup, workdir: str, n: int) -> dict[str, Any]:
    """Parameters and running statistics of a checkpoint, digests verified."""
    specs = {"params": setup.model.specs["params"], "stats": setup.model.specs.get("stats", {})}
    dtypes = {"params": setup.dtype, "stats": jnp.float32}
    target = {
        part: jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract(specs[part], dtypes[part]),
            setup.place.shardings(specs[part]),
        )
        for part in specs
    }
    return checkpoint.restore(workdir, n, target)


def evaluate_checkpoint(
    cfg: Config, workdir: str, n: int, host: Host, devices: list[jax.Device] | None = None
) -> evaluate.Scores:
    """Restore a checkpoint on any devices (all where None) and measure it on the held-out split."""
    held_out = load_source(cfg, host, names_of(cfg)[0], cfg.eval.split)
    setup = set_up(cfg, host, held_out, checkpoint.load_tokenizer(workdir, n), devices)
    variables = restore_variables(setup, workdir, n)
    exam = evaluation.exam(held_out, setup.tokenizer, setup.context, setup.prepare)
    examine = evaluate.make_examiner(setup.model, setup.task, setup.place)
    return evaluate.evaluate(examine, variables, exam, setup.place, cfg.eval.batch or cfg.train.batch, cfg.eval.limit)


def sample_checkpoint(
    cfg: Config,
    workdir: str,
    n: int,
    host: Host,
    *,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> None:
    """Print a prompt and the text that a checkpoint's model puts after it."""
    description = checkpoint.load_tokenizer(workdir, n)
    if description is None:
        raise UsageError(f"{workdir} holds a {cfg.model.family}, which does not generate text")
    tokenizer = tokenizers.restore(description)
    blank = sources.Texts((), {"name": cfg.data.name})
    cfg.mesh = "dp:1"
    setup = set_up(cfg, host, blank, description, jax.local_devices()[:1])
    variables = restore_variables(setup, workdir, n)
    ids, end = tokenizer.encode(prompt), tokenizer.vocab - 1
    written: list[int] = []
    host.stdout.write(prompt)
    chunks = sample.generate(
        setup.model, variables, ids, jax.random.key(seed), count=tokens, temperature=temperature, top_k=top_k
    )
    for chunk in chunks:
        before = tokenizer.decode(written)
        written += chunk.tolist()
        done = end in written
        written = written[: written.index(end)] if done else written
        host.stdout.write(tokenizer.decode(written)[len(before) :])
        host.stdout.flush()
        if done:
            break
    host.say("")


def recorded_config(workdir: str) -> str | None:
    """The text of `W/config.json`, or None where there is no checkpoint yet."""
    path = epath.Path(workdir) / "config.json"
    return path.read_text() if checkpoint.steps(workdir) and path.exists() else None
