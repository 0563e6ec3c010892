"""From the command line to a RunConfig: `file.py:name+ablation`, then `--config.KEY=VALUE` in any order."""

import ast
import hashlib
import inspect
import json
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

import imports
import renamed
from configs.knobs import KNOBS, OPEN, RunConfig, flatten, from_flat
from configs.section import Value, to_python
from errors import UsageError, prefix_errors, quote, unknown

T = TypeVar("T")


def read(source: str) -> RunConfig:
    """The config that get_config(names) of `path/to/file.py` or `path/to/file.py:names` returns.

    Raises UsageError for a missing file, for one that fails, and if get_config does not return a config.
    """
    path, _, names = source.partition(":")
    made = variables(path)
    given = [names] if names else []
    try:
        inspect.signature(made["get_config"]).bind(*given)
    except TypeError:
        takes = "no name" if names else f"a name, as --config={path}:NAME{_names(made)}"
        raise UsageError(f"config file {path} takes {takes}") from None
    config = _whole(path, _run(path, lambda: made["get_config"](*given)))
    own = Path(path).resolve().parent != Path(__file__).parent
    return replace(config, code={str(Path(path).resolve()): file_digest(path)}) if own else config


def from_manifest(manifest: Mapping[str, Any]) -> RunConfig:
    """The config of a checkpoint."""
    return replace(from_json(json.dumps(manifest["config"])), code=manifest.get("code") or {})


def run_code(code: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Run the user's config files, `RunConfig.code`, for what they register: the config's words may name that.

    `say` reports a file that is gone, or has changed. Raises UsageError for one that fails.
    """
    for path, digest in code.items():
        if not Path(path).is_file():
            say(f"config  {path}, which made this run's config, is gone")
            continue
        if file_digest(path) != digest:
            say(f"config  {path} has changed since it made this run's config")
        variables(path)


def named_code(config: RunConfig) -> dict[str, str]:
    """Further files of one's own code that knobs name, as `loss=path/to/file.py:Class`: path -> digest."""
    module = config.model.fields.get("module")
    words = (config.loss, config.optim.name, *config.data.name.split(","), *(config.eval.callbacks or ()), str(module))
    files = [imports.find_file(word.strip()) for word in words]
    paths = [str(file) for file in files if file is not None]
    return {path: file_digest(path) for path in paths if path not in config.code}


def say_changes(named: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Say which files of a checkpoint's `named_code` have changed. One that is gone fails where it is imported."""
    for path, digest in named.items():
        if Path(path).is_file() and file_digest(path) != digest:
            say(f"config  {path} has changed since the checkpoint")


def file_digest(path: str) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def ablation_keys(source: str) -> set[str]:
    """The keys whose values the ablations of `path/to/file.py:name+ablation` change; none without ABLATIONS.

    Raises UsageError as `read`.
    """
    path, _, names = source.partition(":")
    name, ablations, _ = names.partition("+")
    if not ablations or not variables(path).get("ABLATIONS"):
        return set()
    before, after = read(f"{path}:{name}").flatten(), read(source).flatten()
    return {key for key, value in after.items() if key not in before or before[key] != value}


def describe_default(source: str) -> str | None:
    """A line that names the default config of a file without `:NAME`; None with a name, or without a default."""
    path, _, names = source.partition(":")
    made = {} if names or not Path(path).is_file() else variables(path)
    if not made.get("CONFIGS"):
        return None
    chosen = next(iter(inspect.signature(made["get_config"]).parameters.values()), None)
    return f"config  {path}:{chosen.default}{_names(made)}" if chosen and chosen.default is not chosen.empty else None


def _names(made: dict[str, Any]) -> str:
    return f" (it has {', '.join(map(str, made['CONFIGS']))})" if isinstance(made.get("CONFIGS"), dict) else ""


def variables(path: str) -> dict[str, Any]:
    """The module variables of a config file, run once by `imports`. Raises UsageError if it is missing, or fails."""
    if not Path(path).is_file():
        found = [str(p) for p in Path("configs").glob("*.py") if p.stem not in NOT_CONFIGS]
        if not found and not Path(path).is_absolute():
            raise UsageError(f"no config file {path!r} below this folder; run Canon from its clone")
        raise unknown("config file", path, found)
    made = vars(_run(path, lambda: imports.run_file(path)))
    if not callable(made.get("get_config")):
        raise UsageError(f"config file {path} has no function get_config(names)")
    return made


def _run(path: str, act: Callable[[], T]) -> T:
    """The result of a user's Python code. Raises UsageError with file and line for whatever it raises."""
    try:
        with prefix_errors(f"config file {path}"), warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            return act()
    except (UsageError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        where = f" line {error.lineno}" if error.lineno else ""
        raise UsageError(f"config file {path}{where}: {error.msg}") from None
    except BaseException as error:  # SystemExit too
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f" line {lines[-1]}" if lines else ""
        raise UsageError(f"config file {path}{where}: {type(error).__name__}: {error}") from None


def _whole(path: str, made: object) -> RunConfig:
    """The RunConfig of a config file's result. Raises UsageError unless that is a ConfigDict with every knob."""
    if not isinstance(made, ConfigDict):
        raise UsageError(
            f"config file {path}: get_config returns {quote(made)}, not a ConfigDict; use configs.base.config"
        )
    with prefix_errors(f"config file {path}"):
        return freeze(made)


def freeze(cfg: ConfigDict) -> RunConfig:
    """The RunConfig of a ConfigDict. Raises UsageError for an unknown or missing key, or a value of another type."""
    given = {str(key): value for key, value in flatten(cfg.to_dict()).items()}
    if missing := [key for key in KNOBS if key not in given]:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UsageError(f"its config lacks {names}; begin with configs.base.defaults()")
    return from_flat(given)


NOT_CONFIGS = ("__init__", "base", "knobs", "listing", "reader", "recipes", "section", "unread")


def override(config: RunConfig, assignments: list[tuple[str, str]]) -> RunConfig:
    """The config with assignments of dotted keys, each text parsed by its knob's type. Raises UsageError."""
    return config.replace({key: parse(key, text) for key, text in assignments})


def parse(key: str, text: str) -> Value:
    """Parse a value by the type of its knob: `None`, `true`, `3e-4`, `(1, 2)`, `a,b`, or a plain word."""
    knob = KNOBS.get(key)
    if knob is None and not key.startswith(OPEN):
        raise unknown("config key", key, KNOBS, renamed.KNOBS)
    kinds = [k.strip() for k in knob.type.split("|")] if knob else []
    if text in ("None", "none") and ("None" in kinds or (not kinds and text == "None")):
        return None
    if text in ("true", "false", "True", "False") and (not kinds or "bool" in kinds):
        return text in ("true", "True")
    if "str" in kinds:
        return text
    if "tuple[str]" in kinds:
        return tuple(word.strip() for word in text.split(","))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text  # a word: `from_flat` refuses it, or for an open key the key's owner checks it
    if "int" in kinds and isinstance(value, float) and value.is_integer() and "float" not in kinds:
        return int(value)  # 1e4
    if isinstance(value, int | float) and "float" not in kinds and any(kind.startswith("tuple") for kind in kinds):
        return (value,)
    return to_python(value)


def from_json(text: str) -> RunConfig:
    """The inverse of `RunConfig.to_json`, for the config of a workdir. Knobs that it lacks take their defaults.

    Knobs, their values and model fields may have old names, those of `renamed`.
    """
    given = flatten(json.loads(text))
    family = str(given.get("model.family", ""))
    fields = {f"model.{old}": f"model.{new}" for old, new in renamed.FIELDS.get(family, {}).items()}
    values = {}
    for name, value in given.items():
        key = {**renamed.KNOBS, **fields}.get(name, name)
        if key != "resume":  # applies to one call only
            values[key] = renamed.WORDS.get(key, {}).get(value, value) if isinstance(value, str) else value
    return from_flat(values)


def changes(old: RunConfig, new: RunConfig) -> dict[str, list[str]]:
    """The differences, as lines `key: old -> new`, by class of knob: identity, schedule, free."""
    before, after = old.flatten(), new.flatten()
    result: dict[str, list[str]] = {"identity": [], "schedule": [], "free": []}
    for key in sorted({*before, *after}):
        if _without_slash(before.get(key)) != _without_slash(after.get(key)):
            kind = KNOBS[key].kind if key in KNOBS else ("free" if key.startswith("rules.") else "identity")
            result[kind].append(f"{key}: {before.get(key)!r} -> {after.get(key)!r}")
    return result


def _without_slash(value: Value) -> Value:
    """The value; a path without the trailing slash that a shell may add."""
    return value.rstrip("/") if isinstance(value, str) else value


RESUME = ("auto", "extend")  # values of the knob `resume`


def refuse_other_run(workdir: str, saved: RunConfig, config: RunConfig) -> list[str]:
    """Check that a config continues the run of a workdir -> its changes of the schedule, a line each.

    Raises UsageError with the differences if identity knobs changed, or schedule knobs without `resume=extend`.
    """
    differs = changes(saved, config)
    if differs["identity"]:
        raise UsageError(f"{workdir} holds another run: {'; '.join(differs['identity'])}. Take another --workdir")
    if differs["schedule"] and config.resume != "extend":
        raise UsageError(
            f"{workdir} holds a run with another schedule: {'; '.join(differs['schedule'])}. "
            f"Add --config.resume=extend to continue under the new one, or take another --workdir"
        )
    return differs["schedule"]
