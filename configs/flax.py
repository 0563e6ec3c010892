"""A user's own Flax modules.

    python launch.py train --config=configs/flax.py:linen --workdir=runs/linen
    python launch.py train --config=configs/flax.py:linen --config.model.module=PACKAGE.FILE:CLASS --workdir=runs/mine

`linen` and `nnx`: the convolutional networks of examples/ on scikit-learn's digits (built in); seconds.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs

_DIGITS: Knobs = {
    "model.family": "flax",
    "data.name": "digits",
    "train.batch": 64,
    "train.steps": 400,
    "schedule.name": "cosine",
    "log.every": 20,
}

CONFIGS: dict[str, Knobs] = {
    "linen": {**_DIGITS, "model.module": "examples.linen_cnn:SmallCNN"},
    "nnx": {**_DIGITS, "model.module": "examples.nnx_cnn:SmallCNN"},
}

ABLATIONS: dict[str, Knobs] = {"narrow": {"model.args.hidden": 16}}


def get_config(names: str = "linen") -> ConfigDict:
    """The named config with its ablations, as `linen+narrow`."""
    return base.config(names, CONFIGS, ABLATIONS)
