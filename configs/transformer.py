"""The Transformer (Vaswani et al. 2017, arXiv:1706.03762).

    python launch.py train --config=configs/transformer.py:multi30k --workdir=runs/transformer

`multi30k`: image captions, English to German, 29,000 pairs; 1.9 million parameters with a joint vocabulary of 4,000,
within 1 % of `multi30k` of configs/seq2seq.py; 35 minutes of CPU time. BLEU 32.5 +- 0.8 on the test split.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import MULTI30K

CONFIGS: dict[str, Knobs] = {
    "multi30k": {
        **MULTI30K,
        "model.family": "transformer",
        "model.width": 128,
        "model.depth": 3,
        "model.heads": 4,
        "model.hidden": 512,
        "optim.beta2": 0.98,
        "optim.eps": 1e-9,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "pre_norm": {"model.pre_norm": True},
    "learned_positions": {"model.positions": "learned"},
    "untied": {"model.tied": "none"},
    "no_smoothing": {"train.label_smoothing": 0.0},
}


def get_config(names: str = "multi30k") -> ConfigDict:
    """The named config with its ablations, as `multi30k+pre_norm`."""
    return base.config(names, CONFIGS, ABLATIONS)
