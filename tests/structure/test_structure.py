"""What imports what, and when: the arrows that keep the house in order."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.support import ROOT

LAYERS = ("configs", "data", "models", "train")


# What is imported when

PROBE = """
import sys, launch
codes = [launch.main(a) for a in (["--help"], *([v, "--help"] for v in launch.VERBS), ["train"], ["trian"])]
assert codes == [0] * (len(codes) - 2) + [2, 2], codes
heavy = {"jax", "numpy", "flax", "optax", "orbax", "ml_collections", "grain", "sklearn"} & set(sys.modules)
print("HEAVY", sorted(heavy - {"ml_collections"}))
"""

EVERYTHING = """
import pathlib, sys
for folder in ("cli", "configs", "data", "models", "train"):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        __import__(".".join(path.with_suffix("").parts))
from data import sources
from data.sources import builtin
for name in builtin.BUILTIN:
    sources.load(name, "train")
print("HEAVY", sorted({"tensorflow", "torch", "transformers", "tensorflow_datasets"} & set(sys.modules)))
"""


def heavy(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_help_imports_nothing_heavy() -> None:
    """Neither jax nor numpy, so that help and the first mistakes answer at once."""
    assert heavy(PROBE) == "HEAVY []"


def test_nothing_imports_tensorflow_or_torch() -> None:
    """All of the code, and the embedded data sets, do without them."""
    assert heavy(EVERYTHING) == "HEAVY []"


def test_the_exit_code_is_the_process_exit_code() -> None:
    """`python launch.py` ends with what main returns, and shows no traceback."""
    done = subprocess.run([sys.executable, "launch.py", "trian"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_the_package_is_the_whole_of_the_code() -> None:
    """`pip install -e .` knows every module and package at the root, with the version of CITATION.cff."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    settings = pyproject["tool"]["setuptools"]
    modules = {path.stem for path in ROOT.glob("*.py")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "docs", "examples"}
    assert set(settings["py-modules"]) == modules
    assert set(settings["packages"]["find"]["include"]) == {name for top in packages for name in (top, f"{top}.*")}
    assert modules | packages == OURS - {"tests", "benchmarks"}
    inside = [path.parent for path in files(*sorted(packages))]
    assert [str(folder) for folder in inside if not (folder / "__init__.py").exists()] == []
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {pyproject['project']['version']}\n" in citation
    page = (ROOT / "docs" / "python.md").read_text()
    assert [name for name in modules | packages if f"`{name}`" not in page] == []


# The arrows

OURS = {*LAYERS, "cli", "launch", "errors", "renamed", "documents", "imports", "pairs", "canon", "tests", "benchmarks"}
ARROWS = {
    "configs": {"configs", "errors", "renamed", "imports"},
    "data": {"data", "errors", "renamed", "documents", "imports", "pairs"},
    "models": {"models", "errors", "renamed", "documents", "imports", "pairs"},
    "train": {"train", "configs", "models", "data", "errors", "renamed", "documents", "imports", "pairs"},
    "cli": {"cli", "configs", "train", "errors"},
    "cli/flags": {"errors", "renamed"},
    "cli/process": {"errors"},
    "cli/peers": {"cli", "errors"},
    "launch": {"cli", "errors"},
    "canon": {"configs", "data", "models", "train", "errors"},
    "documents": {"errors"},
    "imports": {"errors"},
    "pairs": {"errors"},
    "errors": set(),
    "renamed": set(),
}
# Rooms, lowest first: a room imports those before it. A name is a folder, or a file of the folder above.
ROOMS = {
    "models": (
        *("core", "blocks/attention", "blocks/decoder", "blocks/moe", "blocks/vision", "blocks/autodiff"),
        *("blocks/recurrent", "blocks/encoder_memory", "blocks/transformer_layers", "blocks/flax_adapter"),
        *("families", "inputs", "registry", "pretrained", "__init__", "as_flax"),
    ),
    "train": (
        *("runtime", "workdir", "compilation_cache", "tasks", "sharding", "update", "record", "plan", "checkpoint"),
        *("generate", "evaluate/evaluate", "evaluate/callbacks", "setup", "introduction", "evaluate", "plots"),
        *("init_from", "companions", "loop", "resume"),
        *("together", "saving", "trainer", "run", "verbs"),
    ),
    "cli": ("flags", "process", "peers", "runtime", "checkpoints", "run_config", "verbs"),
    "data": (
        *("progress", "files", "fields", "text", "eval_set", "source", "types", "images", "sources", "sampler"),
        *("loader",),
    ),
}


def files(*folders: str) -> list[Path]:
    return [p for f in folders for p in ([ROOT / f] if f.endswith(".py") else sorted((ROOT / f).rglob("*.py")))]


ALL = files(
    *LAYERS, "cli", "launch.py", "canon.py", "errors.py", "renamed.py", "documents.py", "imports.py", "pairs.py"
)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> list[str]:
    """The dotted names that a file imports anywhere; `from models import gpt` gives models.gpt."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def offenders(paths: list[Path], rule: Callable[[Path], set[str]]) -> dict[str, set[str]]:
    """What a rule finds wrong, by file."""
    return {str(path.relative_to(ROOT)): wrong for path in paths if (wrong := rule(path))}


def test_import_arrows() -> None:
    """Each folder, or file with arrows of its own, imports only what stands below it."""

    def wrong(path: Path) -> set[str]:
        own = path.relative_to(ROOT).with_suffix("")
        arrows = ARROWS[str(own) if str(own) in ARROWS else own.parts[0]]
        return ({name.split(".")[0] for name in imports(path)} & OURS) - arrows

    assert len(ALL) > 150
    assert offenders(ALL, wrong) == {}


def room_of(dotted: str) -> str | None:
    """The room that a module, or a name in one, lies in; None outside of ROOMS."""
    top, _, rest = dotted.partition(".")
    path = rest.replace(".", "/")
    rooms = [room for room in ROOMS.get(top, ()) if path == room or path.startswith(f"{room}/")]
    return rooms[0] if rooms else "__init__" if top in ROOMS and "__init__" in ROOMS[top] else None


def test_rooms_are_in_order() -> None:
    """Every file lies in a room, and imports its own room and lower ones only."""
    found = {}
    for top, rooms in ROOMS.items():
        for path in files(top):
            relative = path.relative_to(ROOT)
            if path.name == "__init__.py" and not imports(path):
                continue
            own = room_of(".".join(relative.with_suffix("").parts))
            assert own is not None, f"{relative} lies in no room"
            used = {room_of(name) for name in imports(path) if name.startswith(f"{top}.")} - {None, own}
            if wrong := {room for room in used if rooms.index(room) > rooms.index(own)}:
                found[str(relative)] = wrong
    assert found == {}


def test_tests_mirror_the_tree() -> None:
    """A folder of tests has the name of the folder that it tests; tests import from tests/support alone."""
    tests = files("tests")
    rooms = {p.parent.relative_to(ROOT / "tests") for p in tests if p.name.startswith("test_")} - {Path("structure")}
    assert len(rooms) > 15
    assert [str(room) for room in rooms if not any((ROOT / top / room).is_dir() for top in ("", "models"))] == []

    def wrong(path: Path) -> set[str]:
        found = {n for n in imports(path) if n.startswith("tests.") and not f"{n}.".startswith("tests.support.")}
        return found - allowed.get(str(path.relative_to(ROOT)), set())

    allowed = {"tests/structure/test_add_a_family.py": {"tests.models.test_contract"}}  # the laws, on the page's code
    assert offenders(tests, wrong) == {}


def test_families_do_not_import_each_other() -> None:
    """What two families share is a block."""

    def wrong(path: Path) -> set[str]:
        return {name for name in imports(path) if name.startswith("models.families.")}

    assert offenders([p for p in files("models/families") if p.name != "__init__.py"], wrong) == {}


def test_every_family_is_a_file() -> None:
    """The table FAMILIES and the files of models/families agree."""
    import models

    families = {p.stem for p in (ROOT / "models/families").glob("*.py")} - {"__init__"}
    assert {m.__name__.rsplit(".", 1)[1] for m in models.FAMILIES.values()} == families


def test_importlib_stays_out() -> None:
    """Nothing is imported by a computed name but a user's own code; the doctor may ask for versions."""
    allowed = {"train/verbs/doctor.py": {"importlib.metadata"}, "imports.py": {"importlib", "importlib.util", "exec"}}

    def wrong(path: Path) -> set[str]:
        found = {n for n in imports(path) if n.split(".")[0] == "importlib"}
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found |= {node.func.id} & {"__import__", "exec", "eval"}
        return found - allowed.get(str(path.relative_to(ROOT)), set())

    assert offenders(ALL, wrong) == {}


STRAY_MODULES = {"signal", "time", "argparse", "getpass", "datetime", "absl.flags"}
STRAY_NAMES = {"os.environ", "os.getenv", "os.environb", "sys.argv", "sys.stdin", "os.kill"}


def test_no_stray_readers() -> None:
    """Flags, environment, clock, signals, keyboard are the launcher's; grain needs a flag, workers ignore Ctrl-C."""

    def wrong(path: Path) -> set[str]:
        found = {n for n in imports(path) if {n, n.split(".")[0]} & STRAY_MODULES} | STRAY_NAMES & set(imports(path))
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found |= {f"{node.value.id}.{node.attr}"} & STRAY_NAMES
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input":
                found.add("input(")
        return found - ({"absl.flags", "signal"} if path.name == "loader.py" else set())

    assert offenders(files(*LAYERS), wrong) == {}


def test_only_the_launcher_changes_jax_for_the_process() -> None:
    """Below it, the mesh and the precision of a run are those of a `with` block."""

    def wrong(path: Path) -> set[str]:
        items = [item for n in ast.walk(tree_of(path)) if isinstance(n, ast.With) for item in n.items]
        blocks = {id(part) for item in items for part in ast.walk(item.context_expr)}
        calls = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        names = {ast.unparse(call.func) for call in calls if id(call) not in blocks}
        return names & {"jax.config.update", "jax.set_mesh", "jax.default_matmul_precision"}

    assert offenders(files(*LAYERS), wrong) == {}
