"""Parameters as others publish them: safetensors (Hugging Face, torchvision, timm), .npz, and Darknet's files."""

from models.pretrained.io import is_pretrained, load, load_pretrained, read_config, save, save_pretrained
from models.pretrained.layouts import LAYOUTS, TYPES, dialects, folder_layout
from models.pretrained.match import STATS, PretrainedTensors, find, leaves

__all__ = [
    "LAYOUTS",
    "STATS",
    "TYPES",
    "PretrainedTensors",
    "dialects",
    "find",
    "folder_layout",
    "is_pretrained",
    "leaves",
    "load",
    "load_pretrained",
    "read_config",
    "save",
    "save_pretrained",
]
