"""Every config file, and every named config with every ablation of its file."""

from functools import cache
from typing import Any

from configs import (
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

FILES = {
    **{"mlp": mlp, "cnn": cnn, "rnn": rnn, "gpt": gpt, "llama": llama, "mixtral": mixtral, "bert": bert},
    **{"gemma": gemma, "deepseek": deepseek, "gpt_oss": gpt_oss, "llama4": llama4, "grok": grok, "flax": flax},
    **{"gemma4": gemma4, "vgg": vgg, "resnet": resnet, "vit": vit, "yolo": yolo},
    **{"seq2seq": seq2seq, "transformer": transformer},
}
VARIANTS = [
    (file, "+".join(filter(None, (name, ablation))))
    for file, module in FILES.items()
    for name in module.CONFIGS
    for ablation in (None, *module.ABLATIONS)
]
CHANGED = {"int": 7, "float": 0.125, "str": "other", "bool": None, "tuple[float]": (0.25, 0.75), "tuple[int]": (3, 5)}


@cache
def config(file: str, names: str) -> Any:
    """One for all tests: to be read, not changed."""
    return FILES[file].get_config(names)
