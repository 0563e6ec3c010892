"""The launcher's answers to mistakes, and the arrows of imports that keep the house in order."""

import ast
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import launch
from configs import gpt
from errors import UsageError

ROOT = Path(__file__).parent.parent
LAYERS = ("configs", "data", "models", "train")


@pytest.fixture(autouse=True)
def same_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run from the repository's root; put back what a launched command sets for its process."""
    monkeypatch.chdir(ROOT)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    precision, level = jax.config.jax_default_matmul_precision, logging.getLogger("absl").level
    with jax.set_mesh(jax.sharding.get_mesh()):
        yield
    jax.config.update("jax_default_matmul_precision", precision)
    logging.getLogger("absl").setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


TRAIN = ["train", "--workdir=W", "--config=configs/gpt.py:quick"]
DIGITS = ["train", "--workdir=W", "--config=configs/cnn.py:digits"]
# What is wrong -> the command, and what the one line must say. W becomes a folder that is not there, T a short text.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "verb": (["trian"], "did you mean 'train'"),
    "no_workdir": (["train"], "--workdir=runs/a"),
    "no_config": (["train", "--workdir=W"], "--config=configs/gpt.py:quickstart"),
    "flag": (["train", "--workdr=W"], "workdir"),
    "flag_of_another_verb": (["eval", "--prompt=x"], "prompt"),
    "no_flag": ([*TRAIN, "extra"], "'extra' is no flag"),
    "flag_type": (["sample", "--workdir=W", "--tokens=many"], "--tokens=many"),
    "flag_bound": (["sample", "--workdir=W", "--top_k=0"], "--top_k=0"),
    "temperature": (["sample", "--workdir=W", "--temperature=-1"], "--temperature=-1"),
    "config_file": (["train", "--workdir=W", "--config=configs/gtp.py"], "configs/gpt.py"),
    "config_name": (["train", "--workdir=W", "--config=configs/gpt.py:quik"], "'quick'"),
    "ablation": (["train", "--workdir=W", "--config=configs/gpt.py:quick+no_warmpu"], "'no_warmup'"),
    "no_value": ([*TRAIN, "--config.optim.lr"], "--config.optim.lr=VALUE"),
    "knob": ([*TRAIN, "--config.optim.lrr=1"], "'optim.lr'"),
    "type": ([*TRAIN, "--config.optim.lr=fast"], "'optim.lr' takes float"),
    "resume": ([*TRAIN, "--config.resume=extent"], "'extend'"),
    "coordinator": ([*TRAIN, "--processes=2"], "--coordinator=HOST:PORT"),
    "process": ([*TRAIN, "--processes=2", "--process=2", "--coordinator=localhost:1"], "--process=2"),
    "family": ([*TRAIN, "--config.model.family=gptt"], "'gpt'"),
    "field": ([*TRAIN, "--config.model.widht=8"], "'width'"),
    "size": ([*TRAIN, "--config.model.size=gpt-2"], "'gpt2'"),
    "rule_of_field": ([*TRAIN, "--config.model.heads=7"], "divisor of width=64"),
    "type_of_field": ([*TRAIN, "--config.model.width=wide"], "width = 'wide' is not of type int"),
    "value_of_field": ([*TRAIN, "--config.model.activation=gelu_tan"], "'gelu_tanh'"),
    "data": ([*TRAIN, "--config.data.name=pydoc_txt"], "'pydoc_text'"),
    "split": ([*TRAIN, "--config.data.split=trian"], "'train'"),
    "eval_split": ([*TRAIN, "--config.eval.split=valid"], "'validation'"),
    "tokenizer": ([*TRAIN, "--config.data.tokenizer=bytes"], "'byte'"),
    "loss": ([*TRAIN, "--config.loss=next_tokens"], "'next_token'"),
    "loss_of_data": ([*TRAIN, "--config.loss=softmax"], "next_token"),
    "family_of_data": ([*DIGITS, "--config.model.family=mlp"], "channels"),
    "classes": ([*DIGITS, "--config.model.classes=4"], "too small for the data's 10"),
    "optimizer": ([*TRAIN, "--config.optim.name=adamww"], "'adamw'"),
    "beta": ([*TRAIN, "--config.optim.beta1=2"], "[0, 1)"),
    "clip": ([*TRAIN, "--config.optim.clip=0"], "positive"),
    "rates": ([*TRAIN, "--config.optim.rates=embed/*"], "PATTERN:FACTOR"),
    "rates_pattern": ([*TRAIN, "--config.optim.rates=embd/*:0.1"], "'embed/*'"),
    "freeze": ([*TRAIN, "--config.optim.freeze=embed/tokens"], "'embed/token'"),
    "freeze_all": ([*TRAIN, "--config.optim.freeze=*"], "nothing to train"),
    "layer_decay": ([*TRAIN, "--config.optim.layer_decay=1.5"], "at most 1"),
    "layers": ([*DIGITS, "--config.optim.layer_decay=0.9"], "no stacked layers"),
    "average": ([*TRAIN, "--config.optim.name=schedule_free", "--config.optim.beta1=0"], "'optim.beta1'"),
    "schedule": ([*TRAIN, "--config.schedule.name=cosin"], "'cosine'"),
    "warmup": ([*TRAIN, "--config.schedule.warmup=101"], "train.steps = 100"),
    "schedule_end": ([*TRAIN, "--config.schedule.end=2"], "between 0 and 1"),
    "schedule_power": ([*TRAIN, "--config.schedule.power=0"], "positive"),
    "schedule_decay": ([*TRAIN, "--config.schedule.decay=0"], "above 0"),
    "schedule_overlap": ([*TRAIN, "--config.schedule.name=wsd", "--config.schedule.decay=1"], "overlap"),
    "schedule_start": ([*TRAIN, "--config.schedule.start=0"], "above 0"),
    "schedule_rise": ([*TRAIN, "--config.schedule.rise=0.6"], "at most 0.5"),
    "onecycle": ([*TRAIN, "--config.schedule.name=onecycle"], "schedule.warmup must be 0"),
    "no_steps": ([*TRAIN, "--config.schedule.name=piecewise"], "600:0.1"),
    "bad_steps": ([*TRAIN, "--config.schedule.name=piecewise", "--config.schedule.steps=50"], "UPDATE:FACTOR"),
    "precision": ([*TRAIN, "--config.train.precision=fp32"], "'f32'"),
    "remat": ([*TRAIN, "--config.train.remat=dot"], "'dots'"),
    "remat_of_family": ([*DIGITS, "--config.train.remat=full"], "train.remat"),
    "mesh_axis": ([*TRAIN, "--config.mesh=db:8"], "'dp'"),
    "mesh_size": ([*TRAIN, "--config.mesh=dp:3"], "this run has 8"),
    "mesh_of_model": ([*TRAIN, "--config.mesh=tp:8"], "would fit"),
    "rule": ([*TRAIN, "--config.rules.embd=tp"], "'embed'"),
    "rule_axis": ([*TRAIN, "--config.rules.embed=pt"], "'tp'"),
    "rule_number": ([*TRAIN, "--config.rules.embed=1"], "tp"),
    "rule_twice": ([*TRAIN, "--config.rules.embed=tp,tp"], "twice"),
    "batch": ([*TRAIN, "--config.train.batch=7"], "8 would fit"),
    "accumulate": ([*TRAIN, "--config.train.accumulate=3"], "24 would fit"),
    "steps": ([*TRAIN, "--config.train.steps=0", "--config.schedule.warmup=0"], "'train.steps'"),
    "log_every": ([*TRAIN, "--config.log.every=0"], "'log.every'"),
    "checkpoint_every": ([*TRAIN, "--config.checkpoint.every=0"], "or None"),
    "keep_best": ([*TRAIN, "--config.checkpoint.keep_best=-1"], "'checkpoint.keep_best'"),
    "workers": ([*TRAIN, "--config.data.workers=-1"], "'data.workers'"),
    "seed": ([*TRAIN, "--config.seed=-1"], "2^32"),
    "weights": ([*TRAIN, "--config.data.weights=(1, 2)"], "data.weights"),
    "small_weight": (
        [*TRAIN, "--config.data.name=pydoc_text,pydoc_text", "--config.data.weights=(1e-7, 1)"],
        "0 or at least 1e-05",
    ),
    "mixture": ([*TRAIN, "--config.data.name=pydoc_text,digits"], "mixture"),
    "mixture_begun_by_images": ([*DIGITS, "--config.data.name=digits,pydoc_text"], "mixture"),
    "augment": ([*DIGITS, "--config.data.augment=flipp"], "'flip'"),
    "deviation": ([*DIGITS, "--config.data.deviation=0"], "'data.deviation'"),
    "short_text": ([*TRAIN, "--config.data.name=T"], "too few for one window of context 64"),
    "missing_text": ([*TRAIN, "--config.data.name=missing.txt"], "no .txt file at 'missing.txt'"),
    "eval_without_workdir": (["eval"], "--workdir=runs/a"),
    "eval_of_nothing": (["eval", "--workdir=W"], "no checkpoint in"),
    "eval_best_of_nothing": (["eval", "--workdir=W@best"], "no checkpoint in"),
    "sample_of_nothing": (["sample", "--workdir=W@7"], "no checkpoint in"),
    "prompt": (["sample", "--workdir=W", "--prompt=\udcff"], "--prompt is not text"),
    "knob_of_doctor": (["doctor", "--config.seed=1"], "--config.KEY=VALUE"),
    "flag_of_doctor": (["doctor", "--workdir=W"], "workdir"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_gets_one_line(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line on stderr that says what would be legal, and nothing on disk."""
    work, text = tmp_path / "run", tmp_path / "short.txt"
    text.write_text("too short to train on")
    argv, says = MISTAKES[mistake]
    argv = [a.replace("=W", f"={work}") if a.startswith("--workd") else a.replace("=T", f"={text}") for a in argv]
    code = launch.main(argv)
    out, err = capsys.readouterr()
    assert code == launch.USAGE == 2, err
    assert err.count("\n") == 1
    assert err.startswith(f"launch.py {argv[0]}: ")
    assert says in err
    assert "Error" not in err
    assert out == ""
    assert sorted(tmp_path.iterdir()) == [text]


def test_no_verb_shows_the_help_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing at all is wrong usage; the text is the help."""
    assert launch.main([]) == launch.USAGE
    out = capsys.readouterr().out
    assert all(f"launch.py {verb}" in out for verb in launch.VERBS)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And the exit codes."""
    assert launch.main(argv) == launch.DONE == 0
    out = capsys.readouterr().out
    assert all(f"launch.py {verb}" in out for verb in launch.VERBS)
    assert "Exit codes: 0" in out


@pytest.mark.parametrize("verb", list(launch.VERBS))
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_verb_explains_its_flags(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every flag that the verb takes is listed, also where other arguments stand before."""
    assert launch.main([verb, "--nonsense", flag]) == launch.DONE
    out = capsys.readouterr().out
    assert out.startswith(launch.HELP[verb])
    assert all(f"--{'[no]' if name == 'debug' else ''}{name}:" in out for name in launch._flags(verb))


def test_debug_shows_where(tmp_path: Path) -> None:
    """--debug raises instead of the one line."""
    with pytest.raises(UsageError, match="quick"):
        launch.main(["train", "--debug", f"--workdir={tmp_path}/run", "--config=configs/gpt.py:quik"])


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RuntimeError("two\nlines"), 1, "two lines [RuntimeError; --debug shows where]"),
        (AssertionError(), 1, "AssertionError"),
        (KeyboardInterrupt(), 1, "run the same command again"),
    ],
)
def test_a_failure_gets_one_line(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not the user's mistake exits 1, and so does a second Ctrl-C; never a traceback."""

    def fail(*args: object) -> int:
        raise error

    monkeypatch.setitem(launch.VERBS, "doctor", fail)
    assert launch.main(["doctor"]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err


def test_a_workdir_holds_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another config in a workdir that has a checkpoint is refused with the difference, and the kept config stays."""
    kept = json.dumps({"schema": 1, "config": gpt.get_config("quick").to_dict()})
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "manifest.json").write_text(kept)
    for more, says in (
        (["--config=configs/gpt.py:quick+relu"], "model.activation: None -> 'relu'"),
        (["--config=configs/gpt.py:quick", "--config.train.steps=200"], "--config.resume=extend"),
        (["--config.seed=1"], "seed: 0 -> 1"),
    ):
        assert launch.main(["train", f"--workdir={tmp_path}", *more]) == launch.USAGE
        assert says in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


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
for folder in ("configs", "data", "models", "train"):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        __import__(".".join(path.with_suffix("").parts))
from data import embedded, sources
for name in embedded.EMBEDDED:
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


# The arrows

OURS = {"configs", "data", "models", "train", "launch", "errors", "tests", "benchmarks"}
ARROWS = {
    "configs": {"configs", "errors"},
    "data": {"data", "errors"},
    "models": {"models", "errors"},
    "train": {"train", "models", "data", "errors"},
    "launch": {"configs", "train", "errors"},
    "errors": set(),
}
# Inside models: shared files, lowest first, each with what it may import of models; every other file is a family.
ABOVE = {"__init__", "as_flax"}  # made of the whole package
SHARED = {
    "spec": set(),
    "validate": set(),
    "layers": {"spec"},
    "attention": {"spec", "layers"},
    "recurrent": {"spec", "layers"},
    "foreign": {"spec", "layers"},
    "backprop": {"layers"},
    "scalar": {"backprop"},
}


def files(*folders: str) -> list[Path]:
    return [p for f in folders for p in ([ROOT / f] if f.endswith(".py") else sorted((ROOT / f).rglob("*.py")))]


ALL = files(*LAYERS, "launch.py", "errors.py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> list[str]:
    """The dotted names that a file imports anywhere; `from models import gpt` gives models.gpt."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_import_arrows(path: Path) -> None:
    """Each folder imports only what stands below it."""
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    used = {name.split(".")[0] for name in imports(path)} & OURS
    assert used <= ARROWS[layer]


@pytest.mark.parametrize("path", [p for p in files("models") if p.parent.name == "models"], ids=name_of)
def test_import_arrows_inside_models(path: Path) -> None:
    """A family imports shared blocks only, never another family; a shared block only those below it."""
    if path.stem in ABOVE:
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("models.")}
    assert used <= SHARED.get(path.stem, set(SHARED))


def test_every_family_is_a_file_that_is_not_shared() -> None:
    """The table FAMILIES and the files of models/ agree."""
    import models

    families = {p.stem for p in (ROOT / "models").glob("*.py")} - set(SHARED) - ABOVE
    assert {m.__name__.split(".")[1] for m in models.FAMILIES.values()} == families


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_importlib_stays_out(path: Path) -> None:
    """Nothing is imported by a computed name; the doctor may ask for versions."""
    allowed = {"doctor.py": {"importlib.metadata"}, "flax.py": {"importlib"}}.get(path.name, set())
    assert {n for n in imports(path) if n.split(".")[0] == "importlib"} <= allowed
    calls = {
        n.func.id
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not calls & {"__import__", "exec", "eval"}


STRAY_MODULES = {"signal", "time", "argparse", "getpass", "datetime", "absl.flags"}
STRAY_NAMES = {"os.environ", "os.getenv", "os.environb", "sys.argv", "sys.stdin", "os.kill"}


@pytest.mark.parametrize("path", files(*LAYERS), ids=name_of)
def test_no_stray_readers(path: Path) -> None:
    """Flags, environment, clock, signals and the keyboard are read by launch.py alone; grain asks for one absl flag."""
    tree = ast.parse(path.read_text())
    found = {n for n in imports(path) if {n, n.split(".")[0]} & STRAY_MODULES} | STRAY_NAMES & set(imports(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{node.value.id}.{node.attr}"} & STRAY_NAMES
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input":
            found.add("input(")
    assert found <= ({"absl.flags"} if path.name == "loader.py" else set())
