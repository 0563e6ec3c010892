"""The table of families, a family with a config as a `Model`, and `build`, which makes one."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree

import renamed
from errors import UsageError, unknown
from models.core import spec
from models.core.checks import FrozenDict, check_type, check_types, freeze
from models.core.intermediates import collect
from models.core.layers import compute_logits, per_row_keys
from models.core.spec import LazyLogits, Outputs, Place, Spec, unsharded
from models.core.types import Array, Cache, Specs, Stats, Sums, Variables
from models.families import (
    bert,
    cnn,
    deepseek,
    flax,
    gemma,
    gemma4,
    gpt,
    gpt_oss,
    grok,
    llama,
    llama4,
    mixtral,
    mlp,
    resnet,
    rnn,
    seq2seq,
    transformer,
    vgg,
    vit,
    yolo,
)
from models.inputs import Sizes, check_inputs, check_variables

FAMILIES: dict[str, ModuleType] = {
    **{"mlp": mlp, "cnn": cnn, "rnn": rnn, "gpt": gpt, "llama": llama, "mixtral": mixtral, "bert": bert},
    **{"gemma": gemma, "deepseek": deepseek, "gpt_oss": gpt_oss, "llama4": llama4, "grok": grok},
    "gemma4": gemma4,
    **{"vgg": vgg, "resnet": resnet, "vit": vit, "yolo": yolo, "seq2seq": seq2seq, "transformer": transformer},
    "flax": flax,
}

TRAITS = frozenset(  # the closed list: the trainer and the contract tests choose by these
    {
        *("causal", "cached", "carried", "running_stats", "batch_coupled"),
        *("classifier", "detector", "language_model", "regressor", "encoder", "encoder_decoder"),
    }
)


@dataclass(frozen=True)
class Model:
    """A family with a config: pure functions that share one tree of parameter specs."""

    family: str
    config: Any  # the family's Config

    @property
    def module(self) -> ModuleType:
        """The family's module."""
        return FAMILIES[self.family]

    @property
    def traits(self) -> frozenset[str]:
        """The model's traits, a subset of TRAITS: `traits(config)` if the family has it, otherwise its TRAITS."""
        return self.module.traits(self.config) if hasattr(self.module, "traits") else self.module.TRAITS

    @cached_property
    def specs(self) -> Specs:
        """{"params": tree of Spec, optionally "stats": tree of Spec}."""
        return self.module.specs(self.config)

    def init(self, key: Array, out_shardings: PyTree = None) -> Variables:
        """Initial variables, float32, drawn under jit from a PRNG key []; sharded by out_shardings if given."""
        return jax.jit(partial(spec.initialize, self.specs), out_shardings=out_shardings)(key)

    def apply(
        self,
        variables: Variables,
        inputs: Mapping[str, ArrayLike] | ArrayLike,
        *,
        train: bool = False,
        key: Array | None = None,
        cache: Cache | None = None,
        place: Place = unsharded,
        logits: bool = True,
    ) -> Outputs:
        """The family's `apply`. A bare array stands for the main input; one PRNG key is split over the rows.

        The value of a language model or a translator is its logits [B T V]; with `logits` False it is a LazyLogits,
        from which a loss can compute them in chunks: with a large vocabulary the logits are the largest array.

        Raises UsageError for a cache if the model has none.
        """
        if cache is not None and "cached" not in self.traits:
            raise UsageError(f"{self.family} as configured has no cache")
        variables = jax.tree.map(jnp.asarray, variables)
        given = inputs if isinstance(inputs, Mapping) else {self.module.INPUT: inputs}
        fields = {name: jnp.asarray(x) for name, x in given.items()}
        if key is not None and key.ndim == 0:
            key = per_row_keys(key, jnp.arange(next(iter(fields.values())).shape[0]))
        out = self.module.apply(variables, fields, self.config, train=train, key=key, cache=cache, place=place)
        if logits and isinstance(out.value, LazyLogits):
            return out.replace(value=compute_logits(out.value, place("batch seq vocab")))
        return out

    def update_stats(self, stats: Stats, metrics: Sums) -> Stats:
        """Statistics after an update, from those after its batch and the batch's metrics, name -> (sum, weight)."""
        if not hasattr(self.module, "update_stats"):
            return stats
        return self.module.update_stats(stats, {name: total for name, (total, _) in metrics.items()}, self.config)

    def predict(self, variables: Variables, inputs: Mapping[str, ArrayLike] | ArrayLike) -> Any:
        """The value of `apply` outside of training: class scores [B C], or next-token logits [B T V], in float32.

        Decoders and BERT take `embeds` [B T D] in place of `tokens` [B T]. Raises UsageError for variables that are not
        the model's, for a batch without rows, and for an input that is missing, of other dims or, which a traced call
        cannot see, out of range. Fields that the family does not read are ignored.
        """
        value = self._evaluate(variables, inputs).value
        return value[..., : self.config.vocab] if {"language_model", "encoder_decoder"} & self.traits else value

    def intermediates(
        self, variables: Variables, inputs: Mapping[str, ArrayLike] | ArrayLike, names: Iterable[str] | None = None
    ) -> dict[str, Array | list[Array]]:
        """Values inside of `predict`'s forward pass by name, all or those of `names`: name -> [N ...].

        N are the layers that have the value, first to last; the result is a list if shapes differ between layers. The
        names are in docs/python.md, and `jax.eval_shape(model.intermediates, variables, inputs)` gives those of a model
        with their shapes, at no cost. Attention runs by the backend `reference`, which has its weights as an array.
        Values in the loops of `lax.while_loop` and the branches of `lax.cond` are left out. Raises UsageError for a
        name that no value has, and as `predict`.
        """
        fields = {field.name for field in dataclasses.fields(self.config)}
        plain = dataclasses.replace(self.config, attention="reference") if "attention" in fields else self.config
        model = Model(self.family, plain)
        return collect(lambda: model._evaluate(variables, inputs, logits=False).value, names)

    def _evaluate(
        self, variables: Variables, inputs: Mapping[str, ArrayLike] | ArrayLike, logits: bool = True
    ) -> Outputs:
        """`apply` outside of training. Raises UsageError as `predict`."""
        fields, _ = self.check(variables, inputs if isinstance(inputs, Mapping) else {self.module.INPUT: inputs})
        return self.apply(variables, fields, logits=logits)

    def check(self, variables: Variables, given: Mapping[str, ArrayLike]) -> tuple[dict[str, Array], Sizes]:
        """The fields of a batch as arrays, and the sizes of their dims. Raises UsageError as `predict`."""
        check_variables(self.family, self.specs, variables)
        return check_inputs(self.family, self.module, self.config, self.specs, given)

    def cache_specs(self, batch: int, length: int, source: int | None = None) -> Specs:
        """Specs of a cache for `batch` rows of at most `length` tokens; `source` is a translator's source length.

        Raises UsageError if the family has no cache, and for a `source` if it is no translator.
        """
        if "cached" not in self.traits:
            raise UsageError(
                f"family {self.family!r} has no cache; families with one: {', '.join(_with_trait('cached'))}"
            )
        if "encoder_decoder" in self.traits:
            return self.module.cache(self.config, batch, length, source)
        if source is not None:
            raise UsageError(f"family {self.family!r} is no translator; its cache takes no source ({source} tokens)")
        return self.module.cache(self.config, batch, length)

    def cache(self, batch: int, length: int, source: int | None = None) -> Cache:
        """An empty cache with the specs of `cache_specs`. Raises UsageError as `cache_specs`."""
        return spec.initialize(self.cache_specs(batch, length, source), jax.random.key(0))

    def count(self, active: bool = False) -> int:
        """Number of parameters, without padding of the vocabulary, as published.

        With `active` only those used per token: of the experts, `experts_per_token`.
        """
        config = self.config
        if hasattr(config, "vocab_multiple"):
            config = dataclasses.replace(config, vocab_multiple=1)
        leaves: list[Spec] = jax.tree.leaves(self.module.specs(config)["params"])
        routed = sum(leaf.size for leaf in leaves if "experts" in leaf.names)
        idle = routed - routed * config.experts_per_token // config.experts if active and routed else 0
        return sum(leaf.size for leaf in leaves) - idle


def build(family: str, size: str | None = None, **overrides: Any) -> Model:
    """Build a model of a family: a published size or the defaults, with fields overridden by name.

    Raises UsageError for an unknown family, size or field (giving the nearest) and for an illegal value.
    """
    if not isinstance(family, str) or family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    module = FAMILIES[family]
    if size is not None and (not isinstance(size, str) or size not in module.SIZES):
        raise unknown(f"size of {family}", size, module.SIZES)
    known = {f.name for f in dataclasses.fields(module.Config)}
    for name in overrides:
        if name not in known:
            raise unknown(f"field of {family}", name, known, renamed.FIELDS.get(family))
    fields = {**(module.SIZES[size] if size else {}), **overrides}
    fields = {k: _field(v) for k, v in fields.items()}
    for name, value in fields.items():  # before the Config's own rules, which may compare
        check_type(module.Config, name, value)
    config = module.Config(**{name: _number(value) for name, value in fields.items()})
    check_types(config)
    return Model(family, config)


def _field(value: object) -> object:
    """A value of a Config: lists become tuples, a dict a tuple of pairs."""
    fixed = freeze(value)
    return fixed.items if isinstance(fixed, FrozenDict) else fixed


def _number(value: object) -> object:
    """A checked value; an int beyond int32, which only a float field takes and jax does not, as a float."""
    return float(value) if isinstance(value, int) and abs(value) >= 2**31 else value


def _with_trait(trait: str) -> list[str]:
    return [name for name, module in FAMILIES.items() if trait in module.TRAITS]
