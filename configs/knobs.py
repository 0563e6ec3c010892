"""Every knob once: its default, type, class, unit and meaning.

An `identity` knob defines the run: resuming under another value is refused. A `schedule` knob may change with
`--config.resume=extend`, which records a new phase. A `free` knob changes the result by rounding at most. None
means off. The knobs under `model.` are the fields of the family's Config, which documents and checks them.
`configs/unread.py` lists the knobs that have an effect only under certain values of others. Which words a knob can be
stands where they are implemented; `train/setup/checks.py: CHOICES` names these tables.

A config file makes a ConfigDict (`configs/base.py`); `configs/reader.py` makes the RunConfig of it that a run takes.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import renamed
from configs.section import Knob, Section, Value, check_open, free, identity, knobs_of, plain, schedule, sections_of
from errors import UsageError, quote, unknown

Knobs = Mapping[str, Value]  # values by dotted key


@dataclass(frozen=True)
class ModelConfig(Section):
    """The model: a family, a published size, and fields of the family's Config, which override the size's."""

    section: ClassVar[str] = "model"
    family: str = identity("gpt", "network architecture: a key of models.FAMILIES")
    size: str | None = identity(None, "published size of the family; other model.* knobs override it")
    fields: Knobs = field(default_factory=dict, hash=False)  # not hashable

    def __post_init__(self) -> None:
        """Check the fields too; their owner, the family, checks their values."""
        super().__post_init__()
        object.__setattr__(self, "fields", check_open("model", self.fields, ("family", "size"), nested="args"))


@dataclass(frozen=True)
class DataConfig(Section):
    """What a run reads, and how."""

    section: ClassVar[str] = "data"
    name: str = identity("pydoc_text", "built-in set, TFDS name, file, folder or package.file:function; a,b mixes two")
    split: str = identity("train", "training split, as train[:90%] or train+test")
    field: str | None = identity(
        None, "text field of a TFDS set or of rows; en:de makes pairs, text:label classes (text:label=COLUMN)"
    )
    weights: tuple[float, ...] | None = schedule(None, "mixture weight of each data set; None: equal weights")
    tokenizer: str = identity("byte", "byte | char | word | bpe, or the path of a tokenizer.json or of its folder")
    vocab_size: int | None = identity(
        None, "`word`: number of most frequent words kept, None keeps all; `bpe`: number of tokens to train"
    )
    max_length: int | None = identity(None, "maximum tokens of a text to classify or translate; None: model.context")
    augment: str | None = identity(
        None,
        "of images, joined by commas: flip | crop:N | random_resized_crop | randaugment:N:M | jitter:X | erase | "
        "mixup:ALPHA | cutmix:ALPHA; with boxes: flip | jitter:X | hue:X | saturation:X | exposure:X",
    )
    size: tuple[int, ...] | None = identity(
        None, "image size: rows and columns, or one number for both; None: unchanged"
    )
    crop_pct: float | None = identity(
        None, "share of a resized image's side kept by the centre crop, often 0.875 for photos; None: 1"
    )
    resize_mode: str = identity(
        "cover", "how images take data.size: cover keeps the aspect ratio and crops, stretch resizes to it exactly"
    )
    interpolation: str = identity("bilinear", "Pillow's filter for resizing")
    mean: float | tuple[float, ...] = identity(0.0, "subtracted from pixels in [0, 1]; one or one per channel")
    std: float | tuple[float, ...] = identity(1.0, "divides pixels after data.mean; one or one per channel")
    workers: int = free(0, "worker processes that read data; 0 reads in a thread", 1024)
    prefetch: int = free(2, "batches read ahead", 1024)


@dataclass(frozen=True)
class OptimConfig(Section):
    """The optimizer."""

    section: ClassVar[str] = "optim"
    name: str = identity(
        "adamw", "optimizer, or a function of your own that makes an Optax transform: package.file:function"
    )
    lr: float = schedule(1e-3, "peak learning rate")
    momentum: float = identity(0.9, "momentum, of momentum, nesterov and muon (whose authors use 0.95)")
    beta1: float = identity(0.9, "decay rate of Adam's first moment; interpolation of lion, schedule_free")
    beta2: float = identity(0.999, "decay rate of Adam's second moment, of lion's momentum")
    eps: float = identity(1e-8, "Adam's epsilon")
    weight_decay: float = identity(
        0.0, "weight decay of matrices: L2 in the gradient for sgd to adam, decoupled for the others"
    )
    decay_embeddings: bool = identity(True, "apply weight decay to embedding tables too")
    clip_norm: float | None = identity(None, "maximum global norm of the gradient")
    ema: float | None = identity(None, "decay rate of an average of the parameters, evaluated too")
    lr_multipliers: str | None = identity(
        None, "PATTERN:FACTOR of parameters, the first match counts: embed/*:0.1,*/bias:2"
    )
    freeze: str | None = identity(None, "patterns of parameters that are not trained, as embed/*,*/bias")
    layer_decay: float | None = identity(
        None, "layer-wise learning rate decay: each layer has this times the rate of the next"
    )


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """The learning rate over the updates."""

    section: ClassVar[str] = "schedule"
    name: str = schedule("constant", "shape of the learning rate after the warm-up")
    warmup: int = schedule(0, "updates of linear warm-up")
    end_fraction: float = schedule(0.0, "final learning rate, as a fraction of optim.lr")
    power: float = schedule(2.0, "exponent of polynomial")
    decay_fraction: float = schedule(0.1, "wsd: fraction of all updates in the final decay")
    start_fraction: float = schedule(0.1, "onecycle: first learning rate, as a fraction of optim.lr")
    warmup_fraction: float = schedule(0.45, "onecycle: fraction of all updates in which it rises")
    milestones: str | None = schedule(
        None, "piecewise: UPDATE:FACTOR, multiplies the rate from then on; 600:0.1,800:0.1"
    )


@dataclass(frozen=True)
class TrainConfig(Section):
    """The update."""

    section: ClassVar[str] = "train"
    steps: int = schedule(1000, "updates in the whole run")
    batch: int = schedule(32, "global batch size: rows per update", 2**20)
    accumulate: int = identity(1, "microbatches per update", 2**20)
    stateful: bool = identity(
        False, "keep the recurrent state between updates; each row continues the text of its last"
    )
    gradient: str = identity("autodiff", "autodiff, or a hand-written gradient of the family")
    label_smoothing: float = identity(0.0, "probability spread evenly over all classes")
    z_loss: float = identity(0.0, "weight of the squared log of the softmax normaliser")
    class_weights: tuple[float, ...] | None = identity(
        None, "weight of each class in the loss, also in evaluation; None: all are 1"
    )
    temperature: float = identity(0.1, "contrastive: divides the cosine similarities; lower weighs near negatives more")
    focal_gamma: float = identity(2.0, "focal: exponent of 1 - p, which weighs a row of probability p; 0 is softmax")
    precision: str = identity(
        "f32", "dtype of activations; bf16_params stores parameters in bf16 too, with stochastic rounding"
    )
    attention: str = free("auto", "attention backend; auto: blockwise on CPU where it skips keys, else reference")
    dispatch: str = free("dropless", "which experts compute a token: dropless its own, dense all")
    remat: str = free("none", "rematerialisation: what the backward pass recomputes")
    scan: bool | None = free(None, "scan over layers; False unrolls; None unrolls up to 8 layers on one CPU device")
    max_skipped: int = free(10, "consecutive non-finite updates that are skipped before the run stops")


@dataclass(frozen=True)
class EvalConfig(Section):
    """Evaluations."""

    section: ClassVar[str] = "eval"
    every: int | None = free(None, "updates between evaluations; None: only at the end")
    split: str = free("test", "held-out split, as test[:50%]")
    batch: int | None = free(None, "global batch size of evaluation; None: train.batch", 2**20)
    context: int | None = free(None, "maximum tokens of an evaluation window; None: model.context")
    overlap: int = free(0, "tokens shared with the previous window: context only, not scored")
    limit: int | None = free(None, "batches of an evaluation while training; None: all")
    num_beams: int = free(4, "beams of a translation's beam search; 1 is greedy", 1024)
    length_penalty: float = free(
        0.6, "exponent of beam search's length normalisation: higher favours longer text; 0: none"
    )
    callbacks: tuple[str, ...] | None = free(
        None, "functions to call after each evaluation, joined by commas; your own as package.file:function"
    )


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """Which checkpoints a run writes and keeps."""

    section: ClassVar[str] = "checkpoint"
    every: int | None = free(None, "updates between checkpoints; None: only at the end")
    keep: int = free(2, "number of latest checkpoints kept")
    keep_best: int = free(1, "number of best checkpoints kept as well, by loss on eval.split")


@dataclass(frozen=True)
class LogConfig(Section):
    """What a run reports."""

    section: ClassVar[str] = "log"
    every: int = free(10, "updates between lines of metrics")
    table: bool = free(True, "print the table of parameters at the start")
    profile: str | None = free(None, "range of updates to profile, as 10:15, counted from 0")
    hlo: bool = free(False, "write the HLO of the update, before and after XLA's passes")
    wandb: str | None = free(None, "Weights & Biases project to log to; needs the package wandb")


@dataclass(frozen=True)
class RunConfig(Section):
    """All of a run's knobs, by section. `rules` replaces rows of the sharding rules.

    `code` are the user's config files that made it, path -> digest: they may have registered what its words name.
    `given` are the keys that `replace` has set, which a config file has not.
    """

    section: ClassVar[str] = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: str = identity("softmax", "the task: loss, metrics and kind of output; or your own, package.file:Name")
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: str = free("dp:*", "mesh axes as axis:size, joined by commas; * takes the remaining devices")
    log: LogConfig = field(default_factory=LogConfig)
    init_from: str | None = identity(None, "initial parameters: a checkpoint W or W@n, or safetensors")
    init_fresh: str | None = identity(None, "parameters not taken from init_from, as head,embed/position")
    init_ignore: str | None = identity(None, "parameters of init_from that stay unused, as head/*")
    init_rename: str | None = identity(None, "parameters with other paths in init_from, as THEIRS:OURS")
    seed: int = identity(0, "of initial weights, data order and all noise; 0 to 2^32 - 1", 2**32 - 1)
    resume: str = free("auto", "what to do with changed schedule knobs: auto refuses them, extend records a new phase")
    rules: Knobs = field(default_factory=dict, hash=False)  # not hashable
    code: Mapping[str, str] = field(default_factory=dict, compare=False)
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        """Check the rules too; their owner, the mesh, checks their values."""
        super().__post_init__()
        object.__setattr__(self, "rules", check_open("rules", self.rules))
        object.__setattr__(self, "code", MappingProxyType({**self.code}))

    def replace(self, changes: Knobs) -> "RunConfig":
        """The config with other values of some knobs, by dotted key. Raises UsageError."""
        flat = flatten(changes)
        return dataclasses.replace(from_flat({**self.flatten(), **flat}), code=self.code, given=self.given.union(flat))

    def flatten(self) -> dict[str, Value]:
        """All knobs by dotted key."""
        return flatten(self.to_dict())

    def to_dict(self) -> dict[str, dict[str, Value] | Value]:
        """The config as nested dicts, as ConfigDict and JSON have it."""
        nested: dict[str, Any] = plain(self)
        del nested["code"], nested["given"]
        nested["model"] |= nested["model"].pop("fields")
        return nested

    def to_json(self) -> str:
        """The config as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def knobs() -> dict[str, Knob]:
    """Each knob by its dotted key, in the order of RunConfig's fields."""
    found, own = dict[str, Knob](), knobs_of(RunConfig)
    for name in (f.name for f in dataclasses.fields(RunConfig)):
        found |= knobs_of(SECTIONS[name]) if name in SECTIONS else {name: own[name]} if name in own else {}
    return found


SECTIONS = sections_of(RunConfig)
KNOBS = knobs()
NESTED = "model.args."  # a dict: the arguments of a user's Flax module
OPEN = ("model.", "rules.")  # sections without knobs of their own: a family's Config, the sharding rules


def from_flat(values: Knobs) -> RunConfig:
    """The config of knobs by dotted key; the others have their defaults. Raises UsageError."""
    sections: dict[str, dict[str, Value]] = {
        name: {} for name in ("", "rules", "model.fields", "model.args", *SECTIONS)
    }
    for key, value in values.items():
        check_key(key)
        section, _, name = key.rpartition(".")
        sections["model.fields" if section == "model" and key not in KNOBS else section][name] = value
    if sections["model.args"]:
        sections["model.fields"]["args"] = sections["model.args"]
    sections["model"]["fields"] = sections["model.fields"]
    made = {name: kind(**sections[name]) for name, kind in SECTIONS.items()}
    given: dict[str, Any] = {**sections[""], **made, "rules": sections["rules"]}
    return RunConfig(**given)


def check_key(key: str) -> None:
    """Raise UsageError for a key that is neither a knob nor in an open section."""
    is_open = isinstance(key, str) and key.startswith(OPEN) and key.count(".") == 1 + key.startswith(NESTED)
    if key not in KNOBS and (not is_open or key == NESTED[:-1]):
        raise unknown("config key", key, KNOBS, renamed.KNOBS)


def flatten(nested: Knobs, prefix: str = "") -> dict[str, Value]:
    """A nested config as dotted keys. An empty dict has none where it is legal, and is refused as a value elsewhere.

    `prefix` begins the keys. Raises UsageError for what is no mapping.
    """
    if not isinstance(nested, Mapping):
        raise UsageError(f"knobs are a mapping of dotted keys to values, as {{'optim.lr': 0.1}}, not {quote(nested)}")
    result: dict[str, Value] = {}
    for name, value in nested.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and (value or key in ("rules", "model.args")):
            result |= flatten(value, f"{key}.")
        else:
            result[key] = value
    return result


def get(config: RunConfig, key: str) -> Value:
    """The value of a dotted key of KNOBS."""
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)
