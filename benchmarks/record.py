"""Results of benchmarks as JSON, with the device, the versions and the commit."""

import importlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax


def write(out: str, packages: tuple[str, ...], **results: Any) -> Path:
    """Write results, and the versions of packages, to a JSON file, making its folder -> the file's path."""
    versions = {name.lower(): importlib.import_module(name).__version__ for name in packages}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    environment = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit.stdout.strip(),
    }
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment, **results}, indent=1) + "\n")
    return path
