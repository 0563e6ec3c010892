"""For config files: a ConfigDict with every knob of `configs/knobs.py`, from named configs and ablations."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.knobs import KNOBS, Knobs, RunConfig, check_key
from configs.section import Value
from errors import UsageError, unknown


def config(names: str, configs: Mapping[str, Knobs], ablations: Mapping[str, Knobs]) -> ConfigDict:
    """The ConfigDict of `small+no_warmup`: one named config, then ablations, each a dict of dotted keys.

    Raises UsageError for an unknown name, and unless exactly one config comes first.
    """
    chosen = [n for n in names.split("+") if n]
    legal = f"configs: {', '.join(configs)}; ablations: {', '.join(ablations) or 'none'}"
    for name in chosen:
        if name not in configs and name not in ablations:
            raise UsageError(f"{unknown('config or ablation', name, [*configs, *ablations], listed=False)} {legal}")
    if sum(n in configs for n in chosen) != 1 or chosen[0] not in configs:
        raise UsageError(f"{names!r} must begin with one config, then ablations; {legal}")
    result = defaults()
    for name in chosen:
        for key, value in (configs[name] if name in configs else ablations[name]).items():
            assign(result, key, value)
    return result


def defaults() -> ConfigDict:
    """Every knob at its default."""
    return ConfigDict(RunConfig().to_dict())


def assign(cfg: ConfigDict, key: str, value: Value) -> None:
    """Set one dotted key to a value of its type. Raises UsageError for an unknown key or a wrong type."""
    check_key(key)
    value = KNOBS[key].check(key, value) if key in KNOBS else value
    *sections, last = key.split(".")
    for section in sections:
        if section not in cfg:
            with cfg.unlocked():
                cfg[section] = ConfigDict()
        cfg = cfg[section]
    with cfg.unlocked(), cfg.ignore_type():  # both walk the whole subtree: call them on the section
        cfg[last] = value
