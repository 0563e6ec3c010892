"""A user's own Flax module, Linen or NNX, as a family: trained, sharded, saved and evaluated like any other.

Its abstract parameters become the specs. Axes named by partitioning metadata follow our rules; without metadata the
largest dim that 16 divides is sharded over fsdp. The module runs inside `auto_axes`, on weights gathered over the axes
that shard the rows. Its noise is drawn for a whole batch, so accumulation changes it (trait `batch_coupled`).
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, auto_axes
from jax.tree_util import KeyPath

import imports
from errors import unknown
from models.blocks.flax_adapter.adapter import FlaxFunctions, adapt
from models.blocks.flax_adapter.calls import init_arguments
from models.core.checks import positive, refuse, unfreeze
from models.core.layers import gather_weight
from models.core.spec import JointInit, Outputs, Place, Spec, flatten, path_name, unsharded
from models.core.types import Array, Fields, Inputs, Params, Specs, Stats, Variables

TRAITS = frozenset({"classifier", "language_model", "regressor", "running_stats", "batch_coupled"})
OUTPUT_KINDS = {"classes": "classifier", "outputs": "regressor", "vocab": "language_model"}  # by the first that is set
INPUT = "features"
FIELDS = ("image", "features", "tokens")  # the module is called with the first of these that the batch has
READS = (FIELDS, ())
UNCONTRACTED = ("bias", "scale", "mean", "var", "embedding")  # leaves that are no kernel of a product, of any rank
ZERO_GRAD: dict[str, str] = {}
SIZES: dict[str, Fields] = {}


@dataclass(frozen=True)
class Config:
    """The class, its arguments, its inputs and outputs."""

    module: str = ""  # package.file:ClassName, importable from where Canon runs
    args: tuple[Any, ...] = ()  # of its constructor; on the command line --config.model.args.NAME=VALUE
    streams: tuple[str, ...] = ("dropout",)  # random streams of a Linen module
    shape: tuple[int, ...] = ()  # of one row of its input; empty: `context` tokens
    context: int = 64  # tokens per row of text
    classes: int | None = None
    vocab: int | None = None  # tokens
    outputs: int | None = None  # real values

    def __post_init__(self) -> None:
        positive(self, "shape", "context", "classes", "vocab", "outputs")
        if self.module.count(":") != 1:
            refuse(self, "module", "package.file:ClassName")


def fit(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields that the data determine: the shape of a row."""
    return {"shape": shapes[next(name for name in FIELDS if name in shapes)]}


def traits(c: Config) -> frozenset[str]:
    """The traits of a Config, by its outputs; the rows are coupled by its noise at least."""
    kind = next((trait for name, trait in OUTPUT_KINDS.items() if getattr(c, name) is not None), "regressor")
    return frozenset({kind, "batch_coupled"} | ({"running_stats"} if "stats" in specs(c) else set()))


@functools.cache
def _module(c: Config) -> FlaxFunctions:
    """The module's functions. Arguments named classes, vocab or outputs default to the Config's fields."""
    where, _, name = c.module.partition(":")
    python_module = imports.load_module(where, f"flax: module = {c.module!r}")
    if not isinstance(getattr(python_module, name, None), type):
        raise unknown(f"class of {where}", name, [k for k, v in vars(python_module).items() if isinstance(v, type)])
    kind = getattr(python_module, name)
    args = {k: unfreeze(v) for k, v in c.args}
    names, takes_others = init_arguments(kind)
    for argument in args:
        if argument not in names and not takes_others:
            raise unknown(f"argument of {name}", argument, names)
    sizes = {"classes": c.classes, "vocab": c.vocab, "outputs": c.outputs}
    args = {**{k: v for k, v in sizes.items() if v is not None and k in names}, **args}
    example = jax.ShapeDtypeStruct((1, *(c.shape or (c.context,))), jnp.float32 if c.shape else jnp.int32)
    output = next((name for name in OUTPUT_KINDS if sizes[name] is not None), None)
    wanted = None if output is None else (1, *(example.shape[1:2] if output == "vocab" else ()), sizes[output])
    return adapt(kind, args, example, c.streams, wanted)


def main_dims(c: Config) -> str:
    """The dims of the main input."""
    inner = (f"N{i}" for i in range(1, len(c.shape)))
    return " ".join(("B", *inner, "inputs")) if c.shape else "B T"


def specs(c: Config) -> Specs:
    """Specs of the parameters, and of all other collections under `stats`."""
    module = _module(c)
    tree = jax.eval_shape(module.init, jax.random.key(0))

    def values(key: Array) -> dict[str, Array]:
        return flatten(module.init(key))

    def spec(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> Spec:
        name = path_name(path)
        trained = name.startswith("params/")
        axes = _axes(leaf.shape, module.axes.get(name, ()), trained)
        inside = [axis for axis in axes[:-1] if axis != "layers"]
        contracted = trained and name.rpartition("/")[2] not in UNCONTRACTED
        dtype = None if leaf.dtype == jnp.float32 else str(leaf.dtype)
        return Spec(leaf.shape, " ".join(axes), JointInit(values, name), " ".join(inside) if contracted else "", dtype)

    table = jax.tree_util.tree_map_with_path(spec, tree)
    stats = {name: part for name, part in table.items() if name != "params"}
    return {"params": table["params"], **({"stats": stats} if stats else {})}


def _axes(shape: tuple[int, ...], named: tuple[str | None, ...], trained: bool) -> list[str]:
    """A name for each dim: the metadata's, else `shard` for the one to shard over fsdp, and `dim0`, `dim1` …"""
    axes = [f"dim{i}" for i in range(len(shape))]
    for i, name in enumerate(named):
        if name is not None:
            axes[i] = name
    divisible = [i for i, n in enumerate(shape) if n % 16 == 0]
    if trained and divisible and not any(named):
        axes[max(divisible, key=lambda i: shape[i])] = "shard"
    return axes


def apply(
    variables: Variables,
    inputs: Inputs,
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: None = None,
    place: Place = unsharded,
) -> Outputs:
    """The module's output, float32, and its changed collections as stats: [B ...] -> [B C], [B outputs] or [B T V]."""
    x = next(inputs[name] for name in FIELDS if name in inputs)
    if x.dtype != jnp.float32 and not jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.float32)
    module = _module(c)

    def run(params: Params, stats: Stats, x: Array, extras: Inputs, keys: Array | None) -> tuple[Array, Stats, Array]:
        own = None if keys is None else keys[0]
        value, new, losses = module.run({"params": params, **stats}, x, train, own, extras)
        aux = sum((jnp.sum(leaf) for leaf in jax.tree.leaves(losses)), start=jnp.zeros(()))
        return value.astype(jnp.float32), new, aux

    stats = variables.get("stats", {})
    replicated = PartitionSpec()
    extras = {name: inputs[name] for name in module.extras if name in inputs}
    args = jax.tree.map(lambda w: gather_weight(w, x), variables["params"]), stats, x, extras, key if train else None
    rows = place("batch")
    if rows is not None:
        rank = len(jax.eval_shape(run, *jax.tree.map(_plain, args))[0].shape)
        over = PartitionSpec(*rows, *[None] * (rank - 1)), jax.tree.map(lambda _: replicated, stats), replicated
        run = auto_axes(run, out_sharding=over)
    value, stats, aux = run(*args)
    return Outputs(value, stats=stats, aux_losses={"sown": (aux, jnp.ones(()))} if train else {})


def _plain(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
