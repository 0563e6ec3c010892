"""A user's own Python code: modules by name or path, whose errors are one line with file and line."""

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from errors import UsageError, unknown

NAME = re.compile(r"(?P<where>[^\W\d]\w*(\.[^\W\d]\w*)*|.*\.py):(?P<name>[^\W\d]\w*)")


def load_name(text: str, key: str) -> Callable[..., object]:
    """The function or class that `package.file:name` or `path/to/file.py:name` names.

    `key` is the setting with its value, for messages. Raises UsageError as `load_module`, or if the module lacks it.
    """
    match = NAME.fullmatch(text)
    if match is None:
        raise UsageError(f"{key} is not package.file:name")
    module = load_module(match["where"], key)
    if not callable(getattr(module, match["name"], None)):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown(f"function or class of {match['where']}", match["name"], names)
    return getattr(module, match["name"])


def load_module(where: str, key: str) -> ModuleType:
    """The module `package.file`, importable from where Canon runs, or of the file `path/to/file.py`.

    `key` is the setting with its value, for messages. Raises UsageError if there is none, and for whatever it raises.
    """
    if not where.endswith(".py"):
        with code_errors(key, where):
            return importlib.import_module(where)
    if not Path(where).is_file():
        raise UsageError(f"{key}: there is no file {where!r}")
    with code_errors(key, where):
        return _run_file(where, Path(where).stat().st_mtime_ns)


def find_file(text: str) -> Path | None:
    """The file that holds what `package.file:name` or `path/to/file.py:name` names; None if there is none."""
    match = NAME.fullmatch(text)
    if match is None:
        return None
    if match["where"].endswith(".py"):
        return Path(match["where"]).resolve() if Path(match["where"]).is_file() else None
    try:
        spec = importlib.util.find_spec(match["where"])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def has_module(name: str) -> bool:
    """Whether there is a top-level module of this name. Raises ModuleNotFoundError for a dotted name without parent."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


@cache
def _run_file(path: str, changed: int) -> ModuleType:
    """The module of a file, which is run once unless it has `changed`."""
    name = f"{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"  # which no other module has
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the module of a class
    spec.loader.exec_module(module)
    return module


@contextmanager
def code_errors(key: str, where: str) -> Iterator[None]:
    """Raise UsageError for whatever a user's code in the block raises, with the line of its module.

    `where` is the module, as in `load_module`.
    """
    file = where if where.endswith(".py") else f"{where.replace('.', '/')}.py"
    ends = (f"/{file}", f"/{file.removesuffix('.py')}/__init__.py")
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise UsageError(f"{key}: {error.filename} line {error.lineno}: {error.msg}") from None
    except BaseException as error:  # SystemExit too
        frames = traceback.extract_tb(sys.exc_info()[2])
        lines = [frame.lineno for frame in frames if f"/{frame.filename}".replace("\\", "/").endswith(ends)]
        at = f"{file} line {lines[-1]}: " if lines else ""
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise UsageError(f"{key}: {at}{kind}{error}") from None
