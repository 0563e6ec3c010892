"""`jax.jit` with options of XLA's compiler, for the programs that a run repeats."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from models.core.fence import KEEP_FENCES

# YNNPACK computes many convolutions on one core, and products of few columns or in batches at half of Eigen's speed
# (docs/decisions/0039). Its sums are faster.
REDUCE_BY_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


@dataclass(frozen=True, eq=False)
class Program:
    """A jitted function. Inside of another one it runs without compiler options, which JAX refuses there."""

    compiled: Any  # jitted, with compiler options
    nested: Any  # jitted

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
        return (self.nested if traced else self.compiled)(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """The lowered program."""
        return self.compiled.lower(*args)


def jit(function: Callable[..., Any], mesh: Mesh, **how: Any) -> Program:
    """`jax.jit` for the devices of a mesh: on CPU with KEEP_FENCES and REDUCE_BY_YNNPACK."""
    options = cpu_options() if mesh.devices.flat[0].platform == "cpu" else {}
    return Program(jax.jit(function, compiler_options=dict(options), **how), jax.jit(function, **how))


@functools.cache
def cpu_options() -> dict[str, str]:
    """The options for CPU that this jaxlib knows: it fails on others."""
    return {name: value for name, value in (KEEP_FENCES | REDUCE_BY_YNNPACK).items() if _is_known(name, value)}


def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
