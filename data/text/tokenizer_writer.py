"""Writes tokenizers as files of the `tokenizers` library, which transformers reads."""

import json
from pathlib import Path

from data.text import tokenizer_reader
from data.text.subwords import EOT, SubwordTokenizer, byte_alphabet, load_tokenizer
from data.text.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer
from documents import Json

ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def special_ids(tokenizer: Tokenizer) -> Json:
    """bos_token_id and eos_token_id, as in config.json and generation_config.json."""
    ends = list(tokenizer.stop_ids)
    return {"bos_token_id": next(iter(tokenizer.prefix), None), "eos_token_id": ends[0] if len(ends) == 1 else ends}


def write_tokenizer(tokenizer: SubwordTokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder."""
    source = _with_template(tokenizer)
    backend = load_tokenizer(source)
    settings: Json = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"eos_token": backend.id_to_token(tokenizer.eot)}
    if tokenizer.prefix:
        settings["bos_token"] = backend.id_to_token(tokenizer.prefix[0])
    settings |= {role: name for role, name in ROLES.items() if backend.token_to_id(name) in tokenizer.special}
    (folder / "tokenizer.json").write_text(source, "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _with_template(tokenizer: SubwordTokenizer) -> str:
    """The tokenizer.json, with a post-processor that adds prefix and suffix."""
    from tokenizers import processors

    backend = load_tokenizer(tokenizer.source)
    if tokenizer_reader.special_affixes(backend) == (tokenizer.prefix, tokenizer.suffix):
        return tokenizer.source
    before, after = ([backend.id_to_token(i) for i in some] for some in (tokenizer.prefix, tokenizer.suffix))
    special = [(backend.id_to_token(i), i) for i in {*tokenizer.prefix, *tokenizer.suffix}]
    one = [*before, "$A", *after]
    backend.post_processor = processors.TemplateProcessing(one, [*one, "$B:1", *after], special)
    return backend.to_str()


def as_subwords(tokenizer: Tokenizer) -> SubwordTokenizer | None:
    """A tokenizer.json with the same ids; bytes and characters become a BPE without merges. None for words."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if isinstance(tokenizer, SubwordTokenizer):
        return tokenizer
    if isinstance(tokenizer, CharacterTokenizer):
        backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(tokenizer.characters)}, []))
        backend.decoder = decoders.Fuse()
    elif isinstance(tokenizer, ByteTokenizer):
        backend = tokenizers.Tokenizer(models.BPE(byte_alphabet(), []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
    else:
        return None
    backend.add_special_tokens([tokenizers.AddedToken(EOT, special=True)])
    return SubwordTokenizer(backend.to_str(), tokenizer.eot, stop_ids=tokenizer.stop_ids)
