"""Digests of arrays: numbers computed from the bits, equal on every mesh.

Small arrays of one device are summed by numpy: a program for each shape took 1 s of a small run's first start.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, auto_axes

from errors import UsageError
from models.core.spec import flatten
from models.core.types import Tree

Bits = TypeVar("Bits", jax.Array, np.ndarray)  # uint32

SALTS = 0x9E3779B9, 0x7F4A7C15
HOST_SIZE = 2**20  # scalars of the largest array that the host sums


def _mix(x: Bits, salt: int) -> Bits:
    """A bijection of uint32, so that a changed bit of x always changes it (the finaliser of MurmurHash3)."""
    x = x ^ np.uint32(salt)
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _digest(x: jax.Array) -> jax.Array:
    """Two sums modulo 2^32 over a leaf's bits, each mixed with its index: equal on any mesh. [...] -> [2] uint32."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize > 4:
        raise TypeError(f"no digest for {x.dtype}: a state holds numbers of 32 bits or fewer")
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    sums = [jnp.sum(_mix(bits ^ _mix(index, salt), salt + 1), dtype=jnp.uint32) for salt in SALTS]
    return jnp.stack(sums)


@partial(jax.jit, static_argnums=1)
def _replicated_digest(leaf: jax.Array, explicit: bool) -> jax.Array:
    return auto_axes(_digest, out_sharding=PartitionSpec())(leaf) if explicit else _digest(leaf)


def _host_digest(leaf: jax.Array) -> np.ndarray:
    """`_digest` by numpy. The view of the leaf ends here, so the leaf can be donated afterwards."""
    x = np.asarray(leaf.addressable_data(0)).reshape(-1)
    bits = x.view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32)
    index = np.arange(x.size, dtype=np.uint32)
    return np.stack([np.sum(_mix(bits ^ _mix(index, salt), salt + 1), dtype=np.uint32) for salt in SALTS])


def _is_for_host(leaf: jax.Array) -> bool:
    return leaf.size <= HOST_SIZE and leaf.dtype.itemsize <= 4 and len(leaf.sharding.device_set) == 1


def check_dtypes(tree: Tree) -> None:
    """Raise UsageError for a leaf, an array or its ShapeDtypeStruct, whose dtype has no digest."""
    for dtype, name in {x.dtype: name for name, x in flatten(tree).items()}.items():
        try:
            jax.eval_shape(_digest, jax.ShapeDtypeStruct((), dtype))
        except (TypeError, ValueError):
            raise UsageError(
                f"the state's {name} is {dtype}, which no checkpoint can hold; legal: bools and numbers of 8, 16 or 32 "
                f"bits (of a PRNG key, jax.random.key_data)"
            ) from None


LeafRecord = dict[str, Any]  # of a manifest: shape, dtype and digest of a leaf


def digests(tree: Tree) -> dict[str, str]:
    """The digest of each leaf by path, 16 hex digits; the same on any mesh.

    Larger leaves of one shape, dtype and sharding share a program. Each program ends before the next begins:
    collectives of several programs in flight wait for each other on simulated devices.
    """
    leaves = flatten(tree)
    meshes = [x.sharding.mesh for x in leaves.values() if isinstance(x.sharding, NamedSharding)]
    with jax.set_mesh(cast(Mesh, meshes[0])) if meshes else nullcontext():
        pairs = {
            name: _host_digest(x) if _is_for_host(x) else jax.device_get(_replicated_digest(x, bool(meshes)))
            for name, x in leaves.items()
        }
    return {name: f"{int(a):08x}{int(b):08x}" for name, (a, b) in pairs.items()}


def describe(tree: Tree) -> dict[str, LeafRecord]:
    """Shape, dtype and digest of each leaf, for a manifest."""
    codes = digests(tree)
    return {k: {"shape": list(x.shape), "dtype": str(x.dtype), "digest": codes[k]} for k, x in flatten(tree).items()}
