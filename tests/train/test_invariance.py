"""A run is a function of its config: the same bits on any devices, processes, mesh and accumulation."""

import json
import sys
from functools import cache
from typing import Any

import pytest

from tests.support.probe_invariance import STRATEGIES
from tests.support.processes import free_port, run_together


def probe(processes: int, here: int, *meshes: str) -> list[list[str]]:
    """The commands that print the digests of some meshes, a command a process."""
    program = [sys.executable, "-m", "tests.support.probe_invariance", f"localhost:{free_port()}", str(processes)]
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


FEW = ("dp:8", "fsdp:4", "tp:2", "tp:8")  # every strategy, and every number of devices


@cache
def alone() -> dict[str, dict[str, Any]]:
    """The digests of one process on one device, which all others must equal, and on a few meshes."""
    return digests(run_together(*probe(1, 8, "dp:1", *FEW))[0])


@pytest.mark.slow
def test_one_process() -> None:
    assert set(alone()) == {"dp:1", *FEW}
    same(alone(), alone()["dp:1"])


@pytest.mark.weekly
def test_one_process_on_every_mesh() -> None:
    meshes = [f"{strategy}:{n}" for strategy in STRATEGIES for n in (2, 4, 8) if f"{strategy}:{n}" not in FEW]
    found = digests(run_together(*probe(1, 8, *meshes))[0])
    assert set(found) == set(meshes)
    same(found, alone()["dp:1"])


@pytest.mark.parametrize(
    "here", [pytest.param(n, marks=pytest.mark.slow if n == 4 else pytest.mark.weekly) for n in (1, 2, 4)]
)
def test_two_processes(here: int) -> None:
    """Two of so many devices each, by every strategy: the first prints what both found."""
    meshes = [f"{strategy}:{2 * here}" for strategy in STRATEGIES]
    first, _ = run_together(*probe(2, here, *meshes))
    found = digests(first)
    assert set(found) == set(meshes)
    same(found, alone()["dp:1"])
