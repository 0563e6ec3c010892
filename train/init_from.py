"""Parameters to begin with, of another run or as others publish them.

What is loaded, what starts fresh and what is left out is told; nothing happens silently.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

import models
from data.files import expand_home
from data.text import tokenizers
from errors import UsageError
from models import Model, pretrained
from models.core.spec import flatten
from models.pretrained.formats.safetensors import SUFFIX
from train import checkpoint
from train.update import optim, step

TOKEN_TABLE = "params/embed/token"  # of all families that read tokens by their numbers


@dataclass(frozen=True)
class LoadReport:
    """What came of each leaf."""

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        """One line a kind."""
        parts = [f"{len(self.loaded)} leaves loaded from {self.source}"]
        parts += [
            f"{kind}: {', '.join(names) or 'none'}"
            for kind, names in (("fresh", self.fresh), ("ignored", self.ignored))
        ]
        return "; ".join(parts)


def parse_patterns(text: str | None) -> tuple[str, ...]:
    """`head/*,embed/position` -> its parts."""
    return tuple(p.strip() for p in (text or "").split(",") if p.strip())


def parse_renames(text: str | None) -> dict[str, str]:
    """`theirs:ours,…` -> a dict. A name stands for all below it too. Raises UsageError."""
    found = {}
    for part in parse_patterns(text):
        theirs, colon, ours = part.partition(":")
        if not (theirs and colon and ours) or theirs in found:
            raise UsageError(f"config key 'init_rename' is THEIRS:OURS, joined by commas, not {text!r}")
        found[theirs] = ours
    return found


@dataclass(frozen=True)
class WeightSource:
    """What there is to begin with: leaves `params/…` and `stats/…`, and how they are read onto shardings."""

    source: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[dict[str, Sharding]], dict[str, jax.Array]]
    tokenizer: str | None = None  # the fingerprint of the one that they go with
    skipped: tuple[str, ...] = ()  # what else there is, known not to be of this network


def candidate_checkpoints(name: str) -> tuple[str, list[int]]:
    """Workdir and candidate steps of `W`, `W@n` or `W@best`, first choice first. Raises UsageError for none."""
    workdir, which = checkpoint.split_name(name)
    if which == "all":
        raise UsageError(f"init_from = {name!r} must name one checkpoint")
    if not checkpoint.steps(workdir):
        raise UsageError(f"init_from = {name!r} holds neither checkpoints of a run nor {SUFFIX} files")
    return workdir, checkpoint.select(workdir, which)


def set_vocab_size(cfg: Any, saved: Any = None) -> None:
    """Set model.vocab, where a config leaves it to a subword tokenizer, to the rows of the table that init_from has.

    `kept` is the config of the run's checkpoints, which is followed where there is one. Tables of the hub may have more
    rows than their tokenizers have tokens, and are taken whole.
    """
    family, size = models.FAMILIES.get(cfg.model.family), cfg.model.size
    left = family and "vocab" not in {**cfg.model, **family.SIZES.get(size, {})} and hasattr(family.Config, "vocab")
    if not left or cfg.init_from is None or tokenizers.tokenizer_kind(cfg.data.tokenizer) != "subword":
        return
    if saved is not None:
        same = (saved.init_from or "").rstrip("/") == cfg.init_from.rstrip("/")  # as `reader.changes` compares them
        rows = saved.model.get("vocab") if same else None
    else:
        rows = None if _matches(TOKEN_TABLE, parse_patterns(cfg.init_fresh)) else _table_rows(cfg)
    if rows is not None:
        with cfg.unlocked():
            cfg.model.vocab = rows


def _table_rows(cfg: Any) -> int | None:
    """The rows of the token table that init_from has, None where none is found by the config's fields."""
    where = expand_home(cfg.init_from)
    if not pretrained.is_pretrained(where):
        workdir, steps = candidate_checkpoints(where)
        read = partial(checkpoint.load_manifest, workdir)
        return checkpoint.first_restorable(workdir, steps, read, lambda line: None)[1]["config"]["model"].get("vocab")
    fields = {name: value for name, value in cfg.model.items() if name not in ("family", "size")}
    try:
        found = pretrained.find(models.build(cfg.model.family, cfg.model.size, **fields), where)
    except UsageError:  # which the run meets too, when it knows all
        return None
    names = found.names.get(TOKEN_TABLE.removeprefix("params/"), ())
    return next((found.tensors.shapes[name][0] for name in names if found.tensors.shapes.get(name)), None)


def _read_checkpoint(workdir: str, n: int) -> WeightSource:
    """The leaves of a checkpoint; where its run kept a mean, its own or schedule_free's, that."""
    manifest = checkpoint.load_manifest(workdir, n)
    saved, knobs = manifest["state"], manifest["config"]["optim"]
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
    """The leaves of safetensors files in the layout that others publish of a family."""
    found = pretrained.find(model, path)
    shapes = {k if k.startswith(pretrained.STATS) else f"params/{k}": shape for k, shape in found.shapes().items()}

    def read(shardings: dict[str, Sharding]) -> dict[str, jax.Array]:
        for k in shardings:
            if k.removeprefix("params/") not in found.rows:
                raise UsageError(f"init_from = {path}: {k} is no tensor of a {model.family}, and can be no leaf of it")
        return {k: found.read(k.removeprefix("params/"), sharding) for k, sharding in shardings.items()}

    return WeightSource(path, shapes, read, skipped=found.ignored)


def load(
    state: step.State,
    model: Model,
    tx: optax.GradientTransformation,
    cfg: Any,
    tokenizer: str | None,
    say: Callable[[str], None],
) -> tuple[step.State, LoadReport]:
    """A fresh state with the parameters and statistics that `cfg.init_from` names, digests verified -> (state, report).

    Each leaf must be there with its shape, but for those that `init_fresh` names; each of theirs must have its place,
    but for those that `init_ignore` names. `tokenizer` is the fingerprint of this run's.

    Of a run the newest good checkpoint is taken; a damaged one is named by `say` and passed over.
    Raises UsageError that names the leaves that fit nowhere, and those of a vocabulary that is another here.
    """
    name = expand_home(cfg.init_from)
    if pretrained.is_pretrained(name):
        return _load_from(_read_pretrained(model, name), state, model, tx, cfg, tokenizer)
    workdir, steps = candidate_checkpoints(name)
    read = lambda n: _load_from(_read_checkpoint(workdir, n), state, model, tx, cfg, tokenizer)  # noqa: E731
    return checkpoint.first_restorable(workdir, steps, read, say)[1]


def _load_from(
    found: WeightSource,
    state: step.State,
    model: Model,
    tx: optax.GradientTransformation,
    cfg: Any,
    tokenizer: str | None,
) -> tuple[step.State, LoadReport]:
    leaves = {**flatten({"params": state["params"]}), **flatten({"stats": state["stats"]})}
    taken = _match_leaves(found.shapes, {name: x.shape for name, x in leaves.items()}, cfg)
    if found.tokenizer not in (None, tokenizer):
        for ours, spec in flatten(model.specs).items():
            if ours in taken and "vocab" in spec.names:
                raise UsageError(
                    f"init_from = {cfg.init_from}: {ours} goes with another tokenizer; init_fresh must name it"
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
    new["opt"] = jax.tree.map(
        _cast, jax.jit(tx.init)(f32), state["opt"]
    )  # some optimizers keep a copy of where they began
    new["ema"] = jax.tree.map(_cast, new["params"], state["ema"]) if state["ema"] else {}
    return {**state, **new}, report


def _cast(x: jax.Array, like: jax.Array) -> jax.Array:
    """A copy of dtype and sharding of another array."""
    return jax.jit(lambda x: x.astype(like.dtype), out_shardings=like.sharding)(x)


def _match_leaves(theirs: dict[str, Any], ours: dict[str, Any], cfg: Any) -> dict[str, str]:
    """Which of their leaves goes to which of ours, by the three knobs; both are shapes by name -> theirs, by ours."""
    fresh, ignored, other = (
        parse_patterns(cfg.init_fresh),
        parse_patterns(cfg.init_ignore),
        parse_renames(cfg.init_rename),
    )
    for key, given, names in (
        ("init_fresh", fresh, ours),
        ("init_ignore", ignored, theirs),
        ("init_rename", other, theirs),
    ):
        for p in given:
            if not any(_matches(name, (p,)) for name in names):
                raise UsageError(f"{p!r} of {key} fits none of {_abbreviate(names)}")
    wanted: dict[str, str] = {}
    for name in (n for n in theirs if not _matches(n, ignored)):
        to = _rename(name, other)
        if to in wanted:
            raise UsageError(f"init_from = {cfg.init_from}: {wanted[to]} and {name} would both go to {to}")
        wanted[to] = name
    asked = [name for name in ours if not _matches(name, fresh)]
    if not asked and not [to for to in wanted if to not in ours]:
        raise UsageError(f"config key 'init_fresh' = {cfg.init_fresh!r} leaves nothing to load from {cfg.init_from}")
    strange = [
        *(f"{name} is not in it" for name in asked if name not in wanted),
        *(f"{name} has no place here" for to, name in wanted.items() if to not in ours),
        *(
            f"{wanted[to]} is {theirs[wanted[to]]} there, {ours[to]} here"
            for to in asked
            if to in wanted and theirs[wanted[to]] != ours[to]
        ),
    ]
    if strange:
        more = f" and {len(strange) - 4} more" if len(strange) > 4 else ""
        raise UsageError(
            f"init_from = {cfg.init_from}: {'; '.join(strange[:4])}{more}. "
            f"Leaves to start fresh go to --config.init_fresh, leaves to leave out to --config.init_ignore, others to "
            f"--config.init_rename=THEIRS:OURS"
        )
    return {to: wanted[to] for to in asked}


def _matches(name: str, given: tuple[str, ...]) -> bool:
    """Whether a pattern stands for a leaf, or for what it is in; `params/` may be left out."""
    both = (name, name.partition("/")[2])
    return any(fnmatch.fnmatchcase(path, p) or path.startswith(f"{p}/") for path in both for p in given)


def _rename(name: str, names: dict[str, str]) -> str:
    part, _, path = name.partition("/")
    for theirs, ours in names.items():
        if path == theirs or path.startswith(f"{theirs}/"):
            return f"{part}/{ours}{path.removeprefix(theirs)}"
    return name


def _abbreviate(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (" …" if len(listed) > 6 else "")
