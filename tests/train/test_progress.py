"""What a user sees while something is under way: the first lines of a run, how far it is, how fast."""

import io
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.eval_set import EvalSet, from_texts
from data.progress import track
from data.text import packing
from data.text.tokenizers import ByteTokenizer
from data.types import Texts
from train import loop
from train.evaluate import evaluate
from train.record import metrics, speed
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.sharding import mesh


class Clock:
    """A clock that moves when it is pushed."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


class Kept(metrics.NullRecorder):
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def write(self, kind: str, step: int, metrics: dict[str, float], **more: Any) -> None:
        self.lines.append((step, metrics))


def ran(start: int, stop: int, devices: Any = (), cost: int = 0) -> tuple[list[str], Kept]:
    """The lines and the record of updates of 2 s each, for which the data let wait 1 s, the first compiled in 8 s."""
    clock, out, kept = Clock(), io.StringIO(), Kept()
    runtime = Runtime(clock, {}, out, monotonic=clock)
    progress = loop.Progress(runtime, kept, 10, 30, lambda n: 4, 0, 5, True, cost, devices)

    def batches() -> Any:
        while True:
            clock.now += 1
            yield None

    first = True

    def update(state: Any, batch: Any) -> Any:
        nonlocal first
        clock.now, first = clock.now + (8 if first else 1), False
        return state, {"loss": jnp.float32(1.5), "skipped": jnp.float32(0)}

    hooks = SimpleNamespace(**dict.fromkeys(("stop_signal", "measure", "save", "rescue"), lambda *args: None))
    span = loop.Span(start, stop, None, None)
    loop.run({}, Ticker(runtime).report_compile(update), batches(), progress, hooks, span)
    return out.getvalue().splitlines(), kept


def test_a_run_says_that_it_compiles_and_shows_its_first_update() -> None:
    lines, kept = ran(0, 30)
    assert lines[:3] == ["compiling …", "compiled in 8.0 s", "step 1/30  loss 1.5000"]
    assert [line.split()[1] for line in lines[3:]] == ["10/30", "20/30", "30/30"]
    assert [step for step, _ in kept.lines] == [1, 10, 20, 30]


def test_a_resumed_run_shows_its_first_update_and_records_as_one_that_was_not() -> None:
    lines, kept = ran(15, 30)
    assert [line.split()[1] for line in lines[2:]] == ["16/30", "20/30", "30/30"]
    assert [step for step, _ in kept.lines] == [20, 30]


def test_speed_memory_and_wait_are_measured() -> None:
    """In the record and, short, in the line; each has a unit."""
    device = SimpleNamespace(
        device_kind="NVIDIA H200", process_index=0, memory_stats=lambda: {"peak_bytes_in_use": 3_000_000_000}
    )
    lines, kept = ran(0, 30, (device, device), cost=4 * 10**14)
    last = kept.lines[2][1]
    assert last["flops_per_second"] == pytest.approx(2e14)
    assert last["mfu"] == pytest.approx(2e14 / (2 * 989e12))
    assert last["memory_peak"] == 3e9
    assert last["data_wait"] == pytest.approx(0.5)
    assert "  2 examples/s  MFU 10.1%  memory 3 GB  waits for data 50%  ETA" in lines[4]
    assert set(last) <= set(metrics.UNITS)
    unknown = SimpleNamespace(device_kind="cpu", process_index=0, memory_stats=lambda: None)
    lines, kept = ran(0, 30, (unknown,), cost=4 * 10**9)
    assert "  2 GFLOP/s  waits" in lines[4]
    assert not {"mfu", "memory_peak"} & set(kept.lines[2][1])


def test_peaks_are_of_the_device_that_is_meant() -> None:
    assert speed.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert speed.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert speed.peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert (speed.peak_flops("TPU v5"), speed.peak_flops("TPU v5 lite"), speed.peak_flops("NVIDIA H100 NVL")) == (
        None,
        197e12,
        None,
    )
    for kind in ("cpu", "NVIDIA L40S", "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert speed.peak_flops(kind) is None


def shown(out: io.StringIO, seconds: float, count: int) -> str:
    """What a ticker writes on so many items of so many seconds each."""
    clock = Clock()
    ticker = Ticker(Runtime(clock, {}, out, monotonic=clock))
    for _ in track(range(count), "tokenising", ticker):
        clock.now += seconds
    return out.getvalue()


def test_what_is_quick_is_silent() -> None:
    assert shown(io.StringIO(), 0.01, 190) == ""
    assert "tokenising" not in shown(Terminal(), 0.01, 190)


def test_a_line_every_ten_seconds_with_what_is_left() -> None:
    assert shown(io.StringIO(), 1, 30).splitlines() == [
        "tokenising: 2 of 30, 28s left",
        "tokenising: 12 of 30, 18s left",
        "tokenising: 22 of 30, 8s left",
    ]


def test_what_is_left_is_not_judged_by_the_first() -> None:
    """It may have been compiled."""
    clock, out = Clock(), io.StringIO()
    for i in track(range(5), "evaluating", Ticker(Runtime(clock, {}, out, monotonic=clock))):
        clock.now += 20 if i == 0 else 1
    assert out.getvalue().splitlines() == ["evaluating: 2 of 5, 3s left"]


def test_a_live_line_leaves_nothing_on_a_terminal() -> None:
    text = shown(Terminal(), 1, 4)
    assert "\r\033[Ktokenising: 3 of 4, 1s left" in text
    assert text.endswith("\r\033[K")
    assert "\n" not in text


def test_what_follows_something_long_says_its_name() -> None:
    """It may take as long before its first part is done, as a BPE's merges after the reading of its text."""
    clock, out = Clock(), io.StringIO()
    ticker = Ticker(Runtime(clock, {}, out, monotonic=clock))
    for what in ("reading", "merging", "merging"):
        for _ in track(range(4), what, ticker):
            clock.now += 1
    assert [line.split(":")[0] for line in out.getvalue().splitlines()] == [
        "reading",
        "merging …",
        "merging",
        "merging",
    ]


def test_evaluations_and_tokenising_report() -> None:
    """Batches, up to the limit, and documents."""
    said: list[tuple[str, int, int]] = []
    note = lambda *what: said.append(what)  # noqa: E731
    place = mesh.make_placement(mesh.make_mesh("dp:1", jax.devices()[:1]), {})
    exam = EvalSet({"features": np.zeros((5, 3), np.float32)}, np.arange(5))
    ones = np.ones(2)
    for limit in (None, 2):
        evaluate.run_eval(lambda variables, batch: ({"loss": (ones, ones)}, {}), {}, exam, place, 2, limit, tick=note)
    assert [(done, total) for _, done, total in said] == [(0, 3), (1, 3), (2, 3), (3, 3), (0, 2), (1, 2), (2, 2)]
    said.clear()
    documents = Texts(("ab", "cd"), {"name": "t", "split": "train"})
    packing.token_stream(documents, ByteTokenizer(), note)
    from_texts(documents, ByteTokenizer(), 4, tick=note)
    assert said == [("tokenising documents", done, 2) for done in (0, 1, 2)] * 2


def test_a_first_result_is_awaited_on_a_terminal_only() -> None:
    for out, want in ((io.StringIO(), ""), (Terminal(), "\r\033[Kcompiling …\r\033[K")):
        assert list(Ticker(Runtime(Clock(), {}, out)).show_until_first(iter([1, 2, 3]))) == [1, 2, 3]
        assert out.getvalue() == want


# Updates that are skipped


def skipping(values: list[dict[str, float]], last: int = 100, most: int = 2, before: int = 0) -> loop.Progress:
    """Progress that has seen updates with these metrics."""
    progress = loop.Progress(
        Runtime(Clock(), {}, io.StringIO()), Kept(), 10, last, lambda n: 1, 0, most, consecutive_skipped=before
    )
    for n, one in enumerate(values, before + 1):
        given = {"loss": 1.0, "grad_norm": 1.0, "skipped": 1.0, **one}
        progress.add(n, {k: jnp.float32(v) for k, v in given.items()})
    progress.flush()
    return progress


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss": math.nan}, "the loss was not finite"),
        ({"grad_norm": math.inf}, "the gradient was not finite"),
        ({"loss": math.inf, "grad_norm": math.nan}, "loss and gradient were not finite"),
        ({}, "the optimizer step was not finite"),
    ],
)
def test_what_was_not_finite_is_said(values: dict[str, float], says: str) -> None:
    """Never of what is."""
    with pytest.raises(RuntimeError, match=f"updates 1 to 3 changed no parameter: {says} "):
        skipping([values] * 3)


def test_skipped_updates_are_counted_across_restarts() -> None:
    with pytest.raises(RuntimeError, match="updates 1 to 3 "):
        skipping([{}], before=2)
    assert skipping([{"skipped": 0.0}], before=2).consecutive_skipped == 0


@pytest.mark.parametrize("last", [1, 2])
def test_a_run_that_made_no_update_is_not_done(last: int) -> None:
    with pytest.raises(RuntimeError, match="changed no parameter"):
        skipping([{}] * last, last=last, most=10)
    skipping([{"skipped": 0.0}, {}], last=2, most=10)


def test_a_clock_that_is_set_back_gives_no_other_rate() -> None:
    """Rates are of the monotonic clock; the wall clock is for times of day."""
    now, wall = Clock(), Clock()
    kept = Kept()
    progress = loop.Progress(Runtime(wall, {}, io.StringIO(), monotonic=now), kept, 1, 4, lambda n: 8, 0, 0)
    progress.start_clock(0)
    for n in range(1, 5):
        now.now, wall.now = now.now + 2, wall.now - 3600
        progress.add(n, {"loss": jnp.float32(1), "skipped": jnp.float32(0)})
    now.now += 2
    progress.flush()
    rates = [r["examples_per_second"] for r in (values for _, values in kept.lines) if "examples_per_second" in r]
    assert rates
    assert all(rate <= 8 for rate in rates)
