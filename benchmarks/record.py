"""What a benchmark leaves: its rows as JSON, with the device, the versions and the commit that gave them."""

import importlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax


def write(out: str, packages: tuple[str, ...], **found: Any) -> Path:
    """Write what was found, and by which versions of packages, to a file whose folder is made -> the file."""
    versions = {name.lower(): importlib.import_module(name).__version__ for name in packages}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    told = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit.stdout.strip(),
    }
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**told, **found}, indent=1) + "\n")
    return path
