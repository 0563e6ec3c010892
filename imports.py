"""A user's own Python code: modules by name or path, whose errors are one line with file and line."""

import hashlib
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from errors import UsageError, unknown

RUN: dict[tuple[Path, bytes], ModuleType] = {}  # the modules of files that this process has run, by path and content
INSTALLED = ("site-packages", "dist-packages")  # folders of packages
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
        return run_file(where)


def find_package(name: str) -> Path:
    """The folder of an installed package, which is not imported. Raises UsageError if it is not installed."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UsageError(f"package {name!r} is not installed; install requirements.txt")
    return Path(found.origin).parent


def find_file(text: str) -> Path | None:
    """The file that holds what `package.file:name` or `path/to/file.py:name` names.

    None if there is none, and for a file of an installed package or of the standard library.
    """
    match = NAME.fullmatch(text)
    if match is None:
        return None
    if match["where"].endswith(".py"):
        return Path(match["where"]).resolve() if Path(match["where"]).is_file() else None
    try:
        spec = importlib.util.find_spec(match["where"])
    except (ImportError, ValueError):
        return None
    if not spec or not spec.origin or not spec.has_location:
        return None
    path = Path(spec.origin)
    is_installed = set(INSTALLED) & set(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib"))
    return None if is_installed else path


def has_module(name: str) -> bool:
    """Whether there is a top-level module of this name. Raises ModuleNotFoundError for a dotted name without parent."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def run_file(path: str) -> ModuleType:
    """The module of a file of Python code, which is run once in a process unless its content changes.

    So a config file that registers an entry registers one, however often and under whichever path it is named.
    """
    whole, content = Path(path).resolve(), Path(path).read_bytes()
    if (whole, content) not in RUN:
        module = ModuleType(f"{whole.stem}_{hashlib.sha256(bytes(whole)).hexdigest()[:8]}")  # which no other module has
        module.__file__ = path
        sys.modules[module.__name__] = module  # where dataclasses look for the module of a class
        exec(compile(content, path, "exec"), vars(module))
        RUN[whole, content] = module
    return RUN[whole, content]


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
