"""SentencePiece's `.model`: parses the protocol buffer and converts it to a tokenizer.json.

Source: Kudo and Richardson, 2018, arXiv:1808.06226; field numbers from its sentencepiece_model.proto.
"""

import base64
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data.text.subwords import FRONT, SPACE
from documents import Json
from errors import UsageError

Piece = tuple[str, float, int]  # name, score, type
NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4  # types of a piece; 5 is unused, 6 a byte
UNIGRAM, BPE = 1, 2  # values of the trainer's model_type
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of the model
MODEL_TYPE, SUFFIX, FALLBACK = 3, 24, 35  # fields of the trainer
CHARSMAP, PREFIX, SQUEEZE, ESCAPE = 2, 3, 4, 5  # fields of the normalizer


def parse(data: bytes, added_tokens: Sequence[str] = (), prefix_space: bool | None = None) -> Json:
    """The bytes of a `.model` -> a parsed tokenizer.json, to which `added_tokens` will be added.

    `prefix_space` is whether a space is put before a text; None takes it from the file. No space is put before an added
    token. Raises UsageError for another format or model type.
    """
    try:
        fields = list(_fields(data))
        pieces = [_piece(value) for number, value in fields if number == PIECES]
        trainer = _message(fields, TRAINER)
        rules = _message(fields, NORMALIZER)
        unknown = [type_ for _, _, type_ in pieces].index(UNKNOWN)
    except (IndexError, KeyError, TypeError, ValueError, struct.error):
        raise UsageError("it is not a SentencePiece model; give the tokenizer.json of this tokenizer") from None
    model_type = trainer.get(MODEL_TYPE, UNIGRAM)
    prefix = bool(rules.get(PREFIX, 1)) if prefix_space is None else prefix_space
    if model_type not in (UNIGRAM, BPE) or trainer.get(SUFFIX) or not rules.get(ESCAPE, 1):
        raise UsageError("it is neither a Unigram nor a BPE model of SentencePiece with spaces before words")
    model: Json = {"type": "Unigram", "unk_id": unknown, "vocab": [piece[:2] for piece in pieces]}
    if model_type == BPE:
        vocab = {name: i for i, (name, _, _) in enumerate(pieces)}
        model = {"type": "BPE", "unk_token": pieces[unknown][0], "fuse_unk": True, "vocab": vocab}
        model["merges"] = _merges(pieces, vocab)
    model["byte_fallback"] = bool(trainer.get(FALLBACK))
    user_symbols = [name for name, _, type_ in pieces if type_ == USER]
    special: list[Json] = []
    for i, (name, _, type_) in enumerate(pieces):
        if type_ in (UNKNOWN, CONTROL, USER):
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": type_ == USER}
            special.append({"id": i, "content": name, **flags, "special": type_ != USER})
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": _normalizer(rules, prefix, user_symbols, added_tokens),
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False},
        "decoder": _decoder(prefix),
        "model": model,
    }


def _message(fields: Iterable[tuple[int, Any]], which: int) -> dict[int, Any]:
    """The fields of the message of number `which` by number; {} if there is none."""
    found: dict[int, Any] = {}
    for number, part in fields:
        if number == which:
            found.update(_fields(part))
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value (int or bytes) of each field of a message. Raises IndexError if it is truncated."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        size = {1: lambda: 8, 2: varint, 5: lambda: 4}[wire]()
        if at + size > len(data):
            raise IndexError
        yield number, data[at : at + size]
        at += size


def _piece(data: bytes) -> Piece:
    found = dict(_fields(data))
    return found[1].decode(), struct.unpack("<f", found.get(2, bytes(4)))[0], found.get(3, NORMAL)


def _merges(pieces: list[Piece], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The merges: pairs of pieces that form a piece, in order of the piece's score, best first."""
    ranked = []
    for name, score, type_ in pieces:
        if type_ == NORMAL:
            pairs = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
            known = [(vocab[a], vocab[b], a, b) for a, b in pairs if a in vocab and b in vocab]
            ranked += [(score, a, b) for _, _, a, b in sorted(known)]
    return [(a, b) for _, a, b in sorted(ranked, key=lambda pair: -pair[0])]


def _normalizer(rules: dict[int, Any], prefix: bool, user_symbols: list[str], added: Sequence[str]) -> Json:
    """The model's character map, then removal of extra spaces, then the space before a text.

    The library normalises user-defined symbols too, before it matches them in a text: they must not change.
    """
    steps = [(" {2,}", " "), (r"\A +| +\z", "")] if rules.get(SQUEEZE, 1) else []
    users = "|".join(map(re.escape, user_symbols))
    tokens = "".join(f"{re.escape(token)}|" for token in added)
    steps += [(rf"{FRONT}{tokens}(?:{users})?\z)", " ")] if prefix else []
    parts: list[Json] = []
    if rules.get(CHARSMAP):
        parts += [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(rules[CHARSMAP]).decode()}]
    parts += [{"type": "Replace", "pattern": {"Regex": old}, "content": new} for old, new in steps]
    return {"type": "Sequence", "normalizers": parts}


def _decoder(prefix: bool) -> Json:
    steps: list[Json] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {"type": "Sequence", "decoders": steps}
