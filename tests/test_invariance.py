"""A run is a function of its config: the same bits on any devices, processes, mesh and accumulation."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.probe_invariance import STRATEGIES, digests

ROOT = Path(__file__).parent.parent


@functools.cache
def reference() -> dict[str, Any]:
    return digests("dp:1", (1, 4), jax.devices()[:1])


def same_as_reference(found: dict[str, Any]) -> None:
    want = reference()
    assert want["masks of 1"] == want["masks of 4"]
    assert want["masks of 1"][0] != want["masks of 1"][1]
    for name, value in found.items():
        assert value == want[name], name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_one_process(count: int, strategy: str) -> None:
    found = digests(f"{strategy}:{count}", (1, 4), jax.devices()[:count])
    assert {"text 7", "images 7", "weights", "masks of 1", "masks of 4"} <= found.keys()
    same_as_reference(found)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def together(*commands: list[str], timeout: float = 300) -> list[str]:
    """Run processes at once -> their outputs. Fails with all outputs where one fails."""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(c, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
        for c in commands
    ]
    try:
        outputs = [p.communicate(timeout=timeout)[0] for p in running]
    finally:
        for p in running:
            p.kill()
    assert all(p.returncode == 0 for p in running), "\n".join(outputs)
    return outputs


@pytest.mark.parametrize("here", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 4])
def test_two_processes(here: int) -> None:
    where = f"localhost:{free_port()}"
    program = [sys.executable, "-m", "tests.probe_invariance", where, "2"]
    output = together(*([*program, str(i), str(here)] for i in range(2)))[0]
    found = json.loads(output.split("DIGESTS ")[1].splitlines()[0])
    assert set(found) == set(STRATEGIES)
    for digest in found.values():
        same_as_reference(digest)
