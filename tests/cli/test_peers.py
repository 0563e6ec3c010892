"""Processes that train together: what they compare, and how they hear of each other's end."""

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cli import peers
from cli.peers import Peers
from errors import UsageError
from tests.support import ROOT, image_folders
from tests.support.processes import free_port, run_together
from train import checkpoint, together
from train.runtime import Runtime

Stops = queue.SimpleQueue[tuple[int, str, int]]


def run_all(
    count: int, body: Callable[[Peers, Stops], Any], address: str | None = None
) -> tuple[dict[int, Any], list[tuple[int, str, int]]]:
    """Run a body with each of so many processes, here threads -> what each returned or raised, and the stops."""
    address, found, stops = address or f"localhost:{free_port()}", {}, queue.SimpleQueue()

    def one(index: int) -> None:
        own = Peers(address, count, index, lambda text, code: stops.put((index, text, code)))
        try:
            own.meet(lambda line: None, wait=20)
            found[index] = body(own, stops)
        except Exception as error:
            found[index] = error
        finally:
            own.close()

    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found, sorted(stops.get() for _ in range(stops.qsize()))


def wait_for(count: int, stops: Stops) -> None:
    """Return when so many processes were stopped."""
    for _ in range(2000):
        if stops.qsize() >= count:
            return
        time.sleep(0.01)


def test_alike_they_go_on_and_finish_together() -> None:
    def body(own: Peers, stops: Stops) -> str:
        own.agree({"optim.lr": 0.1, "data.size": (8, 8), "nan": float("nan")})
        own.agree({})
        own.finish()
        return own.coordinator

    found, stops = run_all(3, body)
    assert found[0] == found[1] == found[2]
    assert found[0].startswith("localhost:")
    assert not stops


def test_what_differs_is_said_in_all() -> None:
    """Key and values by process, in every process; a knob that one lacks is None there."""
    facts = [{"seed": 1, "train.steps": 9}, {"seed": 1, "train.steps": 9}, {"seed": 2, "train.steps": 9, "x": 3}]
    found, _ = run_all(3, lambda own, stops: own.agree(facts[own.index]))
    assert {type(error) for error in found.values()} == {UsageError}
    assert len({str(error) for error in found.values()}) == 1
    assert "process 0 has seed=1, process 2 has 2; process 0 has x=None, process 2 has 3" in str(found[0])


def test_a_flag_of_one_is_seen_by_all() -> None:
    found, _ = run_all(3, lambda own, stops: [own.any_process(own.index == n) for n in (2, 5, 0)])
    assert found == {i: [True, False, True] for i in range(3)}
    alone = Peers("", 1, 0, lambda text, code: None)
    alone.agree({"x": 1})
    assert [alone.any_process(flag) for flag in (True, False)] == [True, False]


def test_none_begins_an_update_for_which_another_has_no_batch() -> None:
    """Who cannot read raises why; the others end before the same update."""

    def read(index: int) -> Iterator[Any]:
        yield from ("first", "second")
        if index == 1:
            raise OSError("b.png")
        yield "third"

    def body(own: Peers, stops: Stops) -> Any:
        runtime, got = Runtime(lambda: 0.0, {}, None, any_process=own.any_process), []
        lockstep = together.Lockstep(runtime)
        try:
            for batch in lockstep.batches(read(own.index)):
                got.append(batch)
        except Exception as error:
            return got, type(error), lockstep.all_failed
        return got

    found, _ = run_all(3, body)
    own, other = (["first", "second"], OSError, True), (["first", "second"], together.OtherProcessFailed, True)
    assert found == {0: other, 1: own, 2: other}


def test_many_and_long_differences_are_cut() -> None:
    text = peers.describe_difference({0: {str(i): 0 for i in range(9)}, 1: {str(i): "y" * 999 for i in range(9)}})
    assert text
    assert "and 6 more" in text
    assert len(text) < 600


@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_fails_is_heard(who: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own line reaches all the others, with its exit code."""
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.05)

    def body(own: Peers, stops: Stops) -> None:
        if own.index == who:
            own.report_failure("--config.seed=x is none", 2, doubtful=False)
        wait_for(2, stops)

    text = f"process {who} of 3 has failed: --config.seed=x is none"
    assert run_all(3, body)[1] == [(i, text, 2) for i in range(3) if i != who]


def test_all_failing_of_the_same_each_says_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GRACE_SECONDS", 20)

    def body(own: Peers, stops: Stops) -> None:
        own.report_failure("no data", 2, doubtful=False)
        time.sleep(0.5)

    assert not run_all(2, body)[1]


@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_is_killed_is_noticed(who: int) -> None:
    """Its connections close without a word."""

    def body(own: Peers, stops: Stops) -> None:
        if own.index == who:
            own.close()
        else:
            wait_for(1, stops)

    [(index, text, code)] = run_all(2, body)[1]
    assert (index, code) == (1 - who, 1)
    assert f"process {who} of 2 does not answer" in text


@pytest.mark.parametrize("index", [0, 1])
def test_alone_it_says_whom_it_waits_for(index: int) -> None:
    said: list[str] = []
    address = f"localhost:{free_port()}"
    with pytest.raises(RuntimeError, match=r"absent: 1$" if index == 0 else "process 0, which is not at"):
        Peers(address, 2, index, lambda text, code: None).meet(said.append, wait=0.3)
    assert len(said) == 1
    assert address in said[0]
    assert "waits for" in said[0]


@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_ends_the_waiting(index: int) -> None:
    own = Peers(f"localhost:{free_port()}", 2, index, lambda text, code: None)
    with pytest.raises(RuntimeError, match="SIGTERM while waiting"):
        own.meet(lambda line: None, signals=lambda: "SIGTERM")


def test_a_stranger_is_sent_away() -> None:
    address = f"localhost:{free_port()}"

    def call() -> None:
        for _ in range(100):
            try:
                socket.create_connection(peers.parse_address(address), timeout=1).sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            except OSError:
                time.sleep(0.02)

    threading.Thread(target=call, daemon=True).start()

    def body(own: Peers, stops: Stops) -> int:
        own.finish()
        return own.index

    assert run_all(2, body, address)[0] == {0: 0, 1: 1}


@pytest.mark.parametrize("address", ["localhost", ":9000", "localhost:0", "localhost:x", "localhost:99999"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        peers.parse_address(address)


def test_a_port_that_is_taken_is_named() -> None:
    with peers.open_server(0) as server, pytest.raises(UsageError, match="cannot listen at port"):
        Peers(f"localhost:{server.getsockname()[1]}", 2, 0, lambda text, code: None).meet(lambda line: None)


def test_another_count_is_refused_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.05)
    address, found = f"localhost:{free_port()}", {}

    def one(index: int, count: int) -> None:
        own = Peers(address, count, index, lambda text, code: found.update({index: text}))
        try:
            own.meet(lambda line: None, wait=1)
        except (UsageError, RuntimeError) as error:
            found.setdefault(index, str(error))

    threads = [threading.Thread(target=one, args=(i, 2 + i)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert all("process 0 has --num_processes=2, process 1 has --num_processes=3" in found[i] for i in range(2))


# From the command line

RUN = [
    *("train", "--config=configs/mlp.py:digits", "--config.log.table=false", "--config.mesh=dp:4", "--cpu_devices=2"),
    *("--num_processes=2", "--config.train.steps=100000", "--config.eval.every=None", "--config.checkpoint.every=20"),
]


def start(*more: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Two processes of a run, each with flags of its own."""
    address = f"--coordinator=localhost:{free_port()}"
    pipes: dict[str, Any] = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [sys.executable, "launch.py", *RUN, address]
    return [subprocess.Popen([*command, f"--process_id={i}", *own], **pipes) for i, own in enumerate(more)]


@pytest.mark.slow
def test_two_commands_that_differ_train_nothing(tmp_path: Path) -> None:
    """A knob, or the folder: one line in each, exit code 2, no checkpoint."""
    one, other = f"--workdir={tmp_path}/a", f"--workdir={tmp_path}/b"
    for flags, says in (
        (((one, "--config.optim.lr=0.1"), (one, "--config.optim.lr=0.2")), "optim.lr=0.1, process 1 has 0.2"),
        (((one,), (other,)), "is not the same folder for all processes"),
    ):
        both = start(*flags)
        outputs = [p.communicate(timeout=120)[0] for p in both]
        assert [p.returncode for p in both] == [2, 2], outputs
        assert all(says in output.splitlines()[-1] for output in outputs), outputs
    assert not list(tmp_path.rglob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_the_survivor_of_a_kill_says_what_happened(who: int, tmp_path: Path) -> None:
    """At once, with exit code 1 and no stack of jax; both go on from what was saved."""
    both = start(*[(f"--workdir={tmp_path}/w",)] * 2)
    try:
        assert any(line.startswith("step 50/") for line in both[0].stdout or ())
        both[who].kill()
        output = both[1 - who].communicate(timeout=60)[0]
    finally:
        for p in both:
            p.kill()
    assert both[1 - who].returncode == 1
    said = next(line for line in output.splitlines() if line.startswith("launch.py train: "))  # jax may write too
    assert f"process {who} of 2 does not answer any more" in said
    assert f"{tmp_path}/w; start all processes again" in said
    assert "Check failure stack trace" not in output
    address = f"--coordinator=localhost:{free_port()}"
    command = [sys.executable, "launch.py", *RUN, address, f"--workdir={tmp_path}/w"]
    more = ["--config.train.steps=60", "--config.resume=extend"]
    said = run_together(*[[*command, *more, f"--process_id={i}"] for i in range(2)])[0]
    assert "resuming" in said or "is complete" in said


@pytest.mark.slow
def test_what_one_cannot_read_ends_all_with_what_was_learnt(tmp_path: Path) -> None:
    """The update before is saved by all together; each has one line, and the run goes on once the file is mended."""
    for split in ("train", "test"):
        image_folders.classes(tmp_path / "images" / split)
    spoilt = tmp_path / "images" / "train" / "cat" / "03.png"
    whole = spoilt.read_bytes()
    flags = [f"--workdir={tmp_path}/w", f"--config.data.name={tmp_path}/images", "--config.data.size=8"]
    flags += ["--config.train.batch=8", "--config.checkpoint.every=1000"]
    both = start(flags, flags)
    try:
        assert any(line.startswith("step 50/") for line in both[0].stdout or ())
        spoilt.write_text("no image")
        outputs = [p.communicate(timeout=60)[0] for p in both]
    finally:
        for p in both:
            p.kill()
    assert [p.returncode for p in both] == [2, 2], outputs
    assert all(f"{spoilt} cannot be read as an image" in output.splitlines()[-1] for output in outputs), outputs
    assert sum("of 2 has failed: " in output for output in outputs) == 1
    (saved,) = checkpoint.steps(f"{tmp_path}/w")
    assert f"saved checkpoint {saved}, before the error" in outputs[0]
    spoilt.write_bytes(whole)
    both = start(*[[*flags, f"--config.train.steps={saved + 1}", "--config.resume=extend"]] * 2)
    outputs = [p.communicate(timeout=60)[0] for p in both]
    assert f"from checkpoint {saved}" in outputs[0]
    assert [p.returncode for p in both] == [0, 0], outputs
