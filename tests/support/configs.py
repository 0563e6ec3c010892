"""Every config file, and every named config with every ablation of its file."""

from functools import cache
from importlib import import_module

from configs import reader
from configs.knobs import RunConfig
from tests.support import ROOT

FILES = {
    path.stem: import_module(f"configs.{path.stem}")
    for path in sorted((ROOT / "configs").glob("*.py"))
    if path.stem not in reader.NOT_CONFIGS
}
VARIANTS = [
    (file, "+".join(filter(None, (name, ablation))))
    for file, module in FILES.items()
    for name in module.CONFIGS
    for ablation in (None, *module.ABLATIONS)
]
CHANGED = {
    **{"int": 7, "float": 0.125, "str": "other", "bool": True},
    **{"tuple[float]": (0.25, 0.75), "tuple[int]": (3, 5), "tuple[str]": ("other", "a.py:b")},
}


@cache
def config(file: str, names: str) -> RunConfig:
    """The RunConfig of a named config, one for all tests."""
    return reader.freeze(FILES[file].get_config(names))
