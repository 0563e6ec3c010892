"""Parameter groups of an optimizer, from the Specs: weight decay, frozen leaves, learning rates, stacked dims.

Patterns are shell globs on a leaf's path: `embed/*`, `*/bias`, `blocks/norm?/*`.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

import jax
import numpy as np
from jax.tree_util import KeyPath

from errors import UsageError, unknown
from models.core.spec import Spec, flatten, path_name
from models.core.types import Specs, Tree
from pairs import pairs_error, parse_pairs

STACKED = ("layers", "experts", "qkv", "gates")  # axes along which a leaf stacks several parameters
BELOW_LAYERS = ("embed", "stem")  # the parts of a model below its layers
FACTORS = "PATTERN:FACTOR, with positive factors,"  # optim.lr_multipliers


def group_dims(spec: Spec) -> tuple[list[int], list[int], list[int]]:
    """The dims of a leaf in three groups: stacked, contracted by the matrix product, and the rest."""
    inside = spec.fan_in.split()
    stacked = [i for i, name in enumerate(spec.names) if name in STACKED]
    contracted = [i for i, name in enumerate(spec.names) if name in inside]
    return stacked, contracted, [i for i in range(len(spec.names)) if i not in (*stacked, *contracted)]


def decay_mask(specs: Specs, embeddings: bool) -> Tree:
    """Which leaves have weight decay: leaves with a fan_in, and embedding tables if `embeddings` -> bools."""

    def one(spec: Spec) -> bool:
        table = len([n for n in spec.names if n != "layers"]) > 1 and "embed" in spec.names
        return bool(spec.fan_in) or (embeddings and table)

    return jax.tree.map(one, specs)


def freeze_mask(patterns: str | None, specs: Specs) -> Tree:
    """Which leaves `optim.freeze` freezes -> bools. Raises UsageError if a pattern matches none, or all are frozen."""
    names = flatten(specs)
    frozen = set[str]()
    for pattern in [] if patterns is None else patterns.split(","):
        frozen.update(_match_names("freeze", pattern, names))
    if frozen == set(names):
        raise UsageError(f"optim.freeze = {patterns!r} leaves nothing to train")
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) in frozen, specs)


def lr_multipliers(rates: str | None, layer_decay: float | None, specs: Specs) -> Tree:
    """The multiplier of each leaf's learning rate -> numbers, or arrays along `layers`.

    `rates` is `optim.lr_multipliers`: pattern:factor, joined by commas; the first pattern that matches a leaf counts.
    Raises UsageError for another form, and for a pattern that matches no leaf.
    """
    own = dict.fromkeys(flatten(specs), 1.0)
    if rates == "":
        raise pairs_error(rates, "optim.lr_multipliers", FACTORS)
    for pattern, text in reversed(parse_pairs(rates, "optim.lr_multipliers", FACTORS)):  # the first match counts
        factor = _parse_factor(rates, text)
        own |= dict.fromkeys(_match_names("lr_multipliers", pattern, own), factor)
    decayed = jax.tree.map(lambda _: 1.0, specs) if layer_decay is None else _layerwise_decay(layer_decay, specs)
    return jax.tree_util.tree_map_with_path(lambda path, f: own[path_name(path)] * f, decayed)


def _parse_factor(rates: str | None, text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise pairs_error(rates, "optim.lr_multipliers", FACTORS)
    return factor


def _match_names(knob: str, pattern: str, names: Iterable[str]) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern.strip())]
    if not found:
        folders = {f"{name[:i]}/*" for name in names for i, letter in enumerate(name) if letter == "/"}
        raise unknown(f"parameters in optim.{knob}", pattern.strip(), [*names, *folders])
    return found


def _layerwise_decay(decay: float, specs: Specs) -> Tree:
    """Layer-wise decay: 1 above the layers, decay^(L-l) in layer l of L, decay^(L+1) below the layers.

    Source: Clark et al. 2020, arXiv:2003.10555, appendix B; Bao et al. 2021, arXiv:2106.08254, section 3.2.
    """
    depths = {spec.shape[spec.names.index("layers")] for spec in jax.tree.leaves(specs) if "layers" in spec.names}
    if len(depths) != 1:
        has = f"stacks of {' and '.join(map(str, sorted(depths)))}" if depths else "no stacked layers"
        raise UsageError(f"optim.layer_decay needs one stack of layers; this model has {has}")
    depth = depths.pop()

    def one(path: KeyPath, spec: Spec) -> float | np.ndarray:
        if "layers" not in spec.names:
            return decay ** (depth + 1) if path_name(path).split("/")[0] in BELOW_LAYERS else 1.0
        shape = [n if name == "layers" else 1 for n, name in zip(spec.shape, spec.names, strict=True)]
        return np.asarray(decay ** np.arange(depth, 0, -1), np.float32).reshape(shape)

    return jax.tree_util.tree_map_with_path(one, specs)
