"""Makes pure functions of a user's Flax class, and checks them. `models/families/flax.py` builds a family on them."""

import re
from functools import partial

import jax
from flax import linen, nnx
from flax.errors import InvalidRngError

from errors import UsageError
from models.blocks.flax_adapter.calls import no_mesh, required_kwargs
from models.blocks.flax_adapter.linen import LinenFunctions
from models.blocks.flax_adapter.nnx import NNXFunctions
from models.core.types import Fields

FlaxFunctions = LinenFunctions | NNXFunctions


def adapt(
    kind: type,
    args: Fields,
    example: jax.ShapeDtypeStruct,
    streams: tuple[str, ...],
    wanted: tuple[int, ...] | None = None,
) -> FlaxFunctions:
    """The functions of a Linen or NNX class, built with `args`, for inputs like `example` [1 ...] -> `wanted` [1 ...].

    Raises UsageError for a class that is neither, that cannot be built or run, or whose output has another shape.
    """
    if not issubclass(kind, linen.Module | nnx.Module):
        raise UsageError(f"{kind.__module__}:{kind.__name__} is neither a flax.linen.Module nor a flax.nnx.Module")
    adapter = LinenFunctions if issubclass(kind, linen.Module) else NNXFunctions
    try:
        functions = adapter(kind, args, example, streams)
        _check_outputs(kind, functions, example, wanted)
        return functions
    except UsageError:
        raise
    except InvalidRngError as error:
        missing = ", ".join(re.findall(r'PRNG for "(.*?)"', str(error)))
        raise UsageError(
            f"{kind.__name__} draws from a stream that model.streams = {streams} lacks: add {missing}"
        ) from error
    except Exception as error:  # a user's module may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        given = ", ".join(f"{k}={v!r}" for k, v in args.items()) or "nothing"
        raise UsageError(f"{kind.__name__} cannot be built with {given} and run on {example.shape}: {first}") from error


def _check_outputs(
    kind: type, functions: FlaxFunctions, example: jax.ShapeDtypeStruct, wanted: tuple[int, ...] | None
) -> None:
    """Trace a module in training and in inference. Raises UsageError for no parameters and for other outputs."""
    key = jax.random.key(0)
    name = kind.__name__
    run = partial(functions.run, extras=required_kwargs(kind.__call__, example))
    with no_mesh():
        tree = jax.eval_shape(functions.init, key)
        if not jax.tree.leaves(tree.get("params")):
            raise UsageError(f"{name} has no parameters")
        for train in (False, True):
            value, _, _ = jax.eval_shape(partial(run, train=train), tree, example, key=key if train else None)
            if not isinstance(value, jax.ShapeDtypeStruct):
                raise UsageError(f"{name} returns a {type(value).__name__}; it must return one array")
            if wanted is not None and value.shape != wanted:
                raise UsageError(f"{name} returns shape {value.shape}; it must be {wanted}")
