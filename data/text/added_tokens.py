"""Added tokens of a tokenizer, in the files of transformers.

`added_tokens_decoder` of tokenizer_config.json has them by id, with flags. Folders without it have added_tokens.json,
ids by token, and special_tokens_map.json, which lists the special tokens.
"""

import json
from pathlib import Path
from typing import Any

from data.text.subwords import vocabulary
from documents import Json
from errors import UsageError, quote

Token = Json  # as in the list `added_tokens` of a tokenizer.json
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LISTS = ("additional_special_tokens", "extra_special_tokens")


def read_added_tokens(sidecars: dict[str, Json], folder: Path) -> list[Token]:
    """The added tokens of a folder, sorted by id. `sidecars` are the contents of its files, by name.

    Raises UsageError for an entry that is not a token.
    """
    settings = sidecars.get("tokenizer_config.json", {})
    if "added_tokens_decoder" in settings:
        where = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
        entries = [(_id(i, where), token) for i, token in _items(settings["added_tokens_decoder"], where)]
        return [_token(i, token, where) for i, token in sorted(entries, key=lambda entry: entry[0])]
    where, special = str(folder / "added_tokens.json"), _special(sidecars)
    entries = [(_id(i, where), name) for name, i in sidecars.get("added_tokens.json", {}).items()]
    return [
        _token(i, {"content": name, "normalized": name not in special, "special": name in special}, where)
        for i, name in sorted(entries)
    ]


def _items(value: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} is {quote(value)}, not tokens by their ids")
    return list(value.items())


def _id(value: Any, where: str) -> int:
    if not str(value).isdecimal() or isinstance(value, bool):
        raise UsageError(f"{where}: {quote(value)} is not the id of a token")
    return int(value)


def _token(number: int, entry: Any, where: str) -> Token:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content:
        raise UsageError(f"{where}: entry {number} is {quote(entry)}, not a token with `content`")
    flags = {flag: entry.get(flag, flag == "normalized" and not entry.get("special", False)) for flag in FLAGS}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise UsageError(f"{where}: the flags {', '.join(FLAGS)} of {quote(content)} must be true or false")
    return {"id": number, "content": content, **flags}


def _special(sidecars: dict[str, Json]) -> set[str]:
    """The special tokens of the files."""
    found: list[Any] = []
    for values in (sidecars.get("tokenizer_config.json", {}), sidecars.get("special_tokens_map.json", {})):
        found += [value for key, value in values.items() if key.endswith("_token")]
        for key in LISTS:
            listed = values.get(key) or []
            found += listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else []
    plain = [value.get("content") if isinstance(value, dict) else value for value in found]
    return {value for value in plain if isinstance(value, str)}


def merge_added_tokens(source: str, tokens: list[Token], path: Path) -> str:
    """A tokenizer.json with `tokens` and their flags added; unchanged if it has them all.

    A special token is never matched in a text, so the flags of a token that is special already do not matter.
    Raises UsageError if a token has another id in the vocabulary, or its id is that of another token.
    """
    file = json.loads(source)
    ids = vocabulary({"added_tokens": None, **file})
    names = {i: name for name, i in ids.items()}
    known = {token["content"]: token for token in file.get("added_tokens") or []}
    merged = dict(known)
    for token in tokens:
        number, name = token["id"], token["content"]
        if ids.get(name, number) != number:
            raise UsageError(
                f"{path}: the added token {quote(name)} has the id {number}, but the vocabulary's is {ids[name]}"
            )
        if names.get(number, name) != name:
            raise UsageError(f"{path}: the added token {quote(name)} has the id of {quote(names[number])}, {number}")
        names[number] = name
        if not (token["special"] and known.get(name, {}).get("special")):
            merged[name] = token
    if merged == known:
        return source
    file["added_tokens"] = sorted(merged.values(), key=lambda token: token["id"])
    return json.dumps(file, ensure_ascii=False)


def check_ids(tokens: list[Token], backend: Any, path: Path) -> None:
    """Raises UsageError if the library gives an added token another id, because the ids have a gap."""
    for token in tokens:
        number, library_id = token["id"], backend.token_to_id(token["content"])
        if library_id != number:
            raise UsageError(
                f"{path}: the added token {quote(token['content'])} has the id {number}, but the library gives it "
                f"{library_id}: ids of added tokens must follow those of the vocabulary without a gap"
            )
