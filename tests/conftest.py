"""Strict surroundings: 8 simulated CPU devices, rank promotion raises, shapes in signatures are checked."""

import hashlib
import itertools
import os
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path

# Compiling takes most of a test's time here, and how hard the compiler tries changes no law. What a test starts as a
# process of its own is compiled as a user's run is: the flags are put back once the devices are there.
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    (
        given,
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else "",  # later ones lack it
    )
)

import jax  # noqa: E402
import jaxtyping  # noqa: E402

import tests.typecheck  # noqa: E402, F401  (the import hook finds it by name)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 8
os.environ["XLA_FLAGS"] = given
jaxtyping.install_import_hook(["models", "train"], "tests.typecheck.check")

import logging  # noqa: E402

from train import compilation_cache  # noqa: E402


def programs() -> str:
    """The folder of compiled programs, of this jax and these models: that of other ones is removed.

    Processes that tests start share it; the workers keep nothing, as they have several CPU devices
    (train/compilation_cache.py).
    """
    root = Path(__file__).parent.parent
    code = [
        file.read_bytes()
        for part in ("models", "train/tasks", "train/update")
        for file in sorted((root / part).rglob("*.py"))
    ]
    folder = root / ".jax_cache" / f"{jax.__version__}-{hashlib.sha256(b''.join(code)).hexdigest()[:16]}"
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return str(folder)


os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs())
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
assert compilation_cache.enable(os.environ["JAX_COMPILATION_CACHE_DIR"]) is None

logging.getLogger("absl").setLevel(logging.ERROR)

import pytest  # noqa: E402

from tests import budget  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", metavar="SUITE", help="hold the test files to their shares in tests/budget.json")
    parser.addoption("--cases", metavar="NAMES", help="only the contract of these, of tests/cases.py, by commas")
    parser.addoption("--write-budget", metavar="SUITE", help="write the shares that this run took")


def case_of(item: pytest.Item) -> str:
    """The contract's case that a test is about, or nothing."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("name", "") if item.path.name == "test_contract.py" else ""


def group_of(item: pytest.Item) -> str:
    """A file, or in the contract a family: what its tests have compiled, the next ones use."""
    return f"{item.path.name} {case_of(item)}".strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A group stays together, in one worker with `--dist loadgroup`; long ones begin first."""
    if cases := config.getoption("--cases"):
        items[:] = [item for item in items if case_of(item) in cases.split(",")]
    suite = config.getoption("--budget")
    seconds = budget.shares(suite) if suite else {}
    contract = Path(__file__).with_name("test_contract.py")
    items.sort(key=lambda i: (i.path != contract, -seconds.get(f"tests/{i.path.name}", 0), group_of(i)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))


took: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    took[report.nodeid.split("::")[0]] += report.duration


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In the process that hears of all tests, of a run that passed: hold the files to their shares."""
    if hasattr(session.config, "workerinput") or exitstatus:
        return
    if suite := session.config.getoption("--write-budget"):
        budget.write(suite, took)
    suite = session.config.getoption("--budget")
    if suite:
        seconds = ", ".join(f"{file.removeprefix('tests/')} {took[file]:.0f}" for file, _ in took.most_common())
        session.config.get_terminal_writer().line(f"\nseconds by file: {seconds}")
    if suite and (lines := budget.above(took, budget.shares(suite))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line("\n" + "\n".join(lines), red=True)


@pytest.fixture(autouse=True)
def no_mesh():
    """The mesh that a run sets for its process does not outlive the test."""
    yield
    jax.set_mesh(None)


tests_run = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """What is compiled stays mapped, and past vm.max_map_count (65530) maps the compiler fails, or the process dies."""
    yield
    maps = Path("/proc/self/maps")
    if next(tests_run) % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn but in tests that ask for `drawn`: pictures take most of a small evaluation's seconds.

    No law is lost: a picture that cannot be drawn fails no run and no evaluation.
    """
    from train.plots import classification, curves

    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(classification, "draw", lambda *args: [])
        monkeypatch.setattr(curves, "draw_loss", lambda *args: None)


@pytest.fixture
def drawn() -> None:
    """Pictures are drawn in this test."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that came to its end."""
    from tests import runs

    workdir = tmp_path_factory.mktemp("run") / "w"
    assert runs.train(workdir) == 0
    return workdir


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "w"))
