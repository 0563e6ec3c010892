"""Recurrent translators: Sutskever et al. 2014, Bahdanau et al. 2015, Luong et al. 2015.

    python launch.py train --config=configs/seq2seq.py:multi30k --workdir=runs/seq2seq

`multi30k`: image captions, English to German, 29,000 pairs. Attention is Luong's; the ablations use Bahdanau's
(`additive`) or none. Each has 1.9 million parameters within 1 %, as `multi30k` of configs/transformer.py, and a joint
vocabulary of 4,000; 31 minutes of CPU time. BLEU 29.2 +- 0.7 on the test split, without attention 17.9 +- 0.6.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import MULTI30K

CONFIGS: dict[str, Knobs] = {
    "multi30k": {
        **MULTI30K,
        "model.family": "seq2seq",
        "model.embed": 128,
        "model.width": 336,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "no_attention": {"model.attention_score": "none", "model.width": 392},
    "additive": {"model.attention_score": "additive", "model.width": 276},
    "no_feeding": {"model.input_feeding": False, "model.width": 364},
}


def get_config(names: str = "multi30k") -> ConfigDict:
    """The named config with its ablations, as `multi30k+no_attention`."""
    return base.config(names, CONFIGS, ABLATIONS)
