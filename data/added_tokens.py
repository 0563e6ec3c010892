"""Tokens that files beside a tokenizer add to it, as transformers keeps them.

`added_tokens_decoder` of tokenizer_config.json holds them by id, each with its flags; folders without it have
added_tokens.json, ids by token, and special_tokens_map.json, which names the special ones.
"""

import json
from pathlib import Path
from typing import Any

from data.subwords import vocabulary
from errors import UsageError, quote

Token = dict[str, Any]  # as in the list `added_tokens` of a tokenizer.json
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LISTS = ("additional_special_tokens", "extra_special_tokens")


def read_added_tokens(sides: dict[str, dict[str, Any]], folder: Path) -> list[Token]:
    """The tokens that a folder's files add, by their ids: names of files -> what each holds.

    Raises UsageError for an entry that is no token.
    """
    settings = sides.get("tokenizer_config.json", {})
    if "added_tokens_decoder" in settings:
        where = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
        entries = [(_id(i, where), token) for i, token in _items(settings["added_tokens_decoder"], where)]
        return [_token(i, token, where) for i, token in sorted(entries, key=lambda entry: entry[0])]
    where, special = str(folder / "added_tokens.json"), _special(sides)
    entries = [(_id(i, where), name) for name, i in sides.get("added_tokens.json", {}).items()]
    return [
        _token(i, {"content": name, "normalized": name not in special, "special": name in special}, where)
        for i, name in sorted(entries)
    ]


def _items(value: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} holds {quote(value)}, not tokens by their ids")
    return list(value.items())


def _id(value: Any, where: str) -> int:
    if not str(value).isdecimal() or isinstance(value, bool):
        raise UsageError(f"{where} has {quote(value)} for the id of a token")
    return int(value)


def _token(number: int, entry: Any, where: str) -> Token:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content:
        raise UsageError(f"{where} has no token with `content` at {number}: {quote(entry)}")
    flags = {flag: entry.get(flag, flag == "normalized" and not entry.get("special", False)) for flag in FLAGS}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise UsageError(f"{where}: the flags {', '.join(FLAGS)} of {quote(content)} must be true or false")
    return {"id": number, "content": content, **flags}


def _special(sides: dict[str, dict[str, Any]]) -> set[str]:
    """The tokens that the files name as special."""
    found: list[Any] = []
    for values in (sides.get("tokenizer_config.json", {}), sides.get("special_tokens_map.json", {})):
        found += [value for key, value in values.items() if key.endswith("_token")]
        for key in LISTS:
            listed = values.get(key) or []
            found += listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else []
    plain = [value.get("content") if isinstance(value, dict) else value for value in found]
    return {value for value in plain if isinstance(value, str)}


def merge_added_tokens(source: str, tokens: list[Token], path: Path) -> str:
    """A tokenizer.json with tokens added, or with their flags; as it is where it has them all.

    A special token is never looked for in a text, so flags of one that is known as special change nothing.
    Raises UsageError where a token has another id in the vocabulary, or its id is another token's.
    """
    file = json.loads(source)
    ids = vocabulary({"added_tokens": None, **file})
    names = {i: name for name, i in ids.items()}
    known = {token["content"]: token for token in file.get("added_tokens") or []}
    merged = dict(known)
    for token in tokens:
        number, name = token["id"], token["content"]
        if ids.get(name, number) != number:
            raise UsageError(f"{path}: the added token {quote(name)} has the id {number}, the vocabulary's {ids[name]}")
        if names.get(number, name) != name:
            raise UsageError(f"{path}: the added token {quote(name)} has the id of {quote(names[number])}, {number}")
        names[number] = name
        if not (token["special"] and known.get(name, {}).get("special")):
            merged[name] = token
    if merged == known:
        return source
    file["added_tokens"] = sorted(merged.values(), key=lambda token: token["id"])
    return json.dumps(file, ensure_ascii=False)


def check_ids(tokens: list[Token], made: Any, path: Path) -> None:
    """Hold added tokens to the ids that the library gives them. Raises UsageError where ids leave one out."""
    for token in tokens:
        number, given = token["id"], made.token_to_id(token["content"])
        if given != number:
            raise UsageError(
                f"{path}: the added token {quote(token['content'])} has the id {number}, where the library gives it "
                f"{given}: ids of added tokens must follow those of the vocabulary, without a gap"
            )
