"""Tokenizers made files that the `tokenizers` library, and so transformers, reads."""

import json
from pathlib import Path

from data.subwords import EOT, Subwords, coder
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
        signs = _signs()
        made = tokenizers.Tokenizer(models.BPE({sign: byte for byte, sign in enumerate(signs)}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    else:
        return None
    made.add_special_tokens([tokenizers.AddedToken(EOT, special=True)])
    return Subwords(made.to_str(), tokenizer.eot, ends=tokenizer.ends)


def _signs() -> list[str]:
    """The character that stands for each byte in byte-level BPE: itself where it prints, else one from 256 on.

    Source: the encoder that OpenAI released with GPT-2 (Radford et al. 2019).
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]
