"""The layouts of the families: how each lies in the files of others.

A layout lists for each leaf of a family's table the foreign tensor's name and how the two are laid out; it serves both
directions. A layout of the Hugging Face hub has also

- TYPES, the `model_type`s it reads, and HARMLESS, keys to pass over;
- `fields(keys)`, a Config's fields from a config.json and the tensors' shapes, and `config(c)`, a config.json's from a
  Config;
- perhaps `check_overrides(fields, c)`, which refuses a Config that those fields do not go with;
- PREFIX, which files of the bare network leave out, `ignored_tensors(c, names)`, patterns of those tensors that are no
  parameters, TIED, of tensors that may be copies of others, and perhaps `copies(c)`, of tensors to write under a second
  name too.

A layout that is read without a config.json may have `fields_from_shapes(shapes)`, the Config's fields that the shapes
give, and REQUIRED_FIELDS, the fields that must be given beside them.

Where others name one family's tensors in several ways, its layout has DIALECTS: further layouts, by name. What is read
is in that of which most names are there; what is written, in the first that serves, or in the one that is asked for.

A layout with `save_folder` has files of its own, as Darknet's, in place of config.json and safetensors.
"""

from types import ModuleType

from errors import unknown
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
    """The layouts of a family by name, first its `own`. Raises UsageError for a family without any."""
    if family not in LAYOUTS:
        raise unknown("family with a published layout", family, LAYOUTS)
    return {"own": LAYOUTS[family], **getattr(LAYOUTS[family], "DIALECTS", {})}


TYPES = {
    kind: family for family in LAYOUTS for layout in dialects(family).values() for kind in getattr(layout, "TYPES", ())
}


def folder_layout(family: str, dialect: str | None = None) -> ModuleType:
    """The layout in which a folder of a family's is written. Raises UsageError where there is none."""
    own = dialects(family)["own"] if family in LAYOUTS else None
    return own if own and dialect is None and hasattr(own, "save_folder") else get_layout(family, dialect, "config")


def get_layout(family: str, dialect: str | None, has: str) -> ModuleType:
    """The layout of a dialect, of None the first, among those that export `has`."""
    known = {name: layout for name, layout in dialects(family).items() if hasattr(layout, has)}
    if not known:
        raise unknown("family of the hub", family, sorted(set(TYPES.values())))
    name = next(iter(known)) if dialect is None else dialect
    if name not in known:
        raise unknown(f"dialect of {family}", name, known)
    return known[name]
