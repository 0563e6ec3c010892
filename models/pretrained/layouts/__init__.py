"""The layouts of the families: how other libraries' files name and shape their parameters.

A layout has `rows(c)`: for each leaf of a family's specs the name of a tensor, and how their shapes correspond. It is
used to read and to write. A layout of the Hugging Face hub also has

- TYPES, the `model_type`s it reads, and HARMLESS, keys to ignore;
- `fields(keys)`, the Config's fields from a config.json and the tensors' shapes, and `config(c)`, the config.json of a
  Config;
- optionally `check_overrides(fields, c)`, which raises for a Config that is incompatible with those fields;
- PREFIX, which files of the bare network lack; `ignored_tensors(c, names)`, patterns of tensors that are no
  parameters; TIED, tensors that may be copies of others; and optionally `copies(c)`, tensors to write under a
  second name.

A layout that is read without a config.json may have `fields_from_shapes(shapes)`, the Config's fields that follow from
the shapes, and REQUIRED_FIELDS, the fields that the caller must give.

A family whose tensors have several naming schemes has DIALECTS: further layouts, by name. Reading takes the dialect
that most names match; writing takes the first suitable one, or the one asked for.

A layout with `save_folder` writes its own files, as Darknet's, instead of config.json and safetensors.
"""

from types import ModuleType

from errors import UsageError, unknown
from models.pretrained.layouts import (
    bert,
    darknet,
    deepseek,
    gemma,
    gemma4,
    gpt,
    gpt_oss,
    grok,
    llama,
    llama4,
    mixtral,
    resnet,
    rnn,
    transformer,
    vgg,
    vit,
)

LAYOUTS: dict[str, ModuleType] = {
    **{"rnn": rnn, "gpt": gpt, "llama": llama, "mixtral": mixtral, "gpt_oss": gpt_oss, "bert": bert},
    **{"gemma": gemma, "deepseek": deepseek, "llama4": llama4, "grok": grok},
    "gemma4": gemma4,
    **{"vgg": vgg, "resnet": resnet, "vit": vit, "yolo": darknet, "transformer": transformer},
}


def dialects(family: str) -> dict[str, ModuleType]:
    """The layouts of a family by name, first its `own`. Raises UsageError for a family without a layout."""
    if family not in LAYOUTS:
        raise UsageError(
            f"family {family} has no pretrained files that Canon reads; those that have: {', '.join(LAYOUTS)}"
        )
    return {"own": LAYOUTS[family], **getattr(LAYOUTS[family], "DIALECTS", {})}


TYPES: dict[str, str] = {}  # model_type or architecture of a config.json -> family
for _family in LAYOUTS:
    for _layout in dialects(_family).values():
        TYPES |= dict.fromkeys(getattr(_layout, "TYPES", ()), _family)


def folder_layout(family: str, dialect: str | None = None) -> ModuleType:
    """The layout in which a family's folder is written. Raises UsageError if there is none."""
    own = dialects(family)["own"] if family in LAYOUTS else None
    return own if own and dialect is None and hasattr(own, "save_folder") else get_layout(family, dialect, "config")


def get_layout(family: str, dialect: str | None, has: str) -> ModuleType:
    """The layout of a dialect among those that export `has`; None is the first. Raises UsageError."""
    known = {name: layout for name, layout in dialects(family).items() if hasattr(layout, has)}
    if not known:
        raise UsageError(
            f"family {family} has no Hugging Face folder; those that have: {', '.join(sorted(set(TYPES.values())))}"
        )
    name = next(iter(known)) if dialect is None else dialect
    if name not in known:
        raise unknown(f"dialect of {family}", name, known)
    return known[name]
