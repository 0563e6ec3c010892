"""Killed at any moment, on one process or two, a run ends as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.processes import free_port, run_together
from train import checkpoint

pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, "launch.py"]
RUN = [
    *("--config=configs/gpt.py:quick+dropout", "--config.log.table=false", "--config.train.steps=120"),
    *("--config.model.width=32", "--config.model.depth=1", "--config.model.context=32", "--config.train.batch=16"),
    *("--config.train.accumulate=2", "--config.checkpoint.every=2", "--config.eval.limit=1", "--config.eval.every=40"),
]


def finish(workdir: Path) -> dict:
    done = subprocess.run([*PROGRAM, "train", f"--workdir={workdir}", *RUN], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkpoint.steps(str(workdir))[-1] == 120
    return checkpoint.load_manifest(str(workdir), 120)


def test_five_kills_end_bit_equal_with_the_straight_run(tmp_path: Path) -> None:
    straight = finish(tmp_path / "straight")
    draw, killed, reached = random.Random(0), 0, []
    workdir = tmp_path / "killed"
    while killed < 5:
        process = subprocess.Popen(
            [*PROGRAM, "train", f"--workdir={workdir}", *RUN],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        newest = (checkpoint.steps(str(workdir)) or [0])[-1]
        while process.poll() is None and (checkpoint.steps(str(workdir)) or [0])[-1] <= newest:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.3)  # the saves of the updates that follow are under way
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
        reached.append((checkpoint.steps(str(workdir)) or [0])[-1])
    assert killed == 5, f"the run ended before it was killed five times; checkpoints reached: {reached}"
    ended = finish(workdir)
    assert ended["state"] == straight["state"]
    assert ended["metrics"] == straight["metrics"]


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_saves_and_a_second_ends_at_once(count: int, tmp_path: Path) -> None:
    """The first exits with 4 and says how to continue; the second does not wait for an evaluation or a save."""
    command = [*PROGRAM, "train", f"--workdir={tmp_path}/w", *RUN, "--config.train.steps=50000", "--config.log.every=5"]
    pipes: dict = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen([*command, "--config.checkpoint.every=None", "--config.eval.every=None"], **pipes)
    try:
        assert any(line.startswith("step 10/") for line in process.stdout)
        for _ in range(count):
            process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert "Traceback" not in output
    if count == 1:
        assert process.returncode == 4, output
        assert "SIGINT: saved; run the same command again" in output
        assert len(checkpoint.steps(str(tmp_path / "w"))) == 1
    else:
        assert process.returncode in (1, 4), output


def test_a_signal_to_one_process_saves_on_all(tmp_path: Path) -> None:
    """They agree on where to stop, save together, and end alike."""
    settings = [*RUN, "--config.train.steps=5000", "--config.checkpoint.every=None", "--config.eval.every=None"]
    settings += ["--config.log.every=5", "--config.mesh=dp:2,fsdp:2,tp:2", f"--coordinator=localhost:{free_port()}"]
    command = [*PROGRAM, "train", f"--workdir={tmp_path}/w", *settings, "--num_processes=2", "--cpu_devices=4"]
    pipes: dict = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    both = [subprocess.Popen([*command, f"--process_id={i}"], **pipes) for i in range(2)]
    try:
        assert any(line.startswith("step 10/") for line in both[0].stdout)
        both[1].send_signal(signal.SIGTERM)
        outputs = [p.communicate(timeout=120)[0] for p in both]
    finally:
        for p in both:
            p.kill()
    assert [p.returncode for p in both] == [4, 4], outputs
    assert "run the same command again" in outputs[0]
    (saved,) = checkpoint.steps(str(tmp_path / "w"))
    assert saved % 5 == 0
    assert 10 < saved < 5000


def numbers(output: str) -> list[float]:
    """The metrics that `eval` printed."""
    line = next(row for row in output.splitlines() if row.startswith("checkpoint "))
    return [float(word) for word in line.replace(",", "").split() if word.replace(".", "", 1).isdigit() and "." in word]


def test_two_processes_train_and_any_device_count_restores(tmp_path: Path) -> None:
    where = f"--coordinator=localhost:{free_port()}"
    workdir = tmp_path / "two"
    settings = [*RUN, "--config.train.steps=6", "--config.mesh=dp:2,fsdp:2,tp:2", "--config.eval.limit=None"]
    settings += ["--config.checkpoint.every=3", "--config.schedule.warmup=2"]
    command = [*PROGRAM, "train", f"--workdir={workdir}", *settings, where, "--num_processes=2", "--cpu_devices=4"]
    run_together([*command, "--process_id=0"], [*command, "--process_id=1"])
    assert checkpoint.steps(str(workdir)) == [3, 6]
    found = []
    for devices in (8, 1):  # each restore verifies every digest, so the parameters are bit-equal
        output = run_together([*PROGRAM, "eval", f"--workdir={workdir}@6", f"--cpu_devices={devices}"])[0]
        found.append(numbers(output))
    logged = checkpoint.load_manifest(str(workdir), 6)["metrics"]
    assert found[0] == found[1]
    assert round(logged["loss"], 4) == found[0][0]
    # and the two processes go on where they were
    where = f"--coordinator=localhost:{free_port()}"
    longer = ["--config.train.steps=8", "--config.resume=extend"]
    command = [
        *PROGRAM,
        "train",
        f"--workdir={workdir}",
        *settings,
        *longer,
        where,
        "--num_processes=2",
        "--cpu_devices=4",
    ]
    run_together([*command, "--process_id=0"], [*command, "--process_id=1"])
    assert checkpoint.steps(str(workdir))[-1] == 8
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 8
