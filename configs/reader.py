"""From the command line to a ConfigDict: `file.py:name+ablation`, then `--config.KEY=VALUE` in any order."""

import ast
import json
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.base import KNOBS, OPEN, assign, defaults
from errors import UsageError, unknown


def read(source: str) -> ConfigDict:
    """The config of `path/to/file.py` or `path/to/file.py:names`, whose function get_config(names) returns it.

    Raises UsageError for a file that is not there, does not run, or has no get_config.
    """
    path, _, names = source.partition(":")
    if not Path(path).is_file():
        found = [str(p) for p in Path("configs").glob("*.py") if p.stem not in NOT_CONFIGS]
        if not found and not Path(path).is_absolute():
            raise UsageError(f"no config file {path!r} below this folder; run Canon from its clone")
        raise unknown("config file", path, found)
    try:
        module = runpy.run_path(path)
    except SyntaxError as error:
        raise UsageError(f"config file {path} line {error.lineno}: {error.msg}") from None
    if "get_config" not in module:
        raise UsageError(f"config file {path} has no function get_config(names)")
    return module["get_config"](names) if names else module["get_config"]()


NOT_CONFIGS = ("__init__", "base", "reader", "recipes")


def override(cfg: ConfigDict, assignments: list[tuple[str, str]]) -> ConfigDict:
    """Apply dotted assignments, text by text, each parsed by its knob's type. Raises UsageError."""
    for key, text in assignments:
        assign(cfg, key, parse(key, text))
    return cfg


def parse(key: str, text: str) -> Any:
    """A value from its text, by the type of its knob: `None`, `true`, `3e-4`, `(1, 2)`, or a plain word."""
    knob = KNOBS.get(key)
    if knob is None and not key.startswith(OPEN):
        raise unknown("config key", key, KNOBS)
    kinds = [k.strip() for k in knob.type.split("|")] if knob else []
    if text in ("None", "none") and ("None" in kinds or (not kinds and text == "None")):
        return None
    if text in ("true", "false", "True", "False") and (not kinds or "bool" in kinds):
        return text in ("true", "True")
    if "str" in kinds:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text  # a word: for an open key its owner decides, else `assign` refuses it
    if "int" in kinds and isinstance(value, float) and value.is_integer() and "float" not in kinds:
        return int(value)  # 1e4
    if isinstance(value, int | float) and "float" not in kinds and any(kind.startswith("tuple") for kind in kinds):
        return (value,)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    """A value with its lists as tuples, those inside too."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def flat(cfg: Any) -> dict[str, Any]:
    """A config as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, ConfigDict | dict):
            result.update({f"{key}.{k}": v for k, v in flat(value).items()})
        else:
            result[key] = _tuples(value)
    return result


def from_json(text: str) -> ConfigDict:
    """The config that a workdir keeps: `to_json`'s inverse. Knobs it does not know yet take their defaults."""
    cfg = defaults()
    for key, value in flat(json.loads(text)).items():
        if key != "resume":  # that was asked for once
            assign(cfg, key, value)
    return cfg


def to_json(cfg: ConfigDict) -> str:
    """The config as JSON, a person's to read."""
    return json.dumps(cfg.to_dict(), indent=2, sort_keys=True) + "\n"


def changes(old: ConfigDict, new: ConfigDict) -> dict[str, list[str]]:
    """What differs, as lines `key: old -> new`, by class of knob: identity, schedule, free."""
    before, after = flat(old), flat(new)
    result: dict[str, list[str]] = {"identity": [], "schedule": [], "free": []}
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            kind = KNOBS[key].kind if key in KNOBS else ("free" if key.startswith("rules.") else "identity")
            result[kind].append(f"{key}: {before.get(key)!r} -> {after.get(key)!r}")
    return result


def refuse_other_run(workdir: str, old: ConfigDict, new: ConfigDict) -> list[str]:
    """Hold a workdir to its run -> what the new config changes in the schedule, in words.

    Raises UsageError with the difference where identity, or the schedule without `resume=extend`, has changed.
    """
    differs = changes(old, new)
    if differs["identity"]:
        raise UsageError(f"{workdir} holds another run: {'; '.join(differs['identity'])}. Take another --workdir")
    if differs["schedule"] and new.resume != "extend":
        raise UsageError(
            f"{workdir} holds a run with another schedule: {'; '.join(differs['schedule'])}. "
            f"Add --config.resume=extend to go on under the new one, or take another --workdir"
        )
    return differs["schedule"]
