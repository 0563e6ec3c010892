"""Tokenizers of the `tokenizers` library: those that others publish as tokenizer.json, and BPE trained here."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from errors import UsageError

EOT = "<|endoftext|>"
# Normalizers after which the text is still there, but for spaces before it; NFC leaves common text as it is.
FAITHFUL = {"Prepend", "Replace", "NFC", "Sequence"}


@dataclass(frozen=True)
class Subwords:
    """A tokenizer.json, whole, with the ids that have a part to play; what is special stands for no text.

    `prefix` and `suffix` are put around a text that is to be read; `ends` are the ids after which a text has ended.
    """

    source: str  # the JSON
    eot: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    @cached_property
    def _coder(self) -> Any:
        return coder(self.source)

    @cached_property
    def _json(self) -> dict[str, Any]:
        return json.loads(self.source)

    @cached_property
    def vocab(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._coder.get_vocab(with_added_tokens=True).values())

    @cached_property
    def byte_lengths(self) -> np.ndarray | None:
        """UTF-8 bytes that each id stands for [vocab]; None where ids do not give the text back."""
        lossy = _types(self._json.get("normalizer")) - FAITHFUL
        decoders = _types(self._json.get("decoder"))
        if lossy or not decoders & {"ByteLevel", "Metaspace", "ByteFallback", "Replace", "Fuse"}:
            return None
        found = np.zeros(self.vocab, np.float32)
        for token, i in self._coder.get_vocab(with_added_tokens=True).items():
            found[i] = len(token) if "ByteLevel" in decoders else _spelt(token)
        for i, token in self._coder.get_added_tokens_decoder().items():
            found[i] = 0 if token.special else len(token.content.encode())
        return found

    def encode(self, text: str) -> np.ndarray:
        """Text -> ids [n], without prefix and suffix; what looks like a special token is text like any other."""
        return np.array(self._coder.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> text."""
        return self._coder.decode([int(i) for i in ids], skip_special_tokens=True)

    def description(self) -> dict[str, Any]:
        """All of it."""
        around = {"prefix": list(self.prefix), "suffix": list(self.suffix), "ends": list(self.ends)}
        return {"kind": "subword", "tokenizer": self.source, "eot": self.eot, **around}


def restore(description: dict[str, Any]) -> Subwords:
    """The tokenizer of a `description()`."""
    around = {k: tuple(description[k]) for k in ("prefix", "suffix", "ends")}
    return Subwords(description["tokenizer"], description["eot"], **around)


def coder(source: str) -> Any:
    """The library's tokenizer of a JSON. Raises UsageError where the library is missing or cannot take it."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(f"subword tokenizers need the package tokenizers: {error}") from None
    try:
        made = Tokenizer.from_str(source)
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"this is no tokenizer.json: {str(error).splitlines()[0]}") from None
    made.encode_special_tokens = True
    made.no_truncation()
    made.no_padding()
    return made


def _types(part: Any) -> set[str]:
    """The types of a normalizer or decoder and of those inside it."""
    if isinstance(part, list):
        return set().union(*map(_types, part))
    if not isinstance(part, dict):
        return set()
    return {part["type"]} | _types([*part.get("normalizers", ()), *part.get("decoders", ())])


def _spelt(token: str) -> int:
    """Bytes of a token of SentencePiece's: `<0xE2>` is one, and so is its sign for a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("▁", " ").encode())


def train_bpe(texts: Iterable[str], size: int) -> Subwords:
    """A byte-level BPE of `size` ids, the first of them the end of a text. Raises UsageError for too small a size.

    Source: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1, on bytes as in Radford et al. 2019, section 2.2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if size < 257:
        raise UsageError(f"a byte-level BPE has at least 257 tokens, the bytes and an end, not {size}")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[EOT], initial_alphabet=sorted(alphabet), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return Subwords(made.to_str(), 0, ends=(0,))  # special tokens come first
