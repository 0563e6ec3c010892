"""Old names of the public interface, each with the name that replaced it.

An old name of a knob, flag, loss, backend or model field raises an error with the new name. In files of older runs,
config.json, manifest.json and metrics.jsonl, old names are read as the new ones.
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
WORDS = {  # values, by the knob that takes them
    "loss": {"squared": "mse"},
    "train.attention": {"kernel": "splash"},
    "model.init": {"he": "he_normal", "normal": "lecun_normal"},
}

_DECODER = {"rope_whole": "rope_truncate"}
_WINDOW = {**_DECODER, "sliding": "sliding_layers"}
_MOE = {"active": "experts_per_token", "balance": "aux_loss_weight"}
_DENSE = {"dense": "dense_layers"}
_GEMMA = {"cap": "final_logit_softcap", "local_base": "rope_local_base", "pattern": "sliding_pattern"}
FIELDS: dict[str, dict[str, str]] = {  # of a model's Config, by family
    "deepseek": {
        **{**_DECODER, **_MOE, **_DENSE, "renormalise": "norm_topk"},
        "groups": "expert_groups",
        "kept_groups": "topk_groups",
        "scaling": "routed_scaling_factor",
        "bias_speed": "bias_update_speed",
        "neighbours": "rope_interleaved",
    },
    "gemma": {
        **{**_WINDOW, **_GEMMA},
        "query_scale": "query_pre_attn_scalar",
        "attention_cap": "attn_logit_softcap",
    },
    "gemma4": {
        **{**_WINDOW, **_MOE, **_GEMMA},
        "turning": "partial_rotary_factor",
        "keys_as_values": "k_eq_v",
        "routed": "enable_moe_block",
    },
    "gpt": {"layer_scale": "scale_by_layer_index"},
    "gpt_oss": {**_WINDOW, **_MOE, "slope": "swiglu_alpha", "limit": "swiglu_limit"},
    "grok": {**_DECODER, **_MOE, "soft_cap": "attn_logit_softcap"},
    "llama": _WINDOW,
    "llama4": {
        **{**_DECODER, **_MOE, **_DENSE, "nope": "nope_layers"},
        "temperature": "attn_temperature",
        "temperature_from": "floor_scale",
    },
    "mixtral": {**_WINDOW, **_MOE, **_DENSE, "renormalise": "norm_topk"},
    "mlp": {"law": "init"},
    "rnn": {"forget": "forget_bias", "lags": "chrono_max"},
    "seq2seq": {"attend": "attention_score", "feeding": "input_feeding", "forget": "forget_bias"},
}

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
