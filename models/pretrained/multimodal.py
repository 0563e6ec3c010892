"""Multimodal networks on the Hugging Face hub: which settings and tensors are of their language model."""

import re
from collections.abc import Iterable

from documents import Json
from errors import UsageError
from models.pretrained.config_keys import Keys

TEXT_TYPES = {  # model_type -> that of its language model
    **{"gemma3": "gemma3_text", "llama4": "llama4_text"},
    **{"gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text"},
}
MULTIMODAL_KEYS = re.compile("image|vision|video|audio|^(boi|eoi|boa|eoa)_token|^mm_")  # of no text
MULTIMODAL_TENSORS = re.compile(r"^(model\.)?(vision_\w+|audio_\w+|embed_vision|embed_audio|multi_modal_projector)\.")


def text_config(values: Json, ignore: Iterable[str] = ()) -> Json:
    """The settings of the language model, complete, in a config.json of a multimodal network.

    Raises UsageError if there are none, and for an unknown key that is not of another modality.
    """
    kind = values["model_type"]
    inner = values.get("text_config")
    if not isinstance(inner, dict):
        raise UsageError(f"config.json of a {kind} has text_config = {inner!r}; it must be a mapping")
    outer = Keys(values, ignore=ignore)
    outer.take("text_config", "quantization_config")
    tied = outer.take("tie_word_embeddings", default=inner.get("tie_word_embeddings"))
    outer.refuse_unread(name for name in values if MULTIMODAL_KEYS.search(name))
    above = {name: values[name] for name in ("quantization_config",) if name in values}
    return {**inner, **above, "model_type": TEXT_TYPES[kind], "tie_word_embeddings": tied}


def is_multimodal(name: str) -> bool:
    """Whether a tensor is of a part that processes images, video or audio."""
    return bool(MULTIMODAL_TENSORS.match(name))
