"""The class names of a pretrained model: id2label (hub) or label_names (timm) of a config.json, or Darknet's .names."""

from collections.abc import Sequence
from pathlib import Path

from documents import Json, read_settings
from models.pretrained.config_keys import label_keys, placeholder_names
from models.pretrained.layouts import darknet


def read(folder: str | Path) -> tuple[str, ...] | None:
    """The names in the order of the classes; None if the folder has none, or only LABEL_0, LABEL_1 …

    Raises UsageError for a .names file that does not match its .cfg.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        return darknet.class_names(folder)
    settings = read_settings(file)
    names = settings.get("id2label", settings.get("label_names"))
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return None if names == placeholder_names(len(names)) else tuple(names)


def problem_type(folder: str | Path) -> str | None:
    """The `problem_type` of a folder's classifier, as in transformers; None is one class per row.

    Without that key a single output means regression.
    """
    file = Path(folder) / "config.json"
    settings = read_settings(file) if file.is_file() else {}
    names, given = settings.get("id2label"), settings.get("problem_type")
    alone = "model_type" in settings and (len(names) if isinstance(names, dict) else settings.get("num_labels")) == 1
    return None if given == "single_label_classification" else given or ("regression" if alone else None)


def keys(settings: Json, names: Sequence[str]) -> Json:
    """The keys of config.json for class names, depending on its settings; {} if it has no place for them."""
    if not names:
        return {}
    if "id2label" in settings:
        return label_keys(names)
    return {"label_names": list(names)} if "num_classes" in settings else {}
