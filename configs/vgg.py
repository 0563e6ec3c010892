"""VGG.

    python launch.py train --config=configs/vgg.py:fashion --workdir=runs/vgg

`fashion`: stages of 3 x 3 convolutions with batch norm, narrower and fewer than in Simonyan, Zisserman 2015, on
Fashion-MNIST, ten epochs with flips and shifts: accuracy 93.15 +- 0.25 %; the data set's README has 93.5 % for VGG-16.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs
from configs.recipes import FASHION

CONFIGS: dict[str, Knobs] = {
    "fashion": {
        **FASHION,
        "model.family": "vgg",
        "model.channels": (32, 64, 128),
        "model.depths": (2, 2, 2),
        "model.norm": "batch",
        "model.pool": 1,
        "model.hidden": (128,),
        "model.dropout": 0.3,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "no_norm": {"model.norm": "none"},
    "no_dropout": {"model.dropout": 0.0},
    "no_hidden": {"model.hidden": ()},
    "wide": {"model.channels": (64, 128, 256)},
    "shallow": {"model.depths": (1, 1, 1)},
}


def get_config(names: str = "fashion") -> ConfigDict:
    """The named config with its ablations, as `fashion+no_norm`."""
    return base.config(names, CONFIGS, ABLATIONS)
