"""Test configuration: 8 simulated CPU devices, rank promotion raises, array shapes in signatures are checked."""

import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

# Compilation takes most of a test's time, and no law depends on the optimization level. Processes that tests start
# compile as a user's run: the flags are restored once the devices exist.
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

import tests.support.typecheck  # noqa: E402, F401  (the import hook finds it by name)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 8
os.environ["XLA_FLAGS"] = given
jaxtyping.install_import_hook(["models", "train"], "tests.support.typecheck.check")

import logging  # noqa: E402

from cli.runtime import enable_cache  # noqa: E402


def compilation_cache_dir() -> str:
    """The compilation cache for this jax and these models; folders of other versions are removed.

    Processes that tests start share it. The workers cache nothing, as they have several CPU
    devices (train/compilation_cache.py).
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


os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compilation_cache_dir())
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
assert enable_cache(os.environ["JAX_COMPILATION_CACHE_DIR"]) is None

logging.getLogger("absl").setLevel(logging.ERROR)

import pytest  # noqa: E402

from tests.support import budget  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", metavar="SUITE", help="hold the test files to their shares in tests/budget.json")
    parser.addoption("--cases", metavar="NAMES", help="only the contract of these cases, by commas")
    parser.addoption("--write-budget", metavar="SUITE", help="write the shares that this run took")


CONTRACT = "tests/models/test_contract.py"


def file_of(item: pytest.Item) -> str:
    """The path of a test's file in the repository."""
    return item.nodeid.split("::")[0]


def case_of(item: pytest.Item) -> str:
    """The name of a contract test's case, or ""."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("name", "") if file_of(item) == CONTRACT else ""


def group_of(item: pytest.Item) -> str:
    """The group of a test: its file, or its case in the contract. Tests of a group share compiled programs."""
    return f"{file_of(item)} {case_of(item)}".strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep groups together, each in one worker with `--dist loadgroup`; long groups start first."""
    if cases := config.getoption("--cases"):
        items[:] = [item for item in items if case_of(item) in cases.split(",")]
    suite = config.getoption("--budget")
    seconds = budget.shares(suite) if suite else {}
    items.sort(key=lambda i: (file_of(i) != CONTRACT, -seconds.get(file_of(i), 0), group_of(i)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))


seconds_of: Counter[str] = Counter()
spent = 0.0


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that it started and waited for."""
    return sum(os.times()[:4])


def pytest_runtest_logstart() -> None:
    global spent
    spent = cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the CPU seconds of a test's setup, call or teardown to its report."""
    global spent
    report = yield
    before, spent = spent, cpu_seconds()
    report.cpu_seconds = spent - before
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    seconds_of[report.nodeid.split("::")[0]] += getattr(report, "cpu_seconds", 0.0)  # a worker that died reports none


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """After a passing run, in the main process: compare the CPU seconds of each file with its budget."""
    if hasattr(session.config, "workerinput") or exitstatus:
        return
    if suite := session.config.getoption("--write-budget"):
        budget.write(suite, seconds_of)
    suite = session.config.getoption("--budget")
    if suite:
        seconds = ", ".join(
            f"{file.removeprefix('tests/')} {seconds_of[file]:.0f}" for file, _ in seconds_of.most_common()
        )
        session.config.get_terminal_writer().line(f"\nCPU seconds by file: {seconds}")
    if suite and (lines := budget.above(seconds_of, budget.shares(suite))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line("\n" + "\n".join(lines), red=True)


@pytest.fixture(autouse=True)
def jax_stays_unchanged():
    """A test leaves jax's mesh and precision as they were: nothing but the launcher sets them for the process."""
    precision = jax.config.jax_default_matmul_precision
    yield
    assert jax.sharding.get_mesh().empty
    assert jax.config.jax_default_matmul_precision == precision


test_count = itertools.count(1)
last_group = ""


@pytest.fixture(autouse=True)
def limit_compiled_programs(request: pytest.FixtureRequest) -> None:
    """Clear caches if compiled programs use many memory maps: at vm.max_map_count (65530) the process dies.

    A group begins with a free half, since its tests share programs.
    """
    global last_group
    begins, last_group = group_of(request.node) != last_group, group_of(request.node)
    if begins or next(test_count) % 5 == 0:
        maps = Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > (20_000 if begins else 45_000):
            jax.clear_caches()


@pytest.fixture
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable plots except in tests that use `with_plots`: they take most of a small evaluation's time."""
    from train.plots import classification, curves

    if "with_plots" not in request.fixturenames:
        monkeypatch.setattr(classification, "draw", lambda *args: [])
        monkeypatch.setattr(curves, "draw_loss", lambda *args: None)


@pytest.fixture
def with_plots() -> None:
    """Enable plots in this test."""


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run."""
    from tests.support import runs

    workdir = tmp_path_factory.mktemp("run") / "w"
    assert runs.train(workdir) == 0
    return workdir


@pytest.fixture
def finished_run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which the test may modify."""
    return Path(shutil.copytree(finished_run, tmp_path / "w"))
