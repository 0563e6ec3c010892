"""Tokenizers made files that the `tokenizers` library, and so transformers, reads."""

import json
from pathlib import Path
from typing import Any

from data import tokenizer_reader
from data.subwords import EOT, SubwordTokenizer, byte_alphabet, load_tokenizer
from data.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer

ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Keys of a config.json and of a generation_config.json: what begins a text, and what ends one that is written."""
    ends = list(tokenizer.stop_ids)
    return {"bos_token_id": next(iter(tokenizer.prefix), None), "eos_token_id": ends[0] if len(ends) == 1 else ends}


def write_tokenizer(tokenizer: SubwordTokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder."""
    source = _with_template(tokenizer)
    made = load_tokenizer(source)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"eos_token": made.id_to_token(tokenizer.eot)}
    if tokenizer.prefix:
        settings["bos_token"] = made.id_to_token(tokenizer.prefix[0])
    settings |= {role: name for role, name in ROLES.items() if made.token_to_id(name) in tokenizer.special}
    (folder / "tokenizer.json").write_text(source, "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _with_template(tokenizer: SubwordTokenizer) -> str:
    """The tokenizer.json, which says itself what is put around a text."""
    from tokenizers import processors

    made = load_tokenizer(tokenizer.source)
    if tokenizer_reader.special_affixes(made) == (tokenizer.prefix, tokenizer.suffix):
        return tokenizer.source
    before, after = ([made.id_to_token(i) for i in some] for some in (tokenizer.prefix, tokenizer.suffix))
    special = [(made.id_to_token(i), i) for i in {*tokenizer.prefix, *tokenizer.suffix}]
    one = [*before, "$A", *after]
    made.post_processor = processors.TemplateProcessing(one, [*one, "$B:1", *after], special)
    return made.to_str()


def as_subwords(tokenizer: Tokenizer) -> SubwordTokenizer | None:
    """The same ids by the library's means: bytes and characters are a BPE without merges. None for words."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if isinstance(tokenizer, SubwordTokenizer):
        return tokenizer
    if isinstance(tokenizer, CharacterTokenizer):
        made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(tokenizer.characters)}, []))
        made.decoder = decoders.Fuse()
    elif isinstance(tokenizer, ByteTokenizer):
        made = tokenizers.Tokenizer(models.BPE(byte_alphabet(), []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    else:
        return None
    made.add_special_tokens([tokenizers.AddedToken(EOT, special=True)])
    return SubwordTokenizer(made.to_str(), tokenizer.eot, stop_ids=tokenizer.stop_ids)
