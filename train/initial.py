"""Another run's parameters to begin with: what is loaded, what starts fresh, what is left out; nothing silently."""

import fnmatch
from dataclasses import dataclass
from typing import Any

import jax

from errors import UsageError
from models.spec import flatten
from train import checkpoint
from train.update import step


@dataclass(frozen=True)
class Report:
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


def patterns(text: str | None) -> tuple[str, ...]:
    """`head/*,embed/position` -> its parts."""
    return tuple(p.strip() for p in (text or "").split(",") if p.strip())


def renames(text: str | None) -> dict[str, str]:
    """`theirs:ours,…` -> a dict. A name stands for all below it too. Raises UsageError."""
    found = {}
    for part in patterns(text):
        theirs, colon, ours = part.partition(":")
        if not (theirs and colon and ours):
            raise UsageError(f"config key 'init_rename' is THEIRS:OURS, joined by commas, not {text!r}")
        found[theirs] = ours
    return found


def source(name: str) -> tuple[str, int]:
    """Workdir and step of `W`, `W@n` or `W@best`. Raises UsageError where there is no such checkpoint."""
    workdir, which = checkpoint.split_name(name)
    if which == "all":
        raise UsageError(f"init_from = {name!r} must name one checkpoint")
    return workdir, checkpoint.select(workdir, which)[0]


def load(state: step.State, cfg: Any) -> tuple[step.State, Report]:
    """A fresh state with the parameters and statistics of checkpoint `cfg.init_from`, digests verified.

    Each leaf must be there with its shape, but for those that `init_fresh` names; each of the other run's leaves must
    have its place, but for those that `init_ignore` names. Where the other run kept a running mean of its parameters,
    that is what is loaded. Raises UsageError that names the leaves that fit nowhere.
    """
    workdir, n = source(cfg.init_from)
    saved = checkpoint.load_manifest(workdir, n)["state"]
    part = "ema" if any(name.startswith("ema/") for name in saved) else "params"
    ours = {**flatten({"params": state["params"]}), **flatten({"stats": state["stats"]})}
    fresh, ignored = patterns(cfg.init_fresh), patterns(cfg.init_ignore)
    names = {}  # theirs -> ours
    for name in saved:
        kind, _, path = name.partition("/")
        if kind in (part, "stats"):
            names[name] = f"{'stats' if kind == 'stats' else 'params'}/{_renamed(path, renames(cfg.init_rename))}"

    def matches(name: str, given: tuple[str, ...]) -> bool:
        path = name.partition("/")[2]
        return any(fnmatch.fnmatchcase(path, p) or path.startswith(f"{p}/") for p in given)

    for given, found in ((fresh, ours), (ignored, names)):
        for p in given:
            if not any(matches(name, (p,)) for name in found):
                raise UsageError(f"{p!r} of init_fresh or init_ignore fits none of {_some(found)}")
    wanted = {to: name for name, to in names.items() if not matches(name, ignored)}
    strange = [
        *(f"{name} is not in it" for name in ours if name not in wanted and not matches(name, fresh)),
        *(f"{name} has no place here" for to, name in wanted.items() if to not in ours),
        *(
            f"{name} is {tuple(saved[name]['shape'])} there, {ours[to].shape} here"
            for to, name in wanted.items()
            if to in ours and not matches(to, fresh) and tuple(saved[name]["shape"]) != ours[to].shape
        ),
    ]
    if strange:
        more = f" and {len(strange) - 4} more" if len(strange) > 4 else ""
        raise UsageError(
            f"init_from = {cfg.init_from}: {'; '.join(strange[:4])}{more}. "
            f"Leaves to start fresh go to --config.init_fresh, leaves to leave out to --config.init_ignore, others to "
            f"--config.init_rename=THEIRS:OURS"
        )
    taken = {to: name for to, name in wanted.items() if not matches(to, fresh)}
    values = flatten(checkpoint.restore_leaves(workdir, n, {name: ours[to].sharding for to, name in taken.items()}))
    for to, name in taken.items():
        ours[to] = jax.jit(lambda x, like=ours[to]: x.astype(like.dtype), out_shardings=ours[to].sharding)(values[name])
    left = [name for name in names if name not in taken.values()]
    report = Report(f"{workdir}@{n}", tuple(taken), tuple(n for n in ours if n not in taken), tuple(left))
    new = jax.tree_util.tree_map_with_path(
        lambda path, _: ours[jax.tree_util.keystr(path, simple=True, separator="/")],
        {"params": state["params"], "stats": state["stats"]},
    )
    if state["ema"]:
        new["ema"] = jax.tree.map(lambda p, m: p.astype(m.dtype), new["params"], state["ema"])
    return {**state, **new}, report


def _renamed(path: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        if path == theirs or path.startswith(f"{theirs}/"):
            return ours + path.removeprefix(theirs)
    return path


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (" …" if len(listed) > 6 else "")
