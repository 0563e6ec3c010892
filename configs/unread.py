"""Which knobs of a config have no effect: one rule for all of them.

A knob of READ_UNDER has an effect only under certain values of other knobs, or under facts that the data, the model and
the launcher's verb decide. Anywhere else a value other than the default is refused. A user's own code may be named by
the knobs `loss` and `optim.name`: then the fact of that name is which keys it reads.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from configs.knobs import KNOBS, RunConfig, get
from errors import UsageError

Condition = Mapping[str, tuple[str, ...]]  # knob or fact of FACTS -> values under which another knob has an effect
Facts = Mapping[str, tuple[Collection[str], str]]  # name in FACTS -> values that hold, and their text in a message

OWN = ("loss", "optim.name", "eval.callbacks")  # knobs that may also be a user's `package.file:name`
SET = ("set",)  # in a Condition: any value but the default
FACTS: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> beginning of a message, and the knobs that decide the fact
    "data": ("the data are", ("data.name", "data.field", "data.size", "data.augment")),
    "sets": ("data.name mixes", ("data.name",)),
    "task": ("the loss is of kind", ("loss",)),
    "parts": ("the model has", ("model.",)),
    "exam": ("in eval, --task is", ()),
    "views": ("in eval, a row has", ()),
    "verb": ("the verb is", ()),
}

_ADAM = ("adam", "adamw", "muon", "schedule_free")
_FALLING = ("linear", "cosine", "polynomial", "wsd", "onecycle")
_TEXT: Condition = {"data": ("text", "pairs")}
_TRAINED: Condition = {"verb": ("train",)}
_EVALUATED: Condition = {"verb": ("train", "eval", "convert --pretrained")}  # convert stores them for later evaluation
_NOT_SAMPLE: Condition = {"verb": ("train", "eval", "convert --pretrained", "convert --export")}
_CONDITIONS: dict[str, Condition] = {  # knobs -> their condition; all its entries must hold
    "data.name eval.split": _NOT_SAMPLE,
    "data.field": {**_NOT_SAMPLE, "exam": ("perplexity", "lambada")},
    "data.split data.workers data.prefetch eval.every": _TRAINED,
    "data.weights": {**_TRAINED, "sets": ("several sets",)},
    "data.tokenizer": _TEXT,
    "data.vocab_size": {**_TRAINED, **_TEXT, "data.tokenizer": ("word", "bpe")},
    "data.max_length": {**_EVALUATED, **_TEXT, "task": ("classifier", "encoder_decoder")},
    "data.augment": {"verb": ("train", "eval"), "data": ("images", "boxes"), "views": ("two views",)},
    "data.size": {**_NOT_SAMPLE, "data": ("images", "boxes")},
    "data.crop_pct data.resize_mode": {**_NOT_SAMPLE, "data": ("images",), "data.size": SET},
    "data.interpolation": {**_NOT_SAMPLE, "data": ("resized images",)},
    "data.mean data.std": {**_NOT_SAMPLE, "data": ("images",)},
    "optim.momentum": {"optim.name": ("momentum", "nesterov", "muon")},
    "optim.beta1 optim.beta2": {"optim.name": (*_ADAM, "lion")},
    "optim.eps": {"optim.name": _ADAM},
    "optim.decay_embeddings": {"optim.weight_decay": SET, "parts": ("embeddings",)},
    "schedule.end_fraction": {"schedule.name": _FALLING},
    "schedule.power": {"schedule.name": ("polynomial",)},
    "schedule.decay_fraction": {"schedule.name": ("wsd",)},
    "schedule.start_fraction schedule.warmup_fraction": {"schedule.name": ("onecycle",)},
    "schedule.milestones": {"schedule.name": ("piecewise",)},
    "train.class_weights": {"loss": ("softmax", "focal")},
    "train.focal_gamma": {"loss": ("focal",)},
    "train.temperature": {"loss": ("contrastive",)},
    "train.stateful": {"task": ("language_model",), "parts": ("carried state",)},
    "train.attention": {"parts": ("attention",)},
    "train.dispatch": {"parts": ("experts",)},
    "train.remat train.scan": {"parts": ("stacked layers",)},
    "train.batch eval.batch eval.limit": _EVALUATED,
    "eval.context eval.overlap": {**_EVALUATED, "task": ("language_model",), "exam": ("perplexity",)},
    "eval.callbacks": {**_EVALUATED, "exam": ("perplexity",)},
    "eval.num_beams eval.length_penalty": {**_EVALUATED, "task": ("encoder_decoder",)},
    "init_fresh init_ignore init_rename": {"init_from": SET},
}
READ_UNDER = {key: condition for keys, condition in _CONDITIONS.items() for key in keys.split()}
AFTER_TRAINING = (  # knobs and sections that are read outside of training
    *("data.", "eval.", "model.", "rules.", "mesh"),
    *(f"train.{name}" for name in ("precision", "attention", "dispatch", "batch", "scan")),
)


def unread(config: RunConfig, facts: Facts, given: Collection[str] = (), *, only_given: bool = False) -> list[str]:
    """The knobs that differ from their defaults and have no effect in a config, a line each.

    `given` are the keys that this call assigns. A value of the config itself is accepted if the call changes a knob of
    its condition: `gpt.py:quick` sets `optim.beta2`, which another `optim.name` may not use. With `only_given` only the
    call's own keys are checked. A fact that is not known yet counts as true.
    """
    found = []
    for key, condition in READ_UNDER.items():
        value = get(config, key)
        if value == KNOBS[key].default or (only_given and key not in given):
            continue
        for name, legal in condition.items():
            says, deciders = FACTS.get(name, (f"{name} is", (name,)))
            if name in FACTS:
                holds, shown = facts.get(name, (legal, ""))
            elif name in OWN and ":" in (shown := str(get(config, name))):
                holds = legal if key in facts.get(name, ((key,), ""))[0] else ()
            else:
                holds, shown = _of_knob(config, name, legal)
            changed = key not in given and any(k.startswith(deciders) for k in given)
            if not set(holds) & set(legal) and not changed:
                where = f"{says} {' or '.join(legal)}; here: {shown}"
                found.append(f"config key {key!r} = {value!r} has no effect: it is read where {where}")
                break
    return found


def unread_by(verb: str, given: Iterable[str], **facts: str) -> Callable[[RunConfig, Facts], list[str]]:
    """A function from a config and facts to those of the knobs `given` that a verb other than train does not read.

    `facts` are the call's.
    """
    known = set(given)
    own = {name: ({value}, value) for name, value in {"verb": verb, **facts}.items()}
    return lambda config, found: unread(config, {**found, **own}, known, only_given=True)


def require_effect(given: Iterable[str]) -> None:
    """Raise UsageError for a knob that is read in training only."""
    for key in given:
        if not key.startswith(AFTER_TRAINING):
            raise UsageError(f"config key {key!r} has no effect here: it is read in training only")


def _of_knob(config: RunConfig, name: str, legal: tuple[str, ...]) -> tuple[Collection[str], str]:
    value = get(config, name)
    is_set = legal is SET and value != KNOBS[name].default
    return SET if is_set else (str(value),), str(value)
