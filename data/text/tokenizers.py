"""Tokenizers: bytes, characters or words of a corpus, or subwords. Every checkpoint contains the run's tokenizer."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from data.text import subwords, tokenizer_reader
from documents import Json
from errors import UsageError, unknown


@runtime_checkable
class Tokenizer(Protocol):
    """Text <-> ids, int32; special ids decode to no text."""

    @property
    def vocab(self) -> int:
        """Number of ids."""

    @property
    def eot(self) -> int:
        """The end of a document."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which generation stops, including eot."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """The ids before a text that is read."""

    @property
    def suffix(self) -> tuple[int, ...]:
        """The ids after a text that is classified."""

    @property
    def byte_lengths(self) -> np.ndarray | None:
        """UTF-8 bytes of each id [vocab]; None if encoding loses text."""

    def encode(self, text: str) -> np.ndarray:
        """Text -> ids [n]."""

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> text; `eot` decodes to nothing."""

    def description(self) -> Json:
        """A JSON value from which `restore` makes the tokenizer."""


class _EotTokenizer:
    """A tokenizer whose last id is eot, without prefix and suffix."""

    prefix: ClassVar[tuple[int, ...]] = ()
    suffix: ClassVar[tuple[int, ...]] = ()

    @property
    def vocab(self) -> int:
        """Number of ids."""
        raise NotImplementedError

    @property
    def eot(self) -> int:
        """The last id."""
        return self.vocab - 1

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """eot."""
        return (self.eot,)


@dataclass(frozen=True)
class ByteTokenizer(_EotTokenizer):
    """UTF-8 bytes: 256 ids and `eot`."""

    @property
    def vocab(self) -> int:
        """257."""
        return 257

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """1 for each byte, 0 for eot."""
        return np.array([1] * 256 + [0], np.float32)

    def encode(self, text: str) -> np.ndarray:
        """Text -> its bytes [n]."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Bytes -> text; invalid UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if int(i) < 256).decode("utf-8", errors="replace")

    def description(self) -> Json:
        """The kind."""
        return {"kind": "byte"}


@dataclass(frozen=True)
class CharacterTokenizer(_EotTokenizer):
    """The characters of a corpus in code-point order, and `eot`."""

    characters: str

    @property
    def vocab(self) -> int:
        """Characters and eot."""
        return len(self.characters) + 1

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """UTF-8 length of each character, 0 for eot."""
        return np.array([len(c.encode("utf-8")) for c in self.characters] + [0], np.float32)

    @cached_property
    def _points(self) -> np.ndarray:
        return np.array([ord(c) for c in self.characters], np.uint32)

    def encode(self, text: str) -> np.ndarray:
        """Text -> ids [n]. Raises UsageError for a character that is not in the corpus."""
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = np.searchsorted(self._points, points)
        ids = np.minimum(ids, len(self._points) - 1)
        missing = points[self._points[ids] != points]
        if missing.size:
            raise UsageError(
                f"character {chr(int(missing[0]))!r} is not among the {len(self.characters)} of this character "
                f"tokenizer: {self.characters!r}; --config.data.tokenizer=byte takes any text"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> text."""
        return "".join(self.characters[int(i)] for i in ids if int(i) < len(self.characters))

    def description(self) -> Json:
        """The kind and the characters."""
        return {"kind": "char", "characters": self.characters}


@dataclass(frozen=True)
class WordTokenizer(_EotTokenizer):
    """White-space separated words, the most frequent first; then one id for all unknown words, and `eot`."""

    words: tuple[str, ...]
    byte_lengths = None

    @property
    def vocab(self) -> int:
        """Words, the unknown word and eot."""
        return len(self.words) + 2

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> np.ndarray:
        """Text -> ids [n]."""
        return np.array([self._ids.get(word, len(self.words)) for word in text.split()], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> words separated by spaces; U+FFFD for an unknown word."""
        known = (*self.words, "\ufffd")
        return " ".join(known[int(i)] for i in ids if int(i) < len(known))

    def description(self) -> Json:
        """The kind and the words."""
        return {"kind": "word", "words": list(self.words)}


KINDS = ("byte", "char", "word", "subword")
BPE = "bpe"  # another value of `data.tokenizer`: a byte-level BPE trained on the training split


def make(kind: str, corpus: Iterable[str], limit: int | None = None) -> Tokenizer:
    """A tokenizer by kind, or by the path of a tokenizer. `corpus` defines characters, words or BPE tokens.

    `limit` is the number of words (the most frequent) or of BPE tokens. Raises UsageError.
    """
    if kind == "byte":
        return ByteTokenizer()
    if kind == BPE:
        assert limit is not None
        return subwords.train_bpe(corpus, limit)
    if kind == "char":
        characters = "".join(sorted(set().union(*map(set, corpus))))
        if not characters:
            raise UsageError("a character tokenizer needs a corpus with at least one character")
        return CharacterTokenizer(characters)
    if kind == "word":
        counts = Counter(word for text in corpus for word in text.split())
        if not counts:
            raise UsageError("a word tokenizer needs a corpus with at least one word")
        return WordTokenizer(tuple(sorted(counts, key=lambda w: (-counts[w], w))[:limit]))
    if kind == "subword" or not tokenizer_reader.has_tokenizer(kind):
        names = (*KINDS[:-1], BPE, "the path of a tokenizer.json or of its folder")
        raise unknown("tokenizer", kind, names)
    return tokenizer_reader.read_tokenizer(kind)


def tokenizer_kind(name: str) -> str:
    """The kind of a value of `data.tokenizer`: one of KINDS; `subword` for a path or BPE."""
    return name if name in KINDS else "subword"


def restore(description: Json) -> Tokenizer:
    """The tokenizer of a `description()`. Raises UsageError for an unknown kind."""
    kind = description.get("kind")
    if kind == "subword":
        return subwords.restore(description)
    if kind == "char":
        return CharacterTokenizer(description["characters"])
    if kind == "word":
        return WordTokenizer(tuple(description["words"]))
    return make(str(kind), ())


def fingerprint(description: Json) -> str:
    """A hash of a tokenizer's description: 16 hex digits."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
