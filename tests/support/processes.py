"""Processes of their own, which tests start together."""

import os
import socket
import subprocess

from tests.support import ROOT


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def run_together(*commands: list[str], timeout: float = 300) -> list[str]:
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
