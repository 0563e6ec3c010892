"""Names of the public interface that have changed: the old name -> the one that takes its place.

A knob, a flag, a loss, a backend or a model field under its old name is refused with the new one. The config.json of a
run and its metrics.jsonl may be older: there the old names are read as the new ones.
"""

KNOBS = {
    "data.crop": "data.crop_pct",
    "data.deviation": "data.std",
    "data.fit": "data.resize_mode",
    "data.length": "data.max_length",
    "data.resample": "data.interpolation",
    "data.vocab": "data.vocab_size",
    "eval.beams": "eval.num_beams",
    "eval.penalty": "eval.length_penalty",
    "optim.clip": "optim.clip_norm",
    "optim.decay": "optim.weight_decay",
    "optim.rates": "optim.lr_multipliers",
    "schedule.decay": "schedule.decay_fraction",
    "schedule.end": "schedule.end_fraction",
    "schedule.rise": "schedule.warmup_fraction",
    "schedule.start": "schedule.start_fraction",
    "schedule.steps": "schedule.milestones",
    "train.carry": "train.stateful",
    "train.smoothing": "train.label_smoothing",
}
WORDS = {"loss": {"squared": "mse"}, "train.attention": {"kernel": "splash"}}  # values, by the knob that takes them
FIELDS: dict[str, dict[str, str]] = {}  # of a model's Config, by family

_PRETRAINED = {"from": "pretrained", "ignore": "ignore_key"}
FLAGS = {  # by verb
    "train": {**_PRETRAINED, "process": "process_id", "processes": "num_processes"},
    "eval": {**_PRETRAINED, "as": "task"},
    "sample": {**_PRETRAINED, "tokens": "max_new_tokens", "stats": "timing"},
    "convert": {**_PRETRAINED, "to": "export"},
    "tokenizer": {"train": "data", "size": "vocab_size", "to": "output"},
}
TASKS = {"text": "perplexity", "choices": "multiple_choice", "last_word": "lambada"}  # values of --task
METRICS = {
    "accuracy_top5": "top5_accuracy",
    "ahead": "mtp_loss",
    "ahead_expert_load": "mtp_expert_load",
    "balance": "router_aux_loss",
    "box": "box_loss",
    "class": "class_loss",
    "object": "objectness_loss",
}
