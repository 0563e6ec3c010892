"""Listings for `launch.py list`: the configs and ablations of a file, and the knobs."""

import inspect
from collections.abc import Collection, Mapping

from configs import reader
from configs.knobs import KNOBS, Knobs
from configs.unread import FACTS, READ_UNDER
from errors import unknown


def of_file(path: str) -> list[str]:
    """A config file's docstring, configs and ablations with the knobs they set. Raises UsageError as reader.read."""
    made = reader.variables(path)
    configs, ablations = (made.get(name) or {} for name in ("CONFIGS", "ABLATIONS"))
    text = inspect.cleandoc(made.get("__doc__") or "").splitlines()
    lines = [*text, "", f"configs, as --config={path}:NAME"]
    for name, keys in configs.items():
        lines.append(
            f"  {name:<20} {_shown({k: keys[k] for k in ('model.family', 'model.size', 'data.name') if k in keys})}"
        )
    if ablations:
        lines += ["", f"ablations, as --config={path}:NAME+ABLATION"]
    return [*lines, *(f"  {name:<20} {_shown(keys)}" for name, keys in ablations.items())]


def of_knobs(section: str | None, choices: Mapping[str, Collection[str]]) -> list[str]:
    """The knobs of a section, or all: default, meaning, words (`choices`), type, class and condition.

    Raises UsageError for an unknown section.
    """
    sections = list(dict.fromkeys(key.partition(".")[0] for key in KNOBS))
    if section is not None and section not in sections:
        raise unknown("section of knobs", section, sections)
    lines = []
    for key, knob in KNOBS.items():
        if section in (None, key.partition(".")[0]):
            under = " and ".join(
                f"{FACTS[name][0] if name in FACTS else f'{name} is'} {' or '.join(values)}"
                for name, values in READ_UNDER.get(key, {}).items()
            )
            lines += [f"--config.{key}={knob.default}", f"    {knob.says}"]
            if key in choices:
                lines.append(f"    one of {', '.join(choices[key])}")
            lines.append(f"    {knob.type}; {knob.kind}{f'; read where {under}' if under else ''}")
    return lines


def _shown(keys: Knobs) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items())
