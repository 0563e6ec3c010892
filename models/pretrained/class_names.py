"""The names of a network's classes: the hub's id2label or timm's label_names of a config.json, or Darknet's .names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from documents import read_settings
from models.pretrained.layouts import darknet


def read(folder: str | Path) -> tuple[str, ...] | None:
    """The names by the class's number; None where the folder names none, or only LABEL_0 and so on.

    Raises UsageError for a .names file that does not fit its .cfg.
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
    """What the folder's classifier predicts of a row: the `problem_type` of transformers; None for one class each.

    Without that key a single output is a number, not a class.
    """
    file = Path(folder) / "config.json"
    settings = read_settings(file) if file.is_file() else {}
    names, given = settings.get("id2label"), settings.get("problem_type")
    alone = "model_type" in settings and (len(names) if isinstance(names, dict) else settings.get("num_labels")) == 1
    return None if given == "single_label_classification" else given or ("regression" if alone else None)


def placeholder_names(count: int) -> list[str]:
    """What the hub calls classes without names."""
    return [f"LABEL_{i}" for i in range(count)]


def keys(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What names become in a config.json of these settings; {} where it has no place for them."""
    if not names:
        return {}
    if "id2label" in settings:
        return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    return {"label_names": list(names)} if "num_classes" in settings else {}
