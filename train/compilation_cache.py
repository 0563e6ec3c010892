"""A persistent compilation cache: one file per program, with its digest, in a folder of bounded size.

JAX's own folder cache (0.10 to 0.12) writes in place and never replaces a damaged entry, and zstandard frames carry no
checksum, so a flipped bit goes unnoticed. Here an entry is used only if its digest matches. JAX has no public API for
another cache: if a later version lacks the private one, no programs are cached.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

LIMIT = 2**30  # maximum bytes of a folder when a process starts
DIGEST = hashlib.sha256
DIGEST_SIZE = DIGEST().digest_size


def is_safe() -> bool:
    """Whether this process may use cached programs: not with several CPU devices.

    XLA's CPU backend crashed in some of them (jaxlib 0.10.2, experts on 8 simulated devices; docs/log.md).
    """
    return jax.default_backend() != "cpu" or jax.device_count() == 1


class ProgramCache:
    """The folder, behind JAX's cache interface. Entries that cannot be read or written count as absent.

    If `is_safe` is false, every entry counts as absent.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.program"

    def get(self, key: str) -> bytes | None:
        """The program of a key, or None. A corrupt file is removed."""
        if not is_safe():
            return None
        file = self._file(key)
        try:
            whole = file.read_bytes()
            if DIGEST(whole[DIGEST_SIZE:]).digest() == whole[:DIGEST_SIZE]:
                os.utime(file)  # the least recently used files are evicted first
                return whole[DIGEST_SIZE:]
            file.unlink()
        except OSError:
            pass
        return None

    def put(self, key: str, value: bytes) -> None:
        """Write a program atomically."""
        if not is_safe():
            return
        try:
            handle, name = tempfile.mkstemp(suffix=".part", dir=self._path)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(DIGEST(value).digest() + value)
                os.replace(name, self._file(key))
            except OSError:
                os.unlink(name)
        except OSError:
            pass


class Contents(NamedTuple):
    """The number and total size of the programs in a folder."""

    programs: int
    size: int  # bytes


def contents(folder: str, limit: int | None = None) -> Contents:
    """Count a folder's programs, after evicting the least recently used ones above `limit` bytes."""
    found = []
    for file in [*Path(folder).glob("*.program"), *Path(folder).glob("*.part")]:
        try:
            found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        except OSError:  # another process has removed it
            continue
    found.sort(reverse=True)
    count = total = 0
    for _, size, file in found:
        if limit is not None and total + size > limit:
            file.unlink(missing_ok=True)
        else:
            count, total = count + 1, total + size
    return Contents(count, total)


def cache_dir(requested: str | None, environ: Mapping[str, str]) -> str | None:
    """The cache folder: `requested`, else JAX_COMPILATION_CACHE_DIR, else the user's cache folder.

    None if `requested` is `none` or JAX's cache is disabled.
    """
    if requested == "none" or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    home = environ.get("XDG_CACHE_HOME", "")
    home = home if os.path.isabs(home) else "~/.cache"  # XDG base directory specification
    given = requested or environ.get("JAX_COMPILATION_CACHE_DIR") or f"{home}/canon/jax-{jax.__version__}"
    return os.path.expanduser(given)


def prepare(folder: str | None) -> tuple[str | None, str | None]:
    """Make a cache folder usable by JAX -> (the folder, None for no cache; a note if it cannot be used)."""
    if JAX_CACHE is None:
        return None, folder and f"compiled programs are not cached: jax {jax.__version__} has no interface for it"
    JAX_CACHE.get_file_cache = _open_cache
    JAX_CACHE.reset_cache()
    if folder is not None and "://" not in folder:
        try:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            contents(folder, LIMIT)
        except OSError as error:
            note = f"compiled programs are not cached: {folder}: {error.strerror}; choose another folder by --cache=DIR"
            return None, note
    return folder, None


def jax_cache_module() -> Any:
    """JAX's cache module, or None if it lacks the functions that this file replaces."""
    try:
        from jax._src import compilation_cache as module
    except ImportError:
        return None
    return module if hasattr(module, "get_file_cache") and hasattr(module, "reset_cache") else None


JAX_CACHE = jax_cache_module()
_default_file_cache = JAX_CACHE and JAX_CACHE.get_file_cache


def _open_cache(path: str) -> Any:
    """The cache of a path, and the path. For a bucket it is JAX's own cache."""
    return _default_file_cache(path) if "://" in path else (ProgramCache(path), path)
