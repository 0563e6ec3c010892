"""A run is a function of its config: the same bits on any devices, processes, mesh and accumulation."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.probe_invariance import STRATEGIES

ROOT = Path(__file__).parent.parent


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


def probe(processes: int, here: int, *meshes: str) -> list[list[str]]:
    """The commands that print the digests of some meshes, a command a process."""
    program = [sys.executable, "-m", "tests.probe_invariance", f"localhost:{free_port()}", str(processes)]
    return [[*program, str(i), str(here), *meshes] for i in range(processes)]


def digests(output: str) -> dict[str, Any]:
    """By mesh what a probe found."""
    return json.loads(output.split("DIGESTS ")[1].splitlines()[0])


def same(found: dict[str, Any], want: dict[str, Any]) -> None:
    assert want["masks of 1"] == want["masks of 4"]
    assert want["masks of 1"][0] != want["masks of 1"][1]
    for mesh, one in found.items():
        assert {"text 7", "images 7", "weights", "masks of 1"} <= one.keys()
        for name, value in one.items():
            assert value == want[name], f"{name} on {mesh}"


@pytest.mark.parametrize(
    "meshes",
    [
        ("tp:2",),
        *(
            pytest.param(meshes, marks=pytest.mark.slow)
            for meshes in (("dp:2", "dp:4", "dp:8"), ("fsdp:2", "fsdp:4", "fsdp:8"), ("tp:4", "tp:8"))
        ),
    ],
)
def test_one_process(meshes: tuple[str, ...]) -> None:
    found = digests(together(*probe(1, 8, "dp:1", *meshes))[0])
    assert set(found) == {"dp:1", *meshes}
    same(found, found["dp:1"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("here", [1, 2, 4])
def test_two_processes(here: int, strategy: str) -> None:
    meshes = [f"{strategy}:{2 * here}"]
    alone, both, _ = together(*probe(1, 8, "dp:1"), *probe(2, here, *meshes))
    assert set(digests(both)) == set(meshes)
    same(digests(both), digests(alone)["dp:1"])
