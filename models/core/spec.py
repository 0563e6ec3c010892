"""Specs of parameters, the single source of truth about them.

A family's `specs(c)` gives each parameter's shape, axis names, initializer and fan-in on one line. Initial values,
shardings, counts, weight decay, the checkpoint's target and its manifest are derived from these specs.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jax.tree_util import KeyPath
from jax.typing import DTypeLike
from jaxtyping import PyTree

from models.core.types import Array, Cache, Leaf, Stats, Sums, Tree

Initializer = Callable[[Array, tuple[int, ...], "Spec"], Array]
Place = Callable[[str], PartitionSpec | None]  # "batch seq width" -> PartitionSpec, or None without a mesh


def unsharded(axes: str) -> None:
    """The Place without a mesh: every `out_sharding` is None."""


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n, such as the rows of a padded vocabulary."""
    return -(-n // multiple) * multiple


def zeros(key: Array, shape: tuple[int, ...], spec: "Spec") -> Array:
    """All 0, float32."""
    return jnp.zeros(shape, jnp.float32)


def ones(key: Array, shape: tuple[int, ...], spec: "Spec") -> Array:
    """All 1, float32."""
    return jnp.ones(shape, jnp.float32)


def lecun_normal(key: Array, shape: tuple[int, ...], spec: "Spec") -> Array:
    """Gaussian of standard deviation 1/sqrt(fan-in), which preserves unit variance (LeCun et al. 1998, eq. 16)."""
    return jax.random.normal(key, shape, jnp.float32) * spec.fan_in_size**-0.5


def he_normal(key: Array, shape: tuple[int, ...], spec: "Spec") -> Array:
    """Gaussian of standard deviation sqrt(2/fan-in), for relu (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    return jax.random.normal(key, shape, jnp.float32) * (2 / spec.fan_in_size) ** 0.5


def normal(deviation: float) -> Initializer:
    """Gaussian of the given standard deviation."""

    def gaussian(key: Array, shape: tuple[int, ...], spec: "Spec") -> Array:
        return jax.random.normal(key, shape, jnp.float32) * deviation

    return gaussian


def uniform(bound: float) -> Initializer:
    """Uniform between -bound and bound."""

    def flat(key: Array, shape: tuple[int, ...], spec: "Spec") -> Array:
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    return flat


def constant(value: float) -> Initializer:
    """All equal to `value`."""

    def full(key: Array, shape: tuple[int, ...], spec: "Spec") -> Array:
        return jnp.full(shape, value, jnp.float32)

    return full


@dataclass(frozen=True)
class JointInit:
    """Initializer of a leaf drawn jointly with others, and for all layers at once: `values` is key -> {path: value}."""

    values: Callable[[Array], dict[str, Array]]
    path: str

    def __call__(self, key: Array, shape: tuple[int, ...], spec: "Spec") -> Array:
        """Draw all leaves jointly from the key, and return this one."""
        return self.values(key)[self.path]


@dataclass(frozen=True)
class Spec:
    """One parameter or running statistic: shape, a name for each dim, initializer, contracted axes.

    Not a pytree, so `jax.tree.map` treats it as a leaf. `fan_in` names the axes that a product contracts; the others,
    except `layers`, `experts`, `qkv` and `gates`, are fan-out. A leaf without fan_in is a vector or a table of vectors.

    Raises ValueError if `axes` does not name each dim once, or `fan_in` names an unknown axis.
    """

    shape: tuple[int, ...]
    axes: str
    init: Initializer = field(repr=False)
    fan_in: str = ""
    dtype: str | None = None  # None is the run's dtype of parameters, float32 or bfloat16

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shape):
            raise ValueError(
                f"Spec names {len(self.names)} axes ({self.axes!r}) for {len(self.shape)} dims {self.shape}"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"Spec names an axis twice: {self.axes!r}")
        if any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise ValueError(f"Spec {self.axes!r} has a dim that is not a positive integer: {self.shape}")
        strange = set(self.fan_in.split()) - set(self.names)
        if strange:
            raise ValueError(f"Spec fan_in names {sorted(strange)}, which is not among its axes {self.axes!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """The axis names, one per dim."""
        return tuple(self.axes.split())

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def fan_in_size(self) -> int:
        """Product of the contracted dims; 1 for a vector."""
        inside = self.fan_in.split()
        return math.prod(n for n, name in zip(self.shape, self.names, strict=True) if name in inside)


@struct.dataclass
class LazyLogits:
    """Logits not yet computed: x [B T D] times table [V D] transposed, plus an optional bias [V].

    Rows of the table from `vocab` on are padding. With `softcap` the logits become softcap tanh(logits / softcap).
    """

    x: Leaf
    table: Leaf
    vocab: int = struct.field(pytree_node=False)
    bias: Leaf = None
    softcap: float | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Outputs:
    """What `apply` returns.

    value: scores, values or boxes; of a language model a LazyLogits.
    stats: the new running statistics, the same tree as in `variables`.
    cache: the new cache.
    aux_losses: name -> (sum [], weight []); in training sum / weight is added to the loss.
    metrics: name -> (sum [B ...], weight [B]), logged as sum / weight; further dims give one metric per entry.
    mtp_values: values for the tokens after the next one, one for each further token (multi-token prediction).
    mtp_weight: in training the mean loss of `mtp_values` times this weight is added to the loss.
    """

    value: Any
    stats: Stats | None = None
    cache: Cache | None = None
    aux_losses: Sums = struct.field(default_factory=dict)
    metrics: Sums = struct.field(default_factory=dict)
    mtp_values: tuple[LazyLogits, ...] = ()
    mtp_weight: float = struct.field(pytree_node=False, default=0.0)


def path_name(path: KeyPath) -> str:
    """A pytree path as `blocks/norm1/scale`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: PyTree) -> dict[str, Leaf]:
    """A tree's leaves by path name, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[str, Leaf]) -> Tree:
    """Nested dicts of leaves by path name: the inverse of `flatten` for trees of dicts."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        inside = tree
        for folder in folders:
            inside = inside.setdefault(folder, {})
        inside[name] = leaf
    return tree


def _leaf_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def initialize(specs: PyTree, key: Array) -> PyTree:
    """Initial values of a tree of Specs: the key of a leaf folds in its path, that of a layer also its index.

    A parameter's values thus depend on the key, its path and its layer only: an ablation that adds a parameter or a
    layer leaves the others bit-identical. Leaves with a `JointInit` share one draw, from the key itself. Meant to run
    under jit. Raises ValueError if two paths have the same hash.
    """
    seen: dict[int, str] = {}
    for name in flatten(specs):
        other = seen.setdefault(_leaf_hash(name), name)
        if other != name:
            raise ValueError(f"parameters {other!r} and {name!r} have the same hash: rename one")

    joint: dict[Callable[[Array], dict[str, Array]], dict[str, Array]] = {}

    def leaf(path: KeyPath, spec: Spec) -> Array:
        if isinstance(spec.init, JointInit):
            if spec.init.values not in joint:
                joint[spec.init.values] = spec.init.values(key)
            return joint[spec.init.values][spec.init.path].astype(spec.dtype or jnp.float32)
        own = jax.random.fold_in(key, _leaf_hash(path_name(path)))
        if spec.names[:1] != ("layers",):
            return spec.init(own, spec.shape, spec).astype(spec.dtype or jnp.float32)
        keys = jax.vmap(lambda i: jax.random.fold_in(own, i))(jnp.arange(spec.shape[0]))
        return jax.vmap(lambda k: spec.init(k, spec.shape[1:], spec))(keys).astype(spec.dtype or jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, specs)


def abstract(specs: PyTree, dtype: DTypeLike = jnp.float32) -> PyTree:
    """The ShapeDtypeStructs of what `initialize` returns."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype or dtype), specs)


def count(specs: PyTree) -> int:
    """Number of scalars in a tree of Specs."""
    return sum(s.size for s in jax.tree.leaves(specs))
