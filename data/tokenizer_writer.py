"""Tokenizers made files that the `tokenizers` library, and so transformers, reads."""

import json
from pathlib import Path

from data.subwords import EOT, Subwords, alphabet, coder
from data.tokenizers import Bytes, Characters, Tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for transformers into a folder; words have no such form."""
    made = as_subwords(tokenizer)
    if made is None:
        return
    end = coder(made.source).id_to_token(made.eot)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer.json").write_text(made.source, "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def as_subwords(tokenizer: Tokenizer) -> Subwords | None:
    """The same ids by the library's means: bytes and characters are a BPE without merges. None for words."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if isinstance(tokenizer, Subwords):
        return tokenizer
    if isinstance(tokenizer, Characters):
        made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(tokenizer.characters)}, []))
        made.decoder = decoders.Fuse()
    elif isinstance(tokenizer, Bytes):
        made = tokenizers.Tokenizer(models.BPE(alphabet(), []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    else:
        return None
    made.add_special_tokens([tokenizers.AddedToken(EOT, special=True)])
    return Subwords(made.to_str(), tokenizer.eot, ends=tokenizer.ends)
