"""Learning-rate schedules, against their formulas."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.knobs import ScheduleConfig
from errors import UsageError
from train.sharding import mesh
from train.update import schedules

F32 = 1e-5  # relative: a few roundings of float32


def settings(**more: Any) -> Any:
    return ScheduleConfig(**more)


def rates(total: int, at: list[int], **more: Any) -> list[float]:
    rate = schedules.make(settings(**more), 2.0, total)
    return [float(rate(jnp.asarray(n))) for n in at]


def test_constant_schedule() -> None:
    """The peak from the first update to the last."""
    assert rates(10, [0, 5, 9]) == [2.0, 2.0, 2.0]


def test_linear_schedule() -> None:
    """From the peak in equal parts towards the end value."""
    np.testing.assert_allclose(
        rates(10, [0, 1, 5, 9, 10], name="linear", end_fraction=0.5), [2, 1.9, 1.5, 1.1, 1], rtol=F32
    )


def test_cosine_schedule() -> None:
    """Half a cosine from the peak to the end value."""
    at = [0, 3, 5, 9, 10]
    want = [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * n / 10)) / 2) for n in at]
    np.testing.assert_allclose(rates(10, at, name="cosine", end_fraction=0.1), want, rtol=F32)


def test_polynomial_schedule() -> None:
    """A power of the share of updates that are left."""
    want = [2 * (0.2 + 0.8 * (1 - n / 10) ** 3) for n in (0, 4, 9, 10)]
    np.testing.assert_allclose(rates(10, [0, 4, 9, 10], name="polynomial", power=3.0, end_fraction=0.2), want, rtol=F32)


def test_inverse_square_root_schedule() -> None:
    """The Transformer's formula, min(s^-1/2, s w^-3/2), scaled to its peak at update s = w, counted from 1."""
    s, w = np.arange(1, 41), 5
    want = 2 * np.minimum(s**-0.5, s * w**-1.5) * w**0.5
    np.testing.assert_allclose(rates(40, list(range(40)), name="inverse_sqrt", warmup=w - 1), want, rtol=F32)


def test_warm_up_stable_decay_schedule() -> None:
    """Rises, stays, and falls by a line in the last fifth of all updates."""
    got = rates(20, [0, 3, 4, 15, 16, 17, 19, 20], name="wsd", warmup=3, decay_fraction=0.2, end_fraction=0.5)
    np.testing.assert_allclose(got, [0.5, 2, 2, 2, 2, 1.75, 1.25, 1], rtol=F32)


def test_one_cycle_schedule() -> None:
    """Up and down in 40 % of the updates each, and from there to the end."""
    got = rates(
        10, [0, 2, 4, 6, 8, 9, 10], name="onecycle", start_fraction=0.25, warmup_fraction=0.4, end_fraction=0.05
    )
    np.testing.assert_allclose(got, [0.5, 1.25, 2, 1.25, 0.5, 0.3, 0.1], rtol=F32)
    assert all(np.isfinite(rates(5, list(range(6)), name="onecycle", warmup_fraction=0.5)))
    assert all(np.isfinite(rates(1, [0, 1], name="onecycle")))


def test_piecewise_schedule() -> None:
    """Factors count from the update that they name, one upon the other, wherever the warm-up ends."""
    got = rates(10, [1, 2, 5, 6, 7, 8, 9], name="piecewise", milestones="6:0.1, 8:0.5", warmup=1)
    np.testing.assert_allclose(got, [2, 2, 2, 0.2, 0.2, 0.1, 0.1], rtol=F32)


@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
def test_a_schedule_follows_a_traced_step(name: str) -> None:
    """Inside jit, on a mesh, as the update asks for it."""
    cfg = settings(name=name, milestones="3:0.5")
    rate, steps = schedules.make(cfg, 2.0, 10), [0, 3, 9]
    place = mesh.make_placement(mesh.make_mesh("dp:8"), {})
    with jax.set_mesh(place.mesh):
        got = [float(jax.jit(rate)(jax.device_put(np.int32(n), place.replicated))) for n in steps]
    np.testing.assert_allclose(got, [float(rate(jnp.asarray(n))) for n in steps], rtol=F32)


OWN_RISE = {"inverse_sqrt", "onecycle", "piecewise"}  # their values after the warm-up depend on it, or there is none


@pytest.mark.parametrize("name", sorted(set(schedules.SCHEDULES) - OWN_RISE))
def test_warm_up_rises_to_the_peak(name: str) -> None:
    """In equal steps, the first already above 0; the peak comes right after, then the schedule's own first values."""
    got = rates(20, list(range(6)), name=name, warmup=4)
    np.testing.assert_allclose(got[:5], [0.4, 0.8, 1.2, 1.6, 2.0], rtol=F32)
    np.testing.assert_allclose(got[4:], rates(16, [0, 1], name=name), rtol=F32)
    np.testing.assert_allclose(rates(20, [20], name=name, warmup=4), rates(16, [16], name=name), rtol=F32)


def test_warm_up_may_fill_the_run() -> None:
    """As many updates of warm-up as the run has: no division by zero."""
    assert all(np.isfinite(rates(4, [0, 3, 4], name="cosine", warmup=4)))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"name": "cosin"}, "'cosine'"),
        ({"warmup": 11}, "schedule.warmup.*train.steps = 10"),
        ({"warmup": -1}, "schedule.warmup"),
        ({"end_fraction": 1.5}, "schedule.end_fraction.*between 0 and 1"),
        ({"end_fraction": -0.1}, "schedule.end_fraction"),
        ({"power": 0.0}, "schedule.power.*positive"),
        ({"decay_fraction": 0.0}, "schedule.decay_fraction.*above 0"),
        (
            {"name": "wsd", "decay_fraction": 0.6, "warmup": 5},
            "warmup = 5 and schedule.decay_fraction = 0.6 overlap in 10",
        ),
        ({"start_fraction": 0.0}, "schedule.start_fraction.*above 0"),
        ({"warmup_fraction": 0.6}, "schedule.warmup_fraction.*at most 0.5"),
        ({"name": "onecycle", "warmup": 1}, "warmup must be 0"),
        ({"name": "piecewise"}, "needs schedule.milestones"),
        ({"name": "piecewise", "milestones": "6"}, "UPDATE:FACTOR"),
        ({"name": "piecewise", "milestones": "6:a"}, "UPDATE:FACTOR"),
        ({"name": "piecewise", "milestones": "6:0"}, "positive factors"),
        ({"name": "piecewise", "milestones": "6:0.5,6:0.5"}, "rising"),
        ({"name": "piecewise", "milestones": "2:0.5", "warmup": 2}, "above schedule.warmup = 2"),
    ],
)
def test_bad_schedules_are_refused(bad: dict[str, Any], says: str) -> None:
    """Unknown names, and values beyond their bounds."""
    with pytest.raises(UsageError, match=says):
        rates(10, [0], **bad)
