"""The first hour's failures, looked for before they happen."""

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data import embedded
from train.host import Host

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
ROOM = 5 * 2**30  # bytes free, below which checkpoints may not fit


def examine(host: Host) -> bool:
    """Print what a run needs and whether it is there -> True where nothing is wrong."""
    checks = (_python, _packages, _devices, _arithmetic, _data, _disk)
    verdicts = [check(host) for check in checks]
    for right, line in verdicts:
        host.say(f"{'ok   ' if right else 'WRONG'}  {line}")
    wrong = sum(not right for right, _ in verdicts)
    host.say("", "all is well" if not wrong else f"{wrong} thing(s) to mend")
    return not wrong


def _python(host: Host) -> tuple[bool, str]:
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return right, f"python {platform.python_version()}" + ("" if right else "; Canon is tested on 3.11 to 3.13")


def _packages(host: Host) -> tuple[bool, str]:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    lack = f"; missing: {', '.join(missing)}: pip install -r requirements.txt" if missing else ""
    return not missing, ", ".join(found) + lack


def _devices(host: Host) -> tuple[bool, str]:
    devices = jax.devices()
    line = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {jax.process_count()} process(es)"
    accelerators = [p.name for p in Path("/dev").glob("nvidia[0-9]*")] + [p.name for p in Path("/dev").glob("accel*")]
    if accelerators and devices[0].platform == "cpu":
        return False, f"{line}, but this machine has {', '.join(accelerators)}: pip install 'jax[cuda13]' or 'jax[tpu]'"
    return True, line


def _arithmetic(host: Host) -> tuple[bool, str]:
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    error = float(np.abs(np.asarray(jnp.matmul(x, x, precision="highest")) - x @ x).max())
    return error < 1e-3, f"a matrix product on the device differs from numpy's by {error:.1e}"


def _data(host: Host) -> tuple[bool, str]:
    folder = Path(host.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    at_hand = f"embedded: {', '.join(embedded.EMBEDDED)}"
    if not folder.is_dir():
        if "TFDS_DATA_DIR" in host.environ:
            return False, f"TFDS_DATA_DIR names {folder}, which is no folder; {at_hand}"
        return True, f"{at_hand}; no TFDS folder at {folder} (set TFDS_DATA_DIR to one with prepared sets)"
    return True, f"{at_hand}; TFDS in {folder}: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_dir()))}"


def _disk(host: Host) -> tuple[bool, str]:
    free = shutil.disk_usage(".").free
    return free > ROOM, f"{free / 2**30:.1f} GiB free here" + ("" if free > ROOM else ": checkpoints may not fit")
