"""Checks of the environment and of data sets, to find common problems before a run."""

import importlib.metadata
import platform
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data import sources
from data.files import expand_home, list_files
from data.images import decode
from data.sources import builtin, intact, multiple_choice, tfds
from errors import UsageError
from train import compilation_cache
from train.record.ticker import Ticker
from train.runtime import Runtime

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
MIN_FREE = 5 * 2**30  # free bytes below which checkpoints may not fit


def check_machine(runtime: Runtime) -> bool:
    """Check Python, packages, devices, data folder, disk and cache, and print the results -> True if all are well."""
    checks = (_python, _packages, _devices, _arithmetic, _data, _disk, _programs)
    verdicts = [check(runtime) for check in checks]
    for right, line in verdicts:
        runtime.say(f"{'ok   ' if right else 'WRONG'}  {line}")
    wrong = sum(not right for right, _ in verdicts)
    runtime.say("", "no problems found" if not wrong else f"{wrong} problem(s) found")
    return not wrong


def check_data(runtime: Runtime, names: str, field: str | None = None) -> bool:
    """Read data sets completely and print every problem -> True if there is none.

    `names` and `field` are values of data.name and data.field. Raises UsageError for an unknown name.
    """
    wrong = [line for name in sources.split_names(names) for line in _find_problems(runtime, expand_home(name), field)]
    wrong = list(dict.fromkeys(wrong))
    runtime.say(
        *(f"WRONG  {line}" for line in wrong), "", f"{len(wrong):,} problem(s) found" if wrong else "no problems found"
    )
    return not wrong


def _find_problems(runtime: Runtime, name: str, field: str | None) -> list[str]:
    """Read a data set completely -> one line for each problem."""
    data_dir, tick, wrong = runtime.environ.get("TFDS_DATA_DIR"), Ticker(runtime), list[str]()
    try:
        if multiple_choice.has_questions(name, data_dir):
            splits = ("test",) if multiple_choice.is_question_file(name) else sources.splits_of(name, data_dir)
            read = {split: len(multiple_choice.load(name, split, data_dir)) for split in splits}
            runtime.say(*(f"ok     {split}: {count:,} questions read" for split, count in read.items()))
            return []
    except UsageError as error:
        return [str(error)]
    for split in sources.splits_of(name, data_dir, field) or ("train",):  # () of a function without `splits`
        try:
            source = sources.load(name, split, field=field, data_dir=data_dir, tick=tick)
        except UsageError as error:  # it reports the first problem only
            wrong.append(str(error))
            continue
        refused = intact.row_errors(source, what=f"reading {split}", tick=tick)
        wrong += refused
        count = f"{len(refused):,} of {len(source):,} cannot be" if refused else f"{len(source):,}"
        runtime.say(
            f"{'WRONG' if refused else 'ok   '}  {split}: {count} read", *(f"       {note}" for note in source.notes)
        )
    if wrong and Path(name).is_dir():
        files = list_files(name, decode.EXTENSIONS)
        wrong = intact.read_errors(lambda file: decode.decode(file, str(file)), files, "reading", tick) + wrong
    return wrong


def _python(runtime: Runtime) -> tuple[bool, str]:
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return right, f"python {platform.python_version()}" + ("" if right else "; Canon is tested on 3.11 to 3.13")


def _packages(runtime: Runtime) -> tuple[bool, str]:
    found, wrong = [], []
    for name, least in _requirements():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if name in PACKAGES:
            found.append(f"{name} {version}")
        if _version_numbers(version) < _version_numbers(least):
            wrong.append(f"{name} {version} is below {least}")
    lack = f"; {', '.join(wrong)}: pip install -r requirements.txt" if wrong else ""
    return not wrong, ", ".join(found) + lack


def _requirements() -> list[tuple[str, str]]:
    """The packages of requirements.txt with their minimum versions."""
    lines = (Path(__file__).parents[2] / "requirements.txt").read_text().splitlines()
    pairs = (line.split("#")[0].partition(">=") for line in lines)
    return [(name.strip(), least.strip()) for name, _, least in pairs if name.strip()]


def _version_numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)[:3]]


def _devices(runtime: Runtime) -> tuple[bool, str]:
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        chosen = runtime.environ.get("JAX_PLATFORMS")
        why = f"JAX_PLATFORMS={chosen}" if chosen else "no JAX_PLATFORMS is set"
        return False, f"jax finds no device ({why}): {(str(error) or type(error).__name__).splitlines()[0]}"
    line = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {jax.process_count()} process(es)"
    accelerators = [p.name for p in Path("/dev").glob("nvidia[0-9]*")] + [p.name for p in Path("/dev").glob("accel*")]
    if accelerators and devices[0].platform == "cpu":
        return False, f"{line}, but this machine has {', '.join(accelerators)}: pip install 'jax[cuda13]' or 'jax[tpu]'"
    return True, line


def _arithmetic(runtime: Runtime) -> tuple[bool, str]:
    if not _devices(runtime)[0]:
        return False, "no device for a matrix product"
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    error = float(np.abs(np.asarray(jnp.matmul(x, x, precision="highest")) - x @ x).max())
    return error < 1e-3, f"a matrix product on the device differs from numpy's by {error:.1e}"


def _data(runtime: Runtime) -> tuple[bool, str]:
    given = runtime.environ.get("TFDS_DATA_DIR")
    folder = Path(given or Path.home() / "tensorflow_datasets")
    where = f"embedded: {', '.join(builtin.BUILTIN)}; TFDS_DATA_DIR is {given or 'not set'}"
    if not folder.is_dir():
        return not given, f"{where}, {'which' if given else folder} does not exist"
    found = ", ".join(tfds.list_prepared(str(folder)))
    return True, f"{where}, {'which' if given else folder} has {found or 'no prepared data set'}"


def _disk(runtime: Runtime) -> tuple[bool, str]:
    free = shutil.disk_usage(".").free
    return free > MIN_FREE, f"{free / 2**30:.1f} GiB free here" + (
        "" if free > MIN_FREE else ": checkpoints may not fit"
    )


def _programs(runtime: Runtime) -> tuple[bool, str]:
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder:
        return True, "compiled programs are not cached: each process compiles again (--cache=DIR caches them)"
    if "://" in folder:
        return True, f"compiled programs are cached in {folder}"
    held = compilation_cache.contents(folder)
    size, limit = f"{held.size / 2**20:.1f} MiB", f"{compilation_cache.LIMIT / 2**30:.0f} GiB"
    return True, f"{held.programs:,} compiled program(s), {size}, in {folder} (at most {limit})"
