"""What a verb runs on: jax, set up as the flags say, and the Runtime of this process."""

import os
import re
import sys
import time
from typing import Any

from absl.flags import FlagValues

from cli import process
from train.runtime import ROOT, Runtime, find_revision


def make_runtime(**more: Any) -> Runtime:
    """The Runtime of this process; `more` are further fields, for a verb that handles signals."""
    terminal = process.Terminal(sys.stdout, optional=bool(more))
    return Runtime(time.time, os.environ, terminal, revision=find_revision(), monotonic=time.monotonic, **more)


def version() -> str:
    """The versions of Canon and jax, and the commit, in one line."""
    import jax

    ours = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    return f"Canon {ours[1] if ours else ''}, commit {find_revision() or 'unknown'}, jax {jax.__version__}"


def start_jax(args: FlagValues) -> None:
    """Import jax with the cache of --cache and the devices of --cpu_devices."""
    process.keep_memory(os.environ)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    _silence_libraries()
    from train import compilation_cache

    if note := enable_cache(compilation_cache.cache_dir(args.cache, os.environ)):
        print(note, file=sys.stderr)
    if args.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.cpu_devices)


def enable_cache(folder: str | None) -> str | None:
    """Cache this process's compiled programs in a folder (None: nowhere) -> a note if that fails, else None."""
    import jax

    from train import compilation_cache

    usable, note = compilation_cache.prepare(folder)
    jax.config.update("jax_compilation_cache_dir", usable)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return note


def _silence_libraries() -> None:
    """Silence the libraries' log messages; Canon prints what a user needs."""
    import logging
    import warnings

    from absl import logging as absl_logging

    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs the errors that it raises, with tracebacks
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="orbax|tensorflow_datasets|google|PIL")
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")  # from Orbax, after a failed save
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:  # TensorStore reports arrays that outlive a failed save or restore
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = hook
