"""The precisions of training, and stochastic rounding: bfloat16 parameters whose updates are below their last bit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.tree_util import KeyPath
from jax.typing import DTypeLike

from models.core.layers import site_hash
from models.core.spec import path_name
from models.core.types import Params, Tree


class Precision(NamedTuple):
    """The dtypes of a run."""

    compute: str  # of activations
    params: DTypeLike
    products: str  # jax's matmul precision, of products of float32


PRECISIONS = {
    "f32": Precision("float32", jnp.float32, "highest"),
    "bf16": Precision("bfloat16", jnp.float32, "default"),
    "bf16_params": Precision("bfloat16", jnp.bfloat16, "default"),
}
DROPPED = 16  # low bits of a float32 that bfloat16 lacks


def products_of(compute: str) -> str:
    """jax's matmul precision for activations of a dtype."""
    return next(precision.products for precision in PRECISIONS.values() if precision.compute == compute)


def round_stochastically(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Round float32 to one of the two nearest bfloat16, with probabilities such that the expectation is exact.

    x float32 [...], noise uint16 [...], uniform -> bfloat16 [...]. A value that bfloat16 can represent, an
    infinity and NaN stay unchanged. Source: Gupta et al. 2015, arXiv:1502.02551, section 3.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise.astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits >> DROPPED).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def cast_parameters(new: Params, old: Params, key: jax.Array, specs: Tree) -> Params:
    """Cast new float32 parameters to the dtypes of the old ones; to bfloat16 by stochastic rounding.

    `key` depends on (seed, step); each leaf folds its path into it. The noise is drawn for whole leaves, sharded by the
    PartitionSpecs `specs`, so that it is the same on any mesh.
    """

    def cast(path: KeyPath, x: jax.Array, held: jax.Array, spec: PartitionSpec) -> jax.Array:
        if held.dtype != jnp.bfloat16:
            return x.astype(held.dtype)
        own = jax.random.fold_in(key, site_hash(path_name(path)))
        return round_stochastically(x, jax.random.bits(own, x.shape, jnp.uint16, out_sharding=spec))

    return jax.tree_util.tree_map_with_path(cast, new, old, specs)
