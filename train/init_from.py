"""Initial parameters from another run's checkpoint or a pretrained model.

A report lists the leaves that were loaded, initialised afresh and ignored.
"""

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

import models
from configs.knobs import RunConfig
from data.files import expand_home
from data.text import tokenizers
from errors import UsageError
from models import Model, pretrained
from models.core.spec import flatten
from models.pretrained.formats.safetensors import SUFFIX
from pairs import pairs_error, parse_pairs
from train import checkpoint
from train.update import optim, step

Shape = tuple[int, ...]
TOKEN_TABLE = "params/embed/token"  # the token embedding of every family that has one


@dataclass(frozen=True)
class LoadReport:
    """Which leaves were loaded, initialised afresh, and ignored."""

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        """All three lists in one line."""
        fresh, ignored = (", ".join(names) or "none" for names in (self.fresh, self.ignored))
        return f"{len(self.loaded)} leaves loaded from {self.source}; fresh: {fresh}; ignored: {ignored}"


def parse_patterns(text: str | None) -> tuple[str, ...]:
    """`head/*,embed/position` -> ("head/*", "embed/position")."""
    return tuple(p.strip() for p in (text or "").split(",") if p.strip())


def parse_renames(text: str | None) -> dict[str, str]:
    """`theirs:ours,…` -> a dict. A path also renames its subtree. Raises UsageError."""
    pairs = parse_pairs(text, "init_rename", "THEIRS:OURS")
    found = dict(pairs)
    if len(found) < len(pairs) or not all(found.values()):
        raise pairs_error(text, "init_rename", "THEIRS:OURS")
    return found


@dataclass(frozen=True)
class WeightSource:
    """The leaves `params/…` and `stats/…` of a checkpoint or pretrained model, and a function that reads them."""

    source: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[dict[str, Sharding]], dict[str, jax.Array]]
    tokenizer: str | None = None  # fingerprint of the tokenizer that they were trained with
    skipped: tuple[str, ...] = ()  # further tensors that are known not to belong to this model


def candidate_checkpoints(name: str) -> tuple[str, list[int]]:
    """`W`, `W@n` or `W@best` -> (workdir, candidate steps, best first). Raises UsageError if there are none."""
    workdir, which = checkpoint.split_name(name)
    if which == "all":
        raise UsageError(f"init_from = {name!r} must name one checkpoint, such as W, W@n or W@best")
    if not checkpoint.steps(workdir):
        raise UsageError(f"init_from = {name!r} has neither checkpoints of a run nor {SUFFIX} files")
    return workdir, checkpoint.select(workdir, which)


def with_vocab_size(config: RunConfig, saved: RunConfig | None = None) -> RunConfig:
    """The config with model.vocab from init_from's token embedding, if it leaves that to a subword tokenizer.

    `saved` is the config of the run's checkpoints, if any, and takes precedence. A pretrained embedding may have more
    rows than its tokenizer has tokens; all rows are kept.
    """
    family, size = models.FAMILIES.get(config.model.family), config.model.size
    unset = (
        family
        and "vocab" not in {**config.model.fields, **family.SIZES.get(size, {})}
        and hasattr(family.Config, "vocab")
    )
    if not unset or config.init_from is None or tokenizers.tokenizer_kind(config.data.tokenizer) != "subword":
        return config
    if saved is not None:
        same = (saved.init_from or "").rstrip("/") == config.init_from.rstrip("/")  # the comparison of `reader.changes`
        rows = saved.model.fields.get("vocab") if same else None
    else:
        rows = (
            None if _matches(TOKEN_TABLE, parse_patterns(config.init_fresh)) else _table_rows(config, config.init_from)
        )
    return config if rows is None else config.replace({"model.vocab": rows})


def _table_rows(config: RunConfig, source: str) -> int | None:
    """The rows of init_from's token embedding, or None if the config's fields do not find it."""
    where = expand_home(source)
    if not pretrained.is_pretrained(where):
        workdir, steps = candidate_checkpoints(where)
        read = partial(checkpoint.load_manifest, workdir)
        return checkpoint.first_restorable(workdir, steps, read, lambda line: None)[1]["config"]["model"].get("vocab")
    try:
        found = pretrained.find(models.build(config.model.family, config.model.size, **config.model.fields), where)
    except UsageError:  # the run itself raises it later, with all settings known
        return None
    names = found.names.get(TOKEN_TABLE.removeprefix("params/"), ())
    return next((found.tensors.shapes[name][0] for name in names if found.tensors.shapes.get(name)), None)


def _read_checkpoint(workdir: str, n: int) -> WeightSource:
    """The leaves of a checkpoint; the averaged parameters if its run used an EMA or schedule_free."""
    manifest = checkpoint.load_manifest(workdir, n)
    saved = manifest["state"]
    knobs = manifest["config"]["optim"]
    part = "ema" if any(path.startswith("ema/") for path in saved) else "params"
    theirs = {f"params/{k.partition('/')[2]}": k for k in saved if k.startswith(f"{part}/")}
    theirs |= {k: k for k in saved if k.startswith("stats/")}

    z = {f"params/{k.partition('/z/')[2]}": k for k in saved if k.startswith("opt/") and "/z/" in k}
    averaged = z if knobs["name"] == "schedule_free" else {}

    def read(shardings: dict[str, Sharding]) -> dict[str, jax.Array]:
        wanted = {theirs[k]: s for k, s in shardings.items()}
        wanted |= {averaged[k]: s for k, s in shardings.items() if k in averaged}
        tree = flatten(checkpoint.restore_leaves(workdir, n, wanted))
        mean = jax.jit(partial(optim.schedule_free_average, beta=knobs["beta1"]))
        return {k: mean(tree[theirs[k]], tree[averaged[k]]) if k in averaged else tree[theirs[k]] for k in shardings}

    shapes = {k: tuple(saved[old]["shape"]) for k, old in theirs.items()}
    return WeightSource(f"{workdir}@{n}", shapes, read, manifest["tokenizer"])


def _read_pretrained(model: Model, path: str) -> WeightSource:
    """The leaves of a pretrained model in another library's layout of the family."""
    found = pretrained.find(model, path)
    shapes = {k if k.startswith(pretrained.STATS) else f"params/{k}": shape for k, shape in found.shapes().items()}

    def read(shardings: dict[str, Sharding]) -> dict[str, jax.Array]:
        for k in shardings:
            if k.removeprefix("params/") not in found.rows:
                raise UsageError(f"init_from = {path}: {k} is not a tensor of a {model.family}")
        return {k: found.read(k.removeprefix("params/"), sharding) for k, sharding in shardings.items()}

    return WeightSource(path, shapes, read, skipped=found.ignored)


def load(
    state: step.State,
    model: Model,
    tx: optax.GradientTransformation,
    config: RunConfig,
    tokenizer: str | None,
    say: Callable[[str], None],
) -> tuple[step.State, LoadReport]:
    """Load parameters and statistics from `config.init_from` into a fresh state -> (state, report); verifies digests.

    Every leaf must exist in the source with the same shape, or match `init_fresh`; every leaf of the source must exist
    here, or match `init_ignore`. `tokenizer` is the fingerprint of this run's tokenizer.

    From a run it takes the newest restorable checkpoint; `say` reports corrupt ones.
    Raises UsageError, naming the leaves, if some do not match or depend on a different vocabulary.
    """
    assert config.init_from is not None
    name = expand_home(config.init_from)
    if pretrained.is_pretrained(name):
        return _load_from(_read_pretrained(model, name), state, model, tx, config, tokenizer)
    workdir, steps = candidate_checkpoints(name)
    read = lambda n: _load_from(_read_checkpoint(workdir, n), state, model, tx, config, tokenizer)  # noqa: E731
    return checkpoint.first_restorable(workdir, steps, read, say)[1]


def _load_from(
    found: WeightSource,
    state: step.State,
    model: Model,
    tx: optax.GradientTransformation,
    config: RunConfig,
    tokenizer: str | None,
) -> tuple[step.State, LoadReport]:
    leaves = {**flatten({"params": state["params"]}), **flatten({"stats": state["stats"]})}
    taken = _match_leaves(found.shapes, {name: x.shape for name, x in leaves.items()}, config)
    if found.tokenizer not in (None, tokenizer):
        for ours, spec in flatten(model.specs).items():
            if ours in taken and "vocab" in spec.names:
                raise UsageError(
                    f"init_from = {config.init_from}: {ours} belongs to another tokenizer; add it to init_fresh"
                )
    values = found.read({theirs: leaves[ours].sharding for ours, theirs in taken.items()})
    left = [theirs for theirs in found.shapes if theirs not in taken.values()]
    fresh = tuple(name for name in leaves if name not in taken)
    report = LoadReport(found.source, tuple(taken), fresh, (*left, *found.skipped))
    for ours, theirs in taken.items():
        leaves[ours] = _cast(values[theirs], leaves[ours])
    new = jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[jax.tree_util.keystr(path, simple=True, separator="/")],
        {"params": state["params"], "stats": state["stats"]},
    )
    f32 = jax.tree.map(lambda x: x.astype(jnp.float32), new["params"])
    # some optimizers keep a copy of the initial parameters
    new["opt"] = jax.tree.map(_cast, jax.jit(tx.init)(f32), state["opt"])
    new["ema"] = jax.tree.map(_cast, new["params"], state["ema"]) if state["ema"] else {}
    return {**state, **new}, report


def _cast(x: jax.Array, like: jax.Array) -> jax.Array:
    """A copy with the dtype and sharding of another array."""
    return jax.jit(lambda x: x.astype(like.dtype), out_shardings=like.sharding)(x)


def _match_leaves(theirs: dict[str, Shape], ours: dict[str, Shape], config: RunConfig) -> dict[str, str]:
    """Match the source's leaves to ours by the three knobs: shapes by name, twice -> {our name: their name}."""
    fresh = parse_patterns(config.init_fresh)
    ignored = parse_patterns(config.init_ignore)
    other = parse_renames(config.init_rename)
    for key, given, names in (
        ("init_fresh", fresh, ours),
        ("init_ignore", ignored, theirs),
        ("init_rename", other, theirs),
    ):
        for p in given:
            if not any(_matches(name, (p,)) for name in names):
                raise UsageError(f"config key {key!r}: {p!r} matches none of {_abbreviate(names)}")
    wanted: dict[str, str] = {}
    for name in (n for n in theirs if not _matches(n, ignored)):
        to = _rename(name, other)
        if to in wanted:
            raise UsageError(f"init_from = {config.init_from}: {wanted[to]} and {name} would both become {to}")
        wanted[to] = name
    expected = [name for name in ours if not _matches(name, fresh)]
    if not expected and not [to for to in wanted if to not in ours]:
        raise UsageError(
            f"config key 'init_fresh' = {config.init_fresh!r} leaves nothing to load from {config.init_from}"
        )
    problems = [f"{name} is missing there" for name in expected if name not in wanted]
    problems += [f"{name} has no counterpart in the model" for to, name in wanted.items() if to not in ours]
    for to in expected:
        if to in wanted and theirs[wanted[to]] != ours[to]:
            problems.append(f"{wanted[to]} has shape {theirs[wanted[to]]} there, {ours[to]} in the model")
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UsageError(
            f"init_from = {config.init_from}: {'; '.join(problems[:4])}{more}. "
            f"List leaves to initialise afresh in --config.init_fresh, leaves to skip in --config.init_ignore, and "
            f"renamed leaves in --config.init_rename=THEIRS:OURS"
        )
    return {to: wanted[to] for to in expected}


def _matches(name: str, given: tuple[str, ...]) -> bool:
    """Whether a pattern matches a leaf or one of its parents. The prefix `params/` may be omitted."""
    both = (name, name.partition("/")[2])
    return any(fnmatch.fnmatchcase(path, p) or path.startswith(f"{p}/") for path in both for p in given)


def _rename(name: str, names: dict[str, str]) -> str:
    part, _, path = name.partition("/")
    for theirs, ours in names.items():
        if path == theirs or path.startswith(f"{theirs}/"):
            return f"{part}/{ours}{path.removeprefix(theirs)}"
    return name


def _abbreviate(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (" …" if len(listed) > 6 else "")
