"""Subwords: any tokenizer that a tokenizer.json holds, as others publish them, and byte-level BPE trained here.

The library `tokenizers` does the work, and is imported where it is needed only.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from errors import UsageError

EOT = "<|endoftext|>"  # the end of a document, of a tokenizer that we train
SPACE = "▁"  # how SentencePiece writes a space
FRONT = r"\A(?!"  # how a pattern begins that finds where a text does
PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")  # of a tokenizer.json
CHUNK = 2**20  # characters: a longer text is cut where a cut changes no token
MAX_RUN = 1024  # characters: of a longer run of letters, digits, signs or spaces a BPE learns piece by piece
RUNS = "|".join(rf"(?<!{sign})(?:{sign}{{{MAX_RUN}}})+" for sign in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s"))
# What of a tokenizer.json changes no text, but for a space more or less, or one canonical form of Unicode for another.
LOSSLESS = {"ByteLevel", "Metaspace", "Prepend", "NFC", "Split", "Punctuation", "Digits", "UnicodeScripts"}


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write the 256 bytes: those that print stand for themselves.

    Source: Radford et al., 2019, GPT-2.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def byte_fallback_pieces() -> list[str]:
    """The pieces by which SentencePiece writes the 256 bytes of characters that it does not know."""
    return [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class SubwordTokenizer:
    """A tokenizer.json, whole, with the ids that have a part to play; a special token written in a text is text.

    `prefix` and `suffix` are put around a text that is to be read; `ends` are the ids after which a text has ended.
    """

    source: str  # the JSON
    eot: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()

    @cached_property
    def _file(self) -> dict[str, Any]:
        return {**dict.fromkeys(PARTS), **json.loads(self.source)}

    @property
    def _added_tokens(self) -> list[dict[str, Any]]:
        """Tokens that are looked for before the model."""
        return self._file["added_tokens"] or []

    @cached_property
    def _model_ids(self) -> dict[str, int]:
        """The model's own vocabulary."""
        return model_ids(self._file)

    @cached_property
    def special(self) -> dict[int, str]:
        """What stands for no text: the tokens that the file calls special, and what begins, ends or masks."""
        names = {i: name for name, i in vocabulary(self._file).items()}
        found = {a["id"] for a in self._added_tokens if a["special"]}
        found |= {self.eot, *self.prefix, *self.suffix, *self.stop_ids} & set(names)
        return {i: names[i] for i in sorted(found)}

    @cached_property
    def vocab(self) -> int:
        """Ids, from 0 to the greatest."""
        return max(vocabulary(self._file).values()) + 1

    @cached_property
    def _engine(self) -> Any:
        """The library's tokenizer, so made that no text gives a special id.

        `encode_special_tokens` keeps it from looking for special tokens, but a model may still know some as pieces
        (Unigram, where a path leads to them). With a space in front they lie where no piece is looked for.
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
        if model["type"] == "Unigram" and model.get("byte_fallback"):  # nor is a written <0x41> the byte
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
        """UTF-8 bytes of each id [vocab], 0 for special ones; None where a text does not come back whole.

        A space that the tokenizer puts before a text counts, and text counts as it is after a normalisation to NFC.
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
        elif self._file["model"].get("byte_fallback") and known >= {
            *byte_fallback_pieces(),
            *([SPACE] if space else []),
        }:
            lengths = {
                i: len((piece.replace(SPACE, " ") if space else piece).encode()) for piece, i in self._model_ids.items()
            }
            lengths |= {self._model_ids[piece]: 1 for piece in byte_fallback_pieces()}
        else:
            return None
        lengths |= {a["id"]: len(a["content"].encode()) for a in plain} | dict.fromkeys(self.special, 0)
        found = np.zeros(self.vocab, np.float32)
        found[list(lengths)] = list(lengths.values())
        return found

    def encode(self, text: str) -> np.ndarray:
        """Text -> ids [n], none of them added. Raises UsageError where the library fails, as at half a surrogate."""
        with as_usage_error("this tokenizer cannot encode the text"):
            parts = split_at_spaces(text) if self._splits_at_spaces else [text]
            return np.concatenate([np.array(self._ids(part), np.int32) for part in parts])

    def _ids(self, text: str) -> list[int]:
        return self._engine.encode(text, add_special_tokens=False).ids

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether every space after another character begins a part that is encoded by itself, as in GPT-2."""
        plain = [a for a in self._added_tokens if a["id"] not in self.special]
        before = self._file["pre_tokenizer"] or {}
        words = before.get("type") == "ByteLevel" and before.get("use_regex", True)
        return bool(words and not plain and not self._file["normalizer"])

    def decode(self, ids: Iterable[int]) -> str:
        """ids -> text; special ones give nothing, a broken sequence of bytes U+FFFD."""
        kept = [int(i) for i in ids if int(i) < self.vocab and int(i) not in self.special]
        with as_usage_error("this tokenizer cannot decode its ids"):
            return self._engine.decode(kept, skip_special_tokens=False)

    def description(self) -> dict[str, Any]:
        """All of it."""
        around = {"prefix": list(self.prefix), "suffix": list(self.suffix), "ends": list(self.stop_ids)}
        return {"kind": "subword", "tokenizer": self.source, "eot": self.eot, **around}


def restore(description: dict[str, Any]) -> SubwordTokenizer:
    """The tokenizer of a `description()`."""
    prefix, suffix, stop_ids = (tuple(description[key]) for key in ("prefix", "suffix", "ends"))
    return SubwordTokenizer(description["tokenizer"], description["eot"], prefix, suffix, stop_ids)


def load_tokenizer(source: str, name: str = "this") -> Any:
    """The library's tokenizer of a JSON; `name` is the file's. Raises UsageError where it cannot be had."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(f"subword tokenizers need the package tokenizers: {error}") from None
    with as_usage_error(f"{name} is no tokenizer.json"):
        made = Tokenizer.from_str(source)
    made.no_truncation()
    made.no_padding()
    return made


@contextmanager
def as_usage_error(what: str) -> Iterator[None]:
    """Raise UsageError for whatever the library raises: exceptions of no class of its own, and panics.

    A panic, as of a pattern that backtracks without end, is no Exception but a BaseException.
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
    """A text in pieces of about PIECE characters, cut before single spaces between other characters."""
    at, between = 0, re.compile(r"(?<=\S) (?=\S)")
    while len(text) - at > CHUNK and (cut := between.search(text, at + CHUNK)):
        yield text[at : cut.start()]
        at = cut.start()
    yield text[at:]


def split_runs(text: str) -> Iterator[str]:
    """A text in pieces, none of which has more than WORD letters, digits, signs or spaces in a row.

    The time that the library takes to learn from a word grows with the square of the word's length.
    """
    at, long = (
        0,
        re.search(rf"(?<!\S)\S{{{MAX_RUN}}}|(?<!\s)\s{{{MAX_RUN}}}", text),
    )  # most texts have none: a quick look
    for run in re.finditer(RUNS, text) if long else ():
        for cut in range(run.start() + MAX_RUN, run.end() + 1, MAX_RUN):
            yield text[at:cut]
            at = cut
    yield text[at:]


def train_bpe(texts: Iterable[str], size: int) -> SubwordTokenizer:
    """A byte-level BPE of `size` ids, the first of them the end of a text. Raises UsageError for too small a size.

    Source: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1, on bytes as in Radford et al. 2019, section 2.2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if size < 257:
        raise UsageError(f"a byte-level BPE has at least 257 tokens, the bytes and an end, not {size}")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[EOT], initial_alphabet=sorted(byte_alphabet()), show_progress=False
    )
    short = (piece for text in texts for part in split_at_spaces(text) for piece in split_runs(part))
    made.train_from_iterator(short, trainer)
    return SubwordTokenizer(made.to_str(), 0, stop_ids=(0,))  # special tokens come first


def model_ids(file: dict[str, Any]) -> dict[str, int]:
    """The ids of the model of a tokenizer.json, added tokens not among them."""
    vocab = file["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


def vocabulary(file: dict[str, Any]) -> dict[str, int]:
    """All ids of a tokenizer.json."""
    return model_ids(file) | {a["content"]: a["id"] for a in file["added_tokens"] or []}


def flatten_steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer, or all that are in a sequence."""
    inner = (part or {}).get("normalizers", (part or {}).get("pretokenizers"))
    return [part] if part and inner is None else [found for each in inner or () for found in flatten_steps(each)]


def _is_lossless(part: dict[str, Any]) -> bool:
    """Whether a part of a tokenizer.json leaves the text as it is, or its spaces to be told from the rest."""
    if part["type"] == "Replace":
        before = part["content"] == " " and part["pattern"].get("Regex", "").startswith(FRONT)
        return before or (part["pattern"], part["content"]) == ({"String": " "}, SPACE)
    return part["type"] in LOSSLESS and part.get("behavior") != "Removed"


def _concatenates_to_text(model: dict[str, Any]) -> bool:
    """Whether a model's pieces, side by side, are the text."""
    marks = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    return model["type"] in ("BPE", "Unigram") and not any(model.get(mark) for mark in marks)
