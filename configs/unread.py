"""Which knobs a config leaves unread: one rule for all of them.

A knob of READ_UNDER has an effect only under certain values of other knobs, or under facts that the data, the model and
the launcher's verb decide. Set to another value than its default where it is not read, it is refused.
"""

from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from configs.base import KNOBS, get

Condition = Mapping[str, tuple[str, ...]]  # a knob, or a fact of FACTS -> the values under which another is read
Facts = Mapping[str, tuple[Collection[str], str]]  # name of FACTS -> the values that hold, and how a message shows them

SET = ("set",)  # of a Condition: any value but the default
FACTS: dict[str, tuple[str, tuple[str, ...]]] = {  # -> how a message begins, and which knobs decide the fact
    "data": ("the data are", ("data.name", "data.field", "data.size", "data.augment")),
    "sets": ("data.name mixes", ("data.name",)),
    "task": ("the loss is of kind", ("loss",)),
    "parts": ("the model has", ("model.",)),
    "exam": ("--task is", ()),
    "verb": ("the verb is", ()),
}

_ADAM = ("adam", "adamw", "muon", "schedule_free")
_FALLING = ("linear", "cosine", "polynomial", "wsd", "onecycle")
_TEXT: Condition = {"data": ("text", "pairs")}
_TRAINED: Condition = {"verb": ("train",)}
_MEASURED: Condition = {"verb": ("train", "eval", "convert --pretrained")}  # which keeps a config to be measured by
_SEEN: Condition = {"verb": ("train", "eval", "convert --pretrained", "convert --export")}
_CONDITIONS: dict[str, Condition] = {  # knobs -> their condition, all entries of which must hold
    "data.name eval.split": _SEEN,
    "data.field": {**_SEEN, "exam": ("perplexity", "lambada")},
    "data.split data.workers data.prefetch eval.every": _TRAINED,
    "data.weights": {**_TRAINED, "sets": ("several sets",)},
    "data.tokenizer": _TEXT,
    "data.vocab_size": {**_TRAINED, **_TEXT, "data.tokenizer": ("word", "bpe")},
    "data.max_length": {**_MEASURED, **_TEXT, "task": ("classifier", "encoder_decoder")},
    "data.augment": {**_TRAINED, "data": ("images", "boxes")},
    "data.size": {**_SEEN, "data": ("images", "boxes")},
    "data.crop_pct data.resize_mode": {**_SEEN, "data": ("images",), "data.size": SET},
    "data.interpolation": {**_SEEN, "data": ("resized images",)},
    "data.mean data.std": {**_SEEN, "data": ("images",)},
    "optim.momentum": {"optim.name": ("momentum", "nesterov", "muon")},
    "optim.beta1 optim.beta2": {"optim.name": (*_ADAM, "lion")},
    "optim.eps": {"optim.name": _ADAM},
    "optim.decay_embeddings": {"optim.weight_decay": SET, "parts": ("embeddings",)},
    "schedule.end_fraction": {"schedule.name": _FALLING},
    "schedule.power": {"schedule.name": ("polynomial",)},
    "schedule.decay_fraction": {"schedule.name": ("wsd",)},
    "schedule.start_fraction schedule.warmup_fraction": {"schedule.name": ("onecycle",)},
    "schedule.milestones": {"schedule.name": ("piecewise",)},
    "train.stateful": {"task": ("language_model",), "parts": ("carried state",)},
    "train.attention": {"parts": ("attention",)},
    "train.dispatch": {"parts": ("experts",)},
    "train.remat train.scan": {"parts": ("stacked layers",)},
    "train.batch eval.batch eval.limit": _MEASURED,
    "eval.context eval.overlap": {**_MEASURED, "task": ("language_model",), "exam": ("perplexity",)},
    "eval.num_beams eval.length_penalty": {**_MEASURED, "task": ("encoder_decoder",)},
    "init_fresh init_ignore init_rename": {"init_from": SET},
}
READ_UNDER = {key: condition for keys, condition in _CONDITIONS.items() for key in keys.split()}


def unread(cfg: ConfigDict, given: Collection[str], facts: Facts, *, only_given: bool = False) -> list[str]:
    """The knobs that differ from their defaults and have no effect in a config, a line each.

    `given` are the keys that this call assigns. A value that stems from the config itself passes where the call has
    changed what it is read under: `gpt.py:quick` with another `optim.name` leaves that config's `optim.beta2` unread.
    With `only_given` nothing but the call's own keys is held. A fact that is not known yet is taken to hold.
    """
    found = []
    for key, condition in READ_UNDER.items():
        value = get(cfg, key)
        if value == KNOBS[key].default or (only_given and key not in given):
            continue
        for name, legal in condition.items():
            says, deciders = FACTS.get(name, (f"{name} is", (name,)))
            holds, shown = facts.get(name, (legal, "")) if name in FACTS else _of_knob(cfg, name, legal)
            changed = key not in given and any(k.startswith(deciders) for k in given)
            if not set(holds) & set(legal) and not changed:
                where = f"{says} {' or '.join(legal)}; here: {shown}"
                found.append(f"config key {key!r} = {value!r} has no effect: it is read where {where}")
                break
    return found


def _of_knob(cfg: ConfigDict, name: str, legal: tuple[str, ...]) -> tuple[Collection[str], str]:
    value = get(cfg, name)
    is_set = legal is SET and value != KNOBS[name].default
    return SET if is_set else (str(value),), str(value)
