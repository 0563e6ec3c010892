"""Files of others, read whole: whatever is wrong with one is one line that names it."""

import json
import stat
from pathlib import Path
from typing import Any

from errors import UsageError, quote

POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: str | Path) -> None:
    """Raise UsageError where a file cannot be opened, is no regular file, or is a pointer that Git LFS left for one."""
    start = None
    try:
        if stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
            with Path(path).open("rb") as file:
                start = file.read(len(POINTER))
    except (OSError, ValueError) as error:  # a name may hold what no file's does
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if start is None:
        raise UsageError(f"{path} cannot be read: it is no regular file")
    if start == POINTER:
        raise UsageError(f"{path} is a pointer of Git LFS, not the file itself; `git lfs pull` fetches it")


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, without a byte-order mark. Raises UsageError, also as `refuse_pointer`."""
    refuse_pointer(path)
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} cannot be read: byte {error.start:,} is not UTF-8") from None


def parse_json(text: str | bytes, name: str | Path) -> Any:
    """The value of a JSON text; `name` is what a refusal calls it.

    Raises UsageError for what is no JSON, nests too deep, or gives one key two values.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise UsageError(f"{name} cannot be read as JSON: it nests too deep") from None
    except ValueError as error:
        raise UsageError(f"{name} cannot be read as JSON: {error}") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises UsageError as `read_text` and `parse_json`."""
    return parse_json(read_text(path), path)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings by name of a JSON file. Raises UsageError as `read_json`, and for another value than an object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no settings by name: it is {type(found).__name__} where an object is due")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"the key {quote(key)} stands twice, with two values")
        found[key] = value
    return found
