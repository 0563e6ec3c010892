"""A fence: a value that XLA's CPU backend computes once, not again in each of its consumers.

The CPU backend fuses a chain of elementwise operations and reductions into every consumer. The residual stream is such
a chain through all layers: without fences each norm, and each gradient of one, computes the sum of all earlier
branches again (docs/decisions/0035).
"""

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from models.core.types import Array

# Options of `jax.jit` on CPU. By default XLA removes barriers before fusion; it cannot compile one in a hoisted loop.
KEEP_FENCES = {"xla_disable_hlo_passes": "cse_barrier_expander,small-while-loop-hoisting"}

_fence = Primitive("fence")


def fence(x: Array) -> Array:
    """x [...], which the consumers of x and of its gradient read from memory if jitted with `KEEP_FENCES` on CPU.

    On other platforms it lowers to x itself.
    """
    return _fence.bind(x)


_fence.def_impl(lambda x: x)
_fence.def_abstract_eval(lambda x: x)
ad.deflinear(_fence, lambda g: [fence(g)])
batching.defvectorized(_fence)
mlir.register_lowering(_fence, lambda ctx, x: [x])
mlir.register_lowering(_fence, mlir.lower_fun(jax.lax.optimization_barrier, multiple_results=False), platform="cpu")
