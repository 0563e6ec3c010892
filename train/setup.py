"""What a config means on this machine: model, task, placement, data."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import models
from data import augment, sources, tokenizers
from errors import UsageError, unknown
from models import Model
from train import losses, mesh
from train.host import Host

Config = Any  # an ml_collections ConfigDict with the knobs of configs/base.py
PRECISIONS = {  # -> dtype of activations, dtype of parameters, of f32 products
    "f32": ("float32", jnp.float32, "highest"),
    "bf16": ("bfloat16", jnp.float32, "default"),
    "bf16_params": ("bfloat16", jnp.bfloat16, "default"),
}


@dataclass(frozen=True)
class Setup:
    """What a config means on this machine: the model, its task, its placement."""

    cfg: Config
    host: Host
    model: Model
    task: losses.Task
    place: mesh.Placement
    dtype: Any
    tokenizer: tokenizers.Tokenizer | None

    @property
    def context(self) -> int | None:
        """Tokens a row, of a language model."""
        return self.model.config.context if self.tokenizer else None

    @property
    def prepare(self) -> augment.Images:
        """What happens to images that are evaluated."""
        return augment.Images(self.cfg.seed, (), self.cfg.data.mean, self.cfg.data.deviation)


def load_source(cfg: Config, host: Host, name: str, split: str) -> sources.Source:
    """A source of the config's data section."""
    return sources.load(name, split, field=cfg.data.field, data_dir=host.environ.get("TFDS_DATA_DIR"))


def names_of(cfg: Config) -> list[str]:
    """The data sets of a config: one, or the parts of a mixture."""
    return [n.strip() for n in cfg.data.name.split(",")]


def make_tokenizer(cfg: Config, host: Host) -> tokenizers.Tokenizer:
    """The tokenizer of a config; `char` reads every split, so that held-out text can be told."""
    if cfg.data.tokenizer != "char":
        return tokenizers.make(cfg.data.tokenizer, ())
    corpus: list[str] = []
    for name in names_of(cfg):
        for split in sources.splits_of(name, host.environ.get("TFDS_DATA_DIR")):
            source = load_source(cfg, host, name, split)
            corpus += source.documents if isinstance(source, sources.Texts) else ()
    return tokenizers.make("char", corpus)


def set_up(
    cfg: Config,
    host: Host,
    example: sources.Source,
    tokenizer: dict[str, Any] | None,
    devices: list[jax.Device] | None = None,
) -> Setup:
    """Model, task and placement (on all devices where None) for a config and the kind of its data.

    `tokenizer` is a checkpoint's description; None makes one as the config says.

    Raises UsageError for whatever does not fit together.
    """
    if cfg.train.precision not in PRECISIONS:
        raise unknown("precision", cfg.train.precision, PRECISIONS)
    if cfg.loss not in losses.TASKS:
        raise unknown("loss", cfg.loss, losses.TASKS)
    if not 0 <= cfg.seed < 2**32:
        raise UsageError(f"seed must lie between 0 and 2^32 - 1, not {cfg.seed}")
    compute, dtype, precision = PRECISIONS[cfg.train.precision]
    jax.config.update("jax_default_matmul_precision", precision)

    text = isinstance(example, sources.Texts)
    if text != (cfg.loss == "next_token"):
        kind = "text, for loss next_token" if text else "labelled examples, for loss softmax or quadratic"
        raise UsageError(f"data set {cfg.data.name!r} holds {kind}; the config has loss {cfg.loss!r}")
    made = (tokenizers.restore(tokenizer) if tokenizer else make_tokenizer(cfg, host)) if text else None
    fields = {k: v for k, v in cfg.model.items() if k not in ("family", "size")}
    if isinstance(example, sources.Examples):
        facts = {"classes": example.classes}
    else:
        facts = {"vocab": made.vocab if made else 0}
    model = _build(cfg, fields, {**facts, "compute": compute, "remat": cfg.train.remat, "scan": cfg.train.scan})
    if ("language_model" in model.traits) != text:
        raise UsageError(f"family {cfg.model.family!r} cannot learn from {cfg.data.name!r} by loss {cfg.loss!r}")
    for name, value in facts.items():
        if getattr(model.config, name) < value:
            raise UsageError(f"model.{name} = {getattr(model.config, name)} is too small for the data's {value}")
    place = mesh.place_on(mesh.make_mesh(cfg.mesh, devices), model.specs, cfg.rules.to_dict())
    jax.set_mesh(place.mesh)
    return Setup(cfg, host, model, losses.TASKS[cfg.loss], place, dtype, made)


def _build(cfg: Config, fields: dict[str, Any], defaults: dict[str, Any]) -> Model:
    """The model, with what the data and the precision say where neither config nor size does."""
    family = cfg.model.family
    if family not in models.FAMILIES:
        raise unknown("family", family, models.FAMILIES)
    module = models.FAMILIES[family]
    known = {f.name for f in dataclasses.fields(module.Config)}
    if cfg.train.remat != "none" and "remat" not in known:
        raise UsageError(f"train.remat = {cfg.train.remat!r}: family {family!r} has no stacked layers to recompute")
    given = {*fields, *module.SIZES.get(cfg.model.size, {})}
    return models.build(
        family, cfg.model.size, **fields, **{k: v for k, v in defaults.items() if k in known and k not in given}
    )
