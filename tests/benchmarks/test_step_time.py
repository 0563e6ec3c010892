"""benchmarks/step_time.py: what a program is made of, ratios, and processes that end early."""

import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import contestants, hlo, step_time


def test_fusions_and_opcodes_are_the_programs() -> None:
    def f(x, y, z):
        return jnp.sum(jnp.tanh(x) * y + z, 1), (x @ y.T)

    x = jnp.ones((256, 256))
    text = jax.jit(f).lower(x, x, x).compile().as_text()
    found = hlo.fusions(text)
    assert [fusion.operands for fusion in found] == sorted((fusion.operands for fusion in found), reverse=True)
    assert len(found) == hlo.opcodes(text)["fusion"] > 0
    assert hlo.opcodes(text)["parameter"] >= 3
    assert hlo.opcodes(text)["tanh"] == hlo.opcodes(text)["add"] == 0  # inside of a fusion and a reduction


def test_a_ratio_is_the_median_over_rounds() -> None:
    own = [{"ms": ms, "faults": 3, "peak_mib": 100 + ms} for ms in (10.0, 20.0, 40.0)]
    torch = [{"ms": 20.0, "faults": 0, "peak_mib": 0.0}] * 3
    row = step_time.summarize(own, torch, 50.4)
    assert (row["median_ms"], row["speed_over_torch"], row["page_faults"]) == (20.0, 1.0, 3)
    assert (row["peak_mib"], row["imported_mib"]) == (140, 50)


def test_a_contestant_that_ends_early_ends_the_run() -> None:
    with pytest.raises(SystemExit, match=r"no_such_workload.* ended with 2"):
        step_time.Contestant("no_such_workload", "canon")


@pytest.mark.parametrize(("flag", "says"), [("--repeats=3", "at least 7"), ("--only=nothing", "no workload")])
def test_bad_flags_are_one_line(flag: str, says: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["step_time", flag])
    with pytest.raises(SystemExit):
        step_time.main()
    assert says in capsys.readouterr().err


def test_every_workload_has_pytorch_first() -> None:
    assert {contestants.contestants(workload)[0] for workload in contestants.WORKLOADS} == {"torch"}
