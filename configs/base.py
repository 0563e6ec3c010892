"""Every knob once: its default, type, class, unit and meaning.

An `identity` knob defines the run: resuming under another value is refused. A `schedule` knob may change with
`--config.resume=extend`, which records a new phase. A `free` knob changes the result by rounding at most. None
means off. The knobs under `model.` are the fields of the family's Config, which documents and checks them.
`configs/unread.py` lists the knobs that have an effect only under certain values of others.
"""

from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

import renamed
from errors import UsageError, unknown


@dataclass(frozen=True)
class Knob:
    """One setting. `type` is a union of int, float, str, bool, tuple and None in Python's syntax."""

    default: Any
    type: str
    kind: str  # identity | schedule | free
    says: str
    most: int = 2**31 - 1  # largest absolute value of an int


KNOBS: dict[str, Knob] = {
    "model.family": Knob("gpt", "str", "identity", "network architecture: a key of models.FAMILIES"),
    "model.size": Knob(None, "str | None", "identity", "published size of the family; other model.* knobs override it"),
    "data.name": Knob("pydoc_text", "str", "identity", "built-in set, TFDS name, text file or folder; a,b mixes two"),
    "data.split": Knob("train", "str", "identity", "training split, as train[:90%] or train+test"),
    "data.field": Knob(
        None, "str | None", "identity", "text field of a TFDS set or of rows in files; en:de makes pairs"
    ),
    "data.weights": Knob(
        None, "tuple[float] | None", "schedule", "mixture weight of each data set; None: equal weights"
    ),
    "data.tokenizer": Knob(
        "byte", "str", "identity", "byte | char | word | bpe, or the path of a tokenizer.json or of its folder"
    ),
    "data.vocab_size": Knob(
        None,
        "int | None",
        "identity",
        "`word`: number of most frequent words kept, None keeps all; `bpe`: number of tokens to train",
    ),
    "data.max_length": Knob(
        None,
        "int | None",
        "identity",
        "maximum tokens of a text to classify or translate; None: model.context",
    ),
    "data.augment": Knob(
        None,
        "str | None",
        "identity",
        "of images, joined by commas: flip | crop:N | random_resized_crop | randaugment:N:M | jitter:X | erase | "
        "mixup:ALPHA | cutmix:ALPHA; with boxes: flip | jitter:X | hue:X | saturation:X | exposure:X",
    ),
    "data.size": Knob(
        None, "tuple[int] | None", "identity", "image size: rows and columns, or one number for both; None: unchanged"
    ),
    "data.crop_pct": Knob(
        None,
        "float | None",
        "identity",
        "share of a resized image's side kept by the centre crop, often 0.875 for photos; None: 1",
    ),
    "data.resize_mode": Knob(
        "cover",
        "str",
        "identity",
        "cover | stretch: keep the aspect ratio and crop to data.size, or resize to data.size exactly",
    ),
    "data.interpolation": Knob(
        "bilinear",
        "str",
        "identity",
        "Pillow's filter for resizing: nearest | bilinear | bicubic | lanczos | box | hamming",
    ),
    "data.mean": Knob(
        0.0, "float | tuple[float]", "identity", "subtracted from pixels in [0, 1]; one or one per channel"
    ),
    "data.std": Knob(1.0, "float | tuple[float]", "identity", "divides pixels after data.mean; one or one per channel"),
    "data.workers": Knob(0, "int", "free", "worker processes that read data; 0 reads in a thread", 1024),
    "data.prefetch": Knob(2, "int", "free", "batches read ahead", 1024),
    "loss": Knob(
        "softmax",
        "str",
        "identity",
        "softmax | sigmoid | quadratic | hinge | perceptron | mse | next_token | translation | detection",
    ),
    "optim.name": Knob(
        "adamw", "str", "identity", "sgd | momentum | nesterov | adam | adamw | lion | adafactor | muon | schedule_free"
    ),
    "optim.lr": Knob(1e-3, "float", "schedule", "peak learning rate"),
    "optim.momentum": Knob(
        0.9, "float", "identity", "momentum, of momentum, nesterov and muon (whose authors use 0.95)"
    ),
    "optim.beta1": Knob(
        0.9, "float", "identity", "decay rate of Adam's first moment; interpolation of lion, schedule_free"
    ),
    "optim.beta2": Knob(0.999, "float", "identity", "decay rate of Adam's second moment, of lion's momentum"),
    "optim.eps": Knob(1e-8, "float", "identity", "Adam's epsilon"),
    "optim.weight_decay": Knob(
        0.0,
        "float",
        "identity",
        "weight decay of matrices: L2 in the gradient for sgd to adam, decoupled for the others",
    ),
    "optim.decay_embeddings": Knob(True, "bool", "identity", "apply weight decay to embedding tables too"),
    "optim.clip_norm": Knob(None, "float | None", "identity", "maximum global norm of the gradient"),
    "optim.ema": Knob(None, "float | None", "identity", "decay rate of an average of the parameters, evaluated too"),
    "optim.lr_multipliers": Knob(
        None, "str | None", "identity", "PATTERN:FACTOR of parameters, the first match counts: embed/*:0.1,*/bias:2"
    ),
    "optim.freeze": Knob(
        None, "str | None", "identity", "patterns of parameters that are not trained, as embed/*,*/bias"
    ),
    "optim.layer_decay": Knob(
        None,
        "float | None",
        "identity",
        "layer-wise learning rate decay: each layer has this times the rate of the next",
    ),
    "schedule.name": Knob(
        "constant",
        "str",
        "schedule",
        "constant | linear | cosine | polynomial | inverse_sqrt | wsd | onecycle | piecewise",
    ),
    "schedule.warmup": Knob(0, "int", "schedule", "updates of linear warm-up"),
    "schedule.end_fraction": Knob(0.0, "float", "schedule", "final learning rate, as a fraction of optim.lr"),
    "schedule.power": Knob(2.0, "float", "schedule", "exponent of polynomial"),
    "schedule.decay_fraction": Knob(0.1, "float", "schedule", "wsd: fraction of all updates in the final decay"),
    "schedule.start_fraction": Knob(
        0.1, "float", "schedule", "onecycle: first learning rate, as a fraction of optim.lr"
    ),
    "schedule.warmup_fraction": Knob(0.45, "float", "schedule", "onecycle: fraction of all updates in which it rises"),
    "schedule.milestones": Knob(
        None, "str | None", "schedule", "piecewise: UPDATE:FACTOR, multiplies the rate from then on; 600:0.1,800:0.1"
    ),
    "train.steps": Knob(1000, "int", "schedule", "updates in the whole run"),
    "train.batch": Knob(32, "int", "schedule", "global batch size: rows per update", 2**20),
    "train.accumulate": Knob(1, "int", "identity", "microbatches per update", 2**20),
    "train.stateful": Knob(
        False, "bool", "identity", "keep the recurrent state between updates; each row continues the text of its last"
    ),
    "train.gradient": Knob("autodiff", "str", "identity", "autodiff, or a hand-written gradient of the family"),
    "train.label_smoothing": Knob(0.0, "float", "identity", "probability spread evenly over all classes"),
    "train.z_loss": Knob(0.0, "float", "identity", "weight of the squared log of the softmax normaliser"),
    "train.precision": Knob(
        "f32", "str", "identity", "f32 | bf16 (f32 parameters) | bf16_params (bf16 parameters, stochastic rounding)"
    ),
    "train.attention": Knob("reference", "str", "free", "attention backend: reference | xla | cudnn | splash"),
    "train.dispatch": Knob("dropless", "str", "free", "computation of experts: dropless (routed tokens) | dense (all)"),
    "train.remat": Knob("none", "str", "free", "what the backward pass recomputes: none | dots | full"),
    "train.scan": Knob(True, "bool", "free", "scan over layers; False unrolls (faster on CPU, slow to compile)"),
    "train.max_skipped": Knob(
        10, "int", "free", "consecutive non-finite updates that are skipped before the run stops"
    ),
    "eval.every": Knob(None, "int | None", "free", "updates between evaluations; None: only at the end"),
    "eval.split": Knob("test", "str", "free", "held-out split, as test[:50%]"),
    "eval.batch": Knob(None, "int | None", "free", "global batch size of evaluation; None: train.batch", 2**20),
    "eval.context": Knob(None, "int | None", "free", "maximum tokens of an evaluation window; None: model.context"),
    "eval.overlap": Knob(0, "int", "free", "tokens shared with the previous window: context only, not scored"),
    "eval.limit": Knob(None, "int | None", "free", "batches of an evaluation while training; None: all"),
    "eval.num_beams": Knob(4, "int", "free", "beams of a translation's beam search; 1 is greedy", 1024),
    "eval.length_penalty": Knob(
        0.6, "float", "free", "exponent of beam search's length normalisation: higher favours longer text; 0: none"
    ),
    "checkpoint.every": Knob(None, "int | None", "free", "updates between checkpoints; None: only at the end"),
    "checkpoint.keep": Knob(2, "int", "free", "number of latest checkpoints kept"),
    "checkpoint.keep_best": Knob(1, "int", "free", "number of best checkpoints kept as well, by loss on eval.split"),
    "mesh": Knob("dp:*", "str", "free", "mesh axes as axis:size, joined by commas; * takes the remaining devices"),
    "log.every": Knob(10, "int", "free", "updates between lines of metrics"),
    "log.table": Knob(True, "bool", "free", "print the table of parameters at the start"),
    "log.profile": Knob(None, "str | None", "free", "range of updates to profile, as 10:15, counted from 0"),
    "log.hlo": Knob(False, "bool", "free", "write the HLO of the update, before and after XLA's passes"),
    "log.wandb": Knob(None, "str | None", "free", "Weights & Biases project to log to; needs the package wandb"),
    "init_from": Knob(None, "str | None", "identity", "initial parameters: a checkpoint W or W@n, or safetensors"),
    "init_fresh": Knob(None, "str | None", "identity", "parameters not taken from init_from, as head,embed/position"),
    "init_ignore": Knob(None, "str | None", "identity", "parameters of init_from that stay unused, as head/*"),
    "init_rename": Knob(None, "str | None", "identity", "parameters with other paths in init_from, as THEIRS:OURS"),
    "seed": Knob(0, "int", "identity", "of initial weights, data order and all noise; 0 to 2^32 - 1", 2**32 - 1),
    "resume": Knob("auto", "str", "free", "auto | extend: accept changed schedule knobs, as a new phase"),
}

NESTED = "model.args."  # a dict: the arguments of a user's Flax module
OPEN = ("model.", "rules.")  # sections without knobs of their own: a family's Config, the sharding rules


def config(names: str, configs: dict[str, dict[str, Any]], ablations: dict[str, dict[str, Any]]) -> ConfigDict:
    """The ConfigDict of `small+no_warmup`: one named config, then ablations, each a dict of dotted keys.

    Raises UsageError for an unknown name, and unless exactly one config comes first.
    """
    chosen = [n for n in names.split("+") if n]
    legal = f"configs: {', '.join(configs)}; ablations: {', '.join(ablations) or 'none'}"
    for name in chosen:
        if name not in configs and name not in ablations:
            raise UsageError(f"{unknown('config or ablation', name, [*configs, *ablations], listed=False)} {legal}")
    if sum(n in configs for n in chosen) != 1 or chosen[0] not in configs:
        raise UsageError(f"{names!r} must begin with one config, then ablations; {legal}")
    result = defaults()
    for name in chosen:
        for key, value in (configs[name] if name in configs else ablations[name]).items():
            assign(result, key, value)
    return result


def defaults() -> ConfigDict:
    """Every knob at its default."""
    nested: dict[str, Any] = {"rules": {}}
    for key, knob in KNOBS.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = knob.default
    return ConfigDict(nested)


def assign(cfg: ConfigDict, key: str, value: Any) -> None:
    """Set one dotted key to a value of its type. Raises UsageError for an unknown key or a wrong type."""
    knob = KNOBS.get(key)
    if knob is None:
        if not key.startswith(OPEN) or key.count(".") > 1 + key.startswith(NESTED):
            raise unknown("config key", key, KNOBS, renamed.KNOBS)
    elif not fits(value, knob.type, knob.most):
        bound = f" up to {knob.most:,}" if isinstance(value, int) and value > knob.most else ""
        raise UsageError(f"config key {key!r} takes {knob.type}{bound} ({knob.says}), not {value!r}")
    if knob and knob.type.startswith("float") and isinstance(value, int):
        value = float(value)
    _put(cfg, key, value)


def _put(cfg: ConfigDict, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if section not in cfg:
            with cfg.unlocked():
                cfg[section] = ConfigDict()
        cfg = cfg[section]
    with cfg.unlocked(), cfg.ignore_type():  # both walk the whole subtree: call them on the section
        cfg[last] = value


def get(cfg: ConfigDict, key: str) -> Any:
    """The value of a dotted key of KNOBS."""
    section, _, name = key.rpartition(".")
    return (cfg[section] if section else cfg)[name]


def fits(value: Any, kind: str, most: int = 2**31 - 1) -> bool:
    """Whether a value has a knob's type. An int lies between -most and most, a float in the range of float32."""
    for one in (k.strip() for k in kind.split("|")):
        if one == "None" and value is None:
            return True
        if one == "float" and isinstance(value, int | float) and not isinstance(value, bool):
            return value == 0 or 2**-126 <= abs(value) < 2**128
        if one in ("tuple[float]", "tuple[int]") and isinstance(value, tuple):
            return all(fits(v, one[6:-1], most) for v in value)
        if one in ("int", "str", "bool") and type(value).__name__ == one:
            return one != "int" or abs(value) <= most
    return False
