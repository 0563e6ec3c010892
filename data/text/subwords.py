"""Subword tokenizers: any published tokenizer.json, and byte-level BPE trained here.

They use the library `tokenizers`, which is imported only where it is needed.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from documents import Json
from errors import UsageError

EOT = "<|endoftext|>"  # the end of a document, in tokenizers trained here
SPACE = "▁"  # SentencePiece's character for a space
FRONT = r"\A(?!"  # the beginning of a pattern that matches at the beginning of a text
PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")  # of a tokenizer.json
CHUNK = 2**20  # characters: longer texts are split where that changes no token
MAX_RUN = 1024  # characters: longer runs of letters, digits, signs or spaces are split before a BPE is trained on them
RUNS = "|".join(rf"(?<!{sign})(?:{sign}{{{MAX_RUN}}})+" for sign in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s"))
# Steps of a tokenizer.json that change a text at most by a space, or by its canonical form of Unicode.
LOSSLESS = {"ByteLevel", "Metaspace", "Prepend", "NFC", "Split", "Punctuation", "Digits", "UnicodeScripts"}


def byte_alphabet() -> dict[str, int]:
    """The characters for the 256 bytes in byte-level vocabularies: printable characters stand for themselves.

    Source: Radford et al., 2019, GPT-2.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def byte_fallback_pieces() -> list[str]:
    """SentencePiece's pieces for the 256 bytes, which encode unknown characters."""
    return [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class SubwordTokenizer:
    """A tokenizer.json and its special ids. Special-token strings in a text are encoded as ordinary text.

    `prefix` and `suffix` are the ids around a text that is read. Generation stops at `stop_ids`.
    """

    source: str  # the JSON
    eot: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()

    @cached_property
    def _file(self) -> Json:
        return {**dict.fromkeys(PARTS), **json.loads(self.source)}

    @property
    def _added_tokens(self) -> list[Json]:
        """Tokens that are matched before the model runs."""
        return self._file["added_tokens"] or []

    @cached_property
    def _model_ids(self) -> dict[str, int]:
        """The model's vocabulary, without added tokens."""
        return model_ids(self._file)

    @cached_property
    def special(self) -> dict[int, str]:
        """The tokens that decode to no text, by id: the file's special ones, eot, prefix, suffix and stop_ids."""
        names = {i: name for name, i in vocabulary(self._file).items()}
        ids = {a["id"] for a in self._added_tokens if a["special"]}
        ids |= {self.eot, *self.prefix, *self.suffix, *self.stop_ids} & set(names)
        return {i: names[i] for i in sorted(ids)}

    @cached_property
    def vocab(self) -> int:
        """The number of ids, from 0 to the greatest."""
        return max(vocabulary(self._file).values()) + 1

    @cached_property
    def _engine(self) -> Any:
        """The library's tokenizer, changed so that no text is encoded to a special id.

        With `encode_special_tokens` the library does not match special tokens, but a model may still have some as
        pieces (Unigram, if a path leads to them). Renamed with a leading space, they match no text.
        """
        special, model = self.special, dict(self._file["model"])
        hidden = {name: f" {name}" for i, name in special.items() if self._model_ids.get(name) == i}
        added = [{**a, "special": a["id"] in special} for a in self._added_tokens if a["content"] not in hidden]
        if hidden and isinstance(model["vocab"], dict):
            model["vocab"] = {hidden.get(name, name): i for name, i in model["vocab"].items()}
        elif hidden:
            model["vocab"] = [[hidden.get(name, name), score] for name, score in model["vocab"]]
        if hidden and "merges" in model:
            pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
            model["merges"] = [(a, b) for a, b in pairs if not {a, b, a + b} & set(hidden)]
        if model["type"] == "Unigram" and model.get("byte_fallback"):  # a literal <0x41> in a text is not the byte
            worst, rare = 8 * min(score for _, score in model["vocab"]), set(byte_fallback_pieces())
            model["vocab"] = [[name, worst if name in rare else score] for name, score in model["vocab"]]
        if model.get("unk_token") in hidden:
            model["unk_token"] = hidden[model["unk_token"]]
        file = {**self._file, "added_tokens": added, "post_processor": None, "model": model}
        engine = load_tokenizer(json.dumps(file, ensure_ascii=False))
        engine.encode_special_tokens = True
        return engine

    @cached_property
    def byte_lengths(self) -> np.ndarray | None:
        """UTF-8 bytes of each id [vocab], 0 for special ids; None if encoding loses text.

        A space that the tokenizer puts before a text counts. Text counts after normalisation to NFC.
        """
        parts = [*flatten_steps(self._file["normalizer"]), *flatten_steps(self._file["pre_tokenizer"])]
        if not all(map(_is_lossless, parts)) or not _concatenates_to_text(self._file["model"]):
            return None
        plain = [a for a in self._added_tokens if a["id"] not in self.special]
        if any(a["lstrip"] or a["rstrip"] for a in plain):
            return None
        known = set(self._model_ids) - set(self.special.values())
        space = any(part["type"] == "Metaspace" or part.get("content") == SPACE for part in parts)
        if any(part["type"] == "ByteLevel" for part in parts):
            if not known >= set(byte_alphabet()):
                return None
            lengths = {i: len(piece) for piece, i in self._model_ids.items()}
        elif self._file["model"].get("byte_fallback") and known >= {*byte_fallback_pieces(), *[SPACE] * space}:
            lengths = {
                i: len((piece.replace(SPACE, " ") if space else piece).encode()) for piece, i in self._model_ids.items()
            }
            lengths |= {self._model_ids[piece]: 1 for piece in byte_fallback_pieces()}
        else:
            return None
        lengths |= {a["id"]: len(a["content"].encode()) for a in plain} | dict.fromkeys(self.special, 0)
        array = np.zeros(self.vocab, np.float32)
        array[list(lengths)] = list(lengths.values())
        return array

    def encode(self, text: str) -> np.ndarray:
        """Text -> ids [n], without prefix and suffix. Raises UsageError if the library fails (a lone surrogate)."""
        with as_usage_error("this tokenizer cannot encode the text"):
            parts = split_at_spaces(text) if self._splits_at_spaces else [text]
            return np.concatenate([np.array(self._ids(part), np.int32) for part in parts])

    def _ids(self, text: str) -> list[int]:
        return self._engine.encode(text, add_special_tokens=False).ids

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether every space after another character begins a part that is encoded separately, as in GPT-2."""
        plain = [a for a in self._added_tokens if a["id"] not in self.special]
        before = self._file["pre_tokenizer"] or {}
        words = before.get("type") == "ByteLevel" and before.get("use_regex", True)
        return bool(words and not plain and not self._file["normalizer"])

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> text; special ids decode to nothing, invalid UTF-8 to U+FFFD."""
        kept = [int(i) for i in ids if int(i) < self.vocab and int(i) not in self.special]
        with as_usage_error("this tokenizer cannot decode its ids"):
            return self._engine.decode(kept, skip_special_tokens=False)

    def description(self) -> Json:
        """The tokenizer.json and the special ids."""
        affixes = {"prefix": list(self.prefix), "suffix": list(self.suffix), "ends": list(self.stop_ids)}
        return {"kind": "subword", "tokenizer": self.source, "eot": self.eot, **affixes}


def restore(description: Json) -> SubwordTokenizer:
    """The tokenizer of a `description()`."""
    prefix, suffix, stop_ids = (tuple(description[key]) for key in ("prefix", "suffix", "ends"))
    return SubwordTokenizer(description["tokenizer"], description["eot"], prefix, suffix, stop_ids)


def load_tokenizer(source: str, name: str = "this") -> Any:
    """The library's tokenizer of a tokenizer.json; `name` is for errors. Raises UsageError if it cannot be loaded."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(f"subword tokenizers need the package tokenizers: {error}") from None
    with as_usage_error(f"{name} is not a tokenizer.json"):
        backend = Tokenizer.from_str(source)
    backend.no_truncation()
    backend.no_padding()
    return backend


@contextmanager
def as_usage_error(what: str) -> Iterator[None]:
    """Raise UsageError for anything that the library raises: plain exceptions, and panics.

    A panic, for example of a pattern that backtracks without end, is a BaseException, not an Exception.
    """
    try:
        yield
    except UsageError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = (str(error) or type(error).__name__).split("\n")[0]
        raise UsageError(f"{what}: {first}") from None


def split_at_spaces(text: str) -> Iterator[str]:
    """A text in chunks of about CHUNK characters, split before single spaces between other characters."""
    at = 0
    between = re.compile(r"(?<=\S) (?=\S)")
    while len(text) - at > CHUNK and (cut := between.search(text, at + CHUNK)):
        yield text[at : cut.start()]
        at = cut.start()
    yield text[at:]


def split_runs(text: str) -> Iterator[str]:
    """A text in pieces without runs of more than MAX_RUN letters, digits, signs or spaces.

    The library's training time grows with the square of a word's length.
    """
    at = 0
    # a quick test: most texts have no long run
    has_long = re.search(rf"(?<!\S)\S{{{MAX_RUN}}}|(?<!\s)\s{{{MAX_RUN}}}", text)
    for run in re.finditer(RUNS, text) if has_long else ():
        for cut in range(run.start() + MAX_RUN, run.end() + 1, MAX_RUN):
            yield text[at:cut]
            at = cut
    yield text[at:]


def train_bpe(texts: Iterable[str], size: int) -> SubwordTokenizer:
    """Train a byte-level BPE of `size` ids, the first of which is eot. Raises UsageError if size is too small.

    Source: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1, on bytes as in Radford et al. 2019, section 2.2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if size < 257:
        raise UsageError(f"a byte-level BPE needs at least 257 tokens, 256 bytes and {EOT}, not {size}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[EOT], initial_alphabet=sorted(byte_alphabet()), show_progress=False
    )
    pieces = (piece for text in texts for part in split_at_spaces(text) for piece in split_runs(part))
    backend.train_from_iterator(pieces, trainer)
    return SubwordTokenizer(backend.to_str(), 0, stop_ids=(0,))  # special tokens come first


def model_ids(file: Json) -> dict[str, int]:
    """The ids of the model of a tokenizer.json, without added tokens."""
    vocab = file["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


def vocabulary(file: Json) -> dict[str, int]:
    """All ids of a tokenizer.json."""
    return model_ids(file) | {a["content"]: a["id"] for a in file["added_tokens"] or []}


def flatten_steps(part: Json | None) -> list[Json]:
    """The steps of a normalizer or pre-tokenizer, with sequences flattened."""
    inner = (part or {}).get("normalizers", (part or {}).get("pretokenizers"))
    return [part] if part and inner is None else [step for each in inner or () for step in flatten_steps(each)]


def _is_lossless(part: Json) -> bool:
    """Whether a step of a tokenizer.json keeps the text, or replaces spaces reversibly."""
    if part["type"] == "Replace":
        before = part["content"] == " " and part["pattern"].get("Regex", "").startswith(FRONT)
        return before or (part["pattern"], part["content"]) == ({"String": " "}, SPACE)
    return part["type"] in LOSSLESS and part.get("behavior") != "Removed"


def _concatenates_to_text(model: Json) -> bool:
    """Whether the concatenated pieces of a model are the text."""
    marks = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    return model["type"] in ("BPE", "Unigram") and not any(model.get(mark) for mark in marks)
