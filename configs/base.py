"""Every knob once: its default, type, class, unit and meaning.

Classes: an `identity` knob defines the run, so that resuming under another value is refused; a `schedule` knob may
change with `--config.resume=extend`, which records a new phase; a `free` knob never matters to the result.
None means off. The knobs under `model.` are the fields of the family's Config, which documents and checks them.
`configs/unread.py` has the knobs that are read only under certain others.
"""

from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

import renamed
from errors import UsageError, unknown


@dataclass(frozen=True)
class Knob:
    """One setting. `type` is a union of int, float, str, bool, tuple and None, written as in Python."""

    default: Any
    type: str
    kind: str  # identity | schedule | free
    says: str
    most: int = 2**31 - 1  # of an int


KNOBS: dict[str, Knob] = {
    "model.family": Knob("gpt", "str", "identity", "which network: a key of models.FAMILIES"),
    "model.size": Knob(None, "str | None", "identity", "a published size of the family; other model.* override it"),
    "data.name": Knob("pydoc_text", "str", "identity", "embedded set, TFDS name, text file, folder; a,b mixes two"),
    "data.split": Knob("train", "str", "identity", "split to train on; parts as train[:90%], train+test"),
    "data.field": Knob(None, "str | None", "identity", "which text of a TFDS set or of rows; en:de makes pairs"),
    "data.weights": Knob(None, "tuple[float] | None", "schedule", "share of each set of a mixture; None is equal"),
    "data.tokenizer": Knob(
        "byte", "str", "identity", "byte | char | word | bpe, or the path of a tokenizer.json or its folder"
    ),
    "data.vocab_size": Knob(None, "int | None", "identity", "words that `word` knows, None is all; tokens of `bpe`"),
    "data.max_length": Knob(
        None,
        "int | None",
        "identity",
        "most tokens of a text to classify or translate; None is model.context",
    ),
    "data.augment": Knob(
        None,
        "str | None",
        "identity",
        "of images, joined by commas: flip | crop:N | random_resized_crop | randaugment:N:M | jitter:X | erase | "
        "mixup:ALPHA | cutmix:ALPHA; with boxes: flip | jitter:X | hue:X | saturation:X | exposure:X",
    ),
    "data.size": Knob(
        None, "tuple[int] | None", "identity", "rows and columns of images, or one for both; None keeps theirs"
    ),
    "data.crop_pct": Knob(
        None,
        "float | None",
        "identity",
        "share of a resized image's side that is kept, often 0.875 of photos; None is all of it",
    ),
    "data.resize_mode": Knob(
        "cover",
        "str",
        "identity",
        "cover | stretch: an image of another shape keeps its own and is cut, or takes that of data.size",
    ),
    "data.interpolation": Knob(
        "bilinear",
        "str",
        "identity",
        "nearest | bilinear | bicubic | lanczos | box | hamming, as Pillow resizes images",
    ),
    "data.mean": Knob(0.0, "float | tuple[float]", "identity", "subtracted from pixels in [0, 1], also one a channel"),
    "data.std": Knob(1.0, "float | tuple[float]", "identity", "by which pixels are divided after that, likewise"),
    "data.workers": Knob(0, "int", "free", "worker processes that read; 0 reads in a thread", 1024),
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
    "optim.momentum": Knob(0.9, "float", "identity", "of momentum, nesterov, and muon (whose authors take 0.95)"),
    "optim.beta1": Knob(0.9, "float", "identity", "Adam's decay of the gradient's mean; Lion's, schedule_free's mix"),
    "optim.beta2": Knob(0.999, "float", "identity", "Adam's decay of the gradient's square; Lion's of its mean"),
    "optim.eps": Knob(1e-8, "float", "identity", "Adam's epsilon"),
    "optim.weight_decay": Knob(
        0.0, "float", "identity", "weight decay of matrices; in the gradient up to adam, then decoupled"
    ),
    "optim.decay_embeddings": Knob(True, "bool", "identity", "decay tables of vectors too"),
    "optim.clip_norm": Knob(None, "float | None", "identity", "largest global norm of the gradient"),
    "optim.ema": Knob(None, "float | None", "identity", "decay of a running mean of the parameters, evaluated too"),
    "optim.lr_multipliers": Knob(None, "str | None", "identity", "rates of leaves, first match: embed/*:0.1,*/bias:2"),
    "optim.freeze": Knob(None, "str | None", "identity", "patterns of parameters that never change, as embed/*,*/bias"),
    "optim.layer_decay": Knob(None, "float | None", "identity", "factor of the rate from each layer to the one below"),
    "schedule.name": Knob(
        "constant",
        "str",
        "schedule",
        "constant | linear | cosine | polynomial | inverse_sqrt | wsd | onecycle | piecewise",
    ),
    "schedule.warmup": Knob(0, "int", "schedule", "updates of linear warm-up"),
    "schedule.end_fraction": Knob(0.0, "float", "schedule", "last learning rate as a share of the peak"),
    "schedule.power": Knob(2.0, "float", "schedule", "of polynomial"),
    "schedule.decay_fraction": Knob(0.1, "float", "schedule", "share of all updates in which wsd falls to the end"),
    "schedule.start_fraction": Knob(0.1, "float", "schedule", "first learning rate of onecycle as a share of the peak"),
    "schedule.warmup_fraction": Knob(0.45, "float", "schedule", "share of all updates in which onecycle rises"),
    "schedule.milestones": Knob(None, "str | None", "schedule", "UPDATE:FACTOR of piecewise, as 600:0.1,800:0.1"),
    "train.steps": Knob(1000, "int", "schedule", "updates in the whole run"),
    "train.batch": Knob(32, "int", "schedule", "global rows an update", 2**20),
    "train.accumulate": Knob(1, "int", "identity", "microbatches an update", 2**20),
    "train.stateful": Knob(False, "bool", "identity", "rows of text go on where they ended, a recurrent state too"),
    "train.gradient": Knob("autodiff", "str", "identity", "autodiff, or one that the family writes out"),
    "train.label_smoothing": Knob(0.0, "float", "identity", "share of the target that goes to all classes alike"),
    "train.z_loss": Knob(0.0, "float", "identity", "weight of the squared log of the softmax's normaliser"),
    "train.precision": Knob("f32", "str", "identity", "f32 | bf16 (f32 parameters) | bf16_params (rounded at random)"),
    "train.attention": Knob("reference", "str", "free", "how it is computed: reference | xla | cudnn | splash"),
    "train.dispatch": Knob("dropless", "str", "free", "how experts share the work: dropless | dense"),
    "train.remat": Knob("none", "str", "free", "what the backward pass recomputes: none | dots | full"),
    "train.scan": Knob(True, "bool", "free", "loop one compiled layer; False unrolls (on CPU faster, slow to compile)"),
    "train.max_skipped": Knob(10, "int", "free", "non-finite updates in a row that are skipped before the run stops"),
    "eval.every": Knob(None, "int | None", "free", "updates between evaluations; None evaluates at the end only"),
    "eval.split": Knob("test", "str", "free", "held-out split; parts as test[:50%]"),
    "eval.batch": Knob(None, "int | None", "free", "global rows a batch; None is train.batch", 2**20),
    "eval.context": Knob(None, "int | None", "free", "tokens of a window of text at most; None is model.context"),
    "eval.overlap": Knob(0, "int", "free", "tokens of a window that are only read, as the one before predicted them"),
    "eval.limit": Knob(None, "int | None", "free", "evaluate this many batches only while training; None is all"),
    "eval.num_beams": Knob(4, "int", "free", "hypotheses that beam search keeps of a translation; 1 is greedy", 1024),
    "eval.length_penalty": Knob(0.6, "float", "free", "exponent of beam search's reward for length; 0 is none"),
    "checkpoint.every": Knob(None, "int | None", "free", "updates between checkpoints; None saves at the end only"),
    "checkpoint.keep": Knob(2, "int", "free", "newest checkpoints kept"),
    "checkpoint.keep_best": Knob(1, "int", "free", "best checkpoints kept besides, by loss on eval.split"),
    "mesh": Knob("dp:*", "str", "free", "sharding strategy as axis:size, joined by commas; * takes the rest"),
    "log.every": Knob(10, "int", "free", "updates between lines of metrics"),
    "log.table": Knob(True, "bool", "free", "print the table of parameters at the start"),
    "log.profile": Knob(None, "str | None", "free", "updates to trace for a profiler, as 10:15, counted from 0"),
    "log.hlo": Knob(False, "bool", "free", "write the update's program, before and after XLA's passes"),
    "log.wandb": Knob(None, "str | None", "free", "project of Weights & Biases to report to, where that is installed"),
    "init_from": Knob(None, "str | None", "identity", "parameters to begin with: checkpoint W or W@n, or safetensors"),
    "init_fresh": Knob(None, "str | None", "identity", "leaves that start fresh all the same, as head,embed/position"),
    "init_ignore": Knob(None, "str | None", "identity", "leaves of that checkpoint to leave out, as head/*"),
    "init_rename": Knob(None, "str | None", "identity", "leaves with other paths there, as THEIRS:OURS"),
    "seed": Knob(0, "int", "identity", "of initial weights, order of data, and all noise; 0 to 2^32 - 1", 2**32 - 1),
    "resume": Knob("auto", "str", "free", "auto | extend (take changed schedule knobs as a new phase)"),
}

NESTED = "model.args."  # a dict: what a foreign module is built with
OPEN = ("model.", "rules.")  # sections whose keys belong to somebody else: a family's Config, the sharding rules


def config(names: str, configs: dict[str, dict[str, Any]], ablations: dict[str, dict[str, Any]]) -> ConfigDict:
    """The ConfigDict of `small+no_warmup`: one named config, then ablations, each a dict of dotted keys.

    Raises UsageError for an unknown name, and where the names do not hold exactly one config.
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
    with cfg.unlocked(), cfg.ignore_type():  # it walks all that lies below, so from the section only
        cfg[last] = value


def get(cfg: ConfigDict, key: str) -> Any:
    """The value of a dotted key of KNOBS."""
    section, _, name = key.rpartition(".")
    return (cfg[section] if section else cfg)[name]


def fits(value: Any, kind: str, most: int = 2**31 - 1) -> bool:
    """Whether a value is of a knob's type: a whole number from -most to most, a number that float32 holds."""
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
