"""YOLO object detectors.

    python launch.py train --config=configs/yolo.py:bccd --workdir=runs/yolo

`bccd`: YOLOv3-tiny (Redmon, Farhadi 2018, arXiv:1804.02767) from scratch on blood cells: 205 images of 640 x 480, three
classes, 59 epochs at 256 x 192. The anchors are the medians of each class's training boxes, in pixels of that size.
Platelets and red cells belong to the finer grid, white cells to the coarser one, so that no red cell falls between the
grids. mAP@.5 0.78 +- 0.02 on the test split, after 19 minutes of CPU time.
"""

from ml_collections import ConfigDict

from configs import base
from configs.knobs import Knobs

CONFIGS: dict[str, Knobs] = {
    "bccd": {
        "model.family": "yolo",
        "model.size": "yolov3_tiny",
        "model.anchors": ((14, 14), (18, 18), (42, 40), (56, 50), (80, 70), (92, 86)),
        "data.name": "bccd",
        "model.ignore_thresh": 0.5,
        "data.size": (192, 256),
        "data.augment": "flip,jitter:0.2,hue:0.05,saturation:1.3,exposure:1.3",
        "loss": "detection",
        "optim.weight_decay": 5e-4,
        "schedule.name": "cosine",
        "schedule.warmup": 100,
        "train.batch": 8,
        "train.steps": 1500,
        "eval.every": 300,
        "eval.batch": 8,
        "log.every": 20,
    },
}

ABLATIONS: dict[str, Knobs] = {
    "one_grid": {"model.size": "yolov2_tiny_voc"},  # v2's network and loss, with the first five anchors
    "strict": {"model.ignore_thresh": 1.0},  # overlapping predictions not assigned to a box are background
}


def get_config(names: str = "bccd") -> ConfigDict:
    """The named config with its ablations, as `bccd+one_grid`."""
    return base.config(names, CONFIGS, ABLATIONS)
