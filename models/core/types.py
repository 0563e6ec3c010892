"""Types that signatures share, by name. A tree is nested dicts with an array, a Spec or a sharding at each leaf."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array
Tree = dict[str, Any]  # nested dicts
Leaf = Any  # of a tree: an array of jax or NumPy, or in its place a Spec, a shape or a sharding

Specs = Tree  # of Spec
Params = Tree  # of arrays: the parameters of a model, a layer or a part of it
Stats = Tree  # of arrays: running statistics
Cache = Tree  # of arrays: what a call leaves to the next one, in all layers or in one
Variables = dict[str, Tree]  # {"params": Params, "stats": Stats}; "stats" only if there are any
Inputs = dict[str, Array]  # the fields of a batch
Sums = dict[str, tuple[Array, Array]]  # name -> (sum, weight), reported as sum / weight

Fields = dict[str, Any]  # of a Config: name -> value
OutSharding = NamedSharding | PartitionSpec | None  # of a result; None without a mesh
