"""Knobs, their parsing, and every named config with every ablation of its file."""

import ast
import dataclasses
import inspect
import json
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import models
from configs import gpt, listing, reader
from configs.knobs import KNOBS, ModelConfig, RunConfig, TrainConfig
from configs.section import fits
from errors import UsageError
from models.core.spec import Spec, _leaf_hash, flatten, initialize
from tests.support import ROOT
from tests.support.configs import CHANGED, FILES, VARIANTS, config
from train.setup import checks
from train.tasks import TASKS
from train.update import optim, schedules

# Ablations that a config cannot take; they are refused in one line, not built. LeNet-5 has three stages to pool.
IMPOSSIBLE = {("cnn", "mnist_lenet5+average_pool"): "pools"}


def variants(file: str) -> list[str]:
    return [names for own, names in VARIANTS if own == file]


# Parsing


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.clip_norm", "None", None),
        ("optim.clip_norm", "1", 1.0),
        ("optim.lr", "3e-4", 3e-4),
        ("train.steps", "1e4", 10_000),
        ("train.steps", "10_000", 10_000),
        ("eval.every", "2e3", 2000),
        ("eval.every", "none", None),
        ("log.table", "false", False),
        ("log.table", "True", True),
        ("data.name", "a,b", "a,b"),
        ("data.name", "123", "123"),
        ("data.name", "None", "None"),
        ("model.size", "None", None),
        ("data.weights", "(0.5, 0.5)", (0.5, 0.5)),
        ("data.weights", "1,3", (1, 3)),
        ("data.weights", "[1, 3]", (1, 3)),
        ("data.weights", "1", (1,)),
        ("mesh", "fsdp:4,tp:2", "fsdp:4,tp:2"),
        ("model.hidden", "(16, 16)", (16, 16)),
        ("model.hidden", "[16]", (16,)),
        ("model.activation", "relu", "relu"),
        ("model.tied", "false", False),
        ("model.dropout", "0.1", 0.1),
        ("rules.embed", "fsdp,tp", "fsdp,tp"),
        ("rules.embed", "None", None),
    ],
)
def test_parse_by_the_type_of_the_knob(key: str, text: str, value: Any) -> None:
    """The text of a flag becomes a value of the knob's type, None included, and is taken by the config."""
    got = reader.parse(key, text)
    assert got == value
    assert type(got) is type(value) or isinstance(value, float)
    cfg = reader.override(RunConfig(), [(key, text)])
    assert cfg.flatten()[key] == value
    if key in KNOBS and KNOBS[key].type.startswith("float") and value is not None:
        assert type(cfg.flatten()[key]) is float


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.steps", "1.5"),
        ("train.steps", "many"),
        ("train.steps", "None"),
        ("train.steps", "true"),
        ("optim.lr", "fast"),
        ("optim.lr", "None"),
        ("optim.lr", "(1, 2)"),
        ("optim.lr", "{[]: 1}"),
        ("log.table", "1"),
        ("log.table", "yes"),
        ("data.weights", "(1, 'a')"),
        ("eval.every", "0.5"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, text: str) -> None:
    """The refusal names the key, its type and the value."""
    with pytest.raises(UsageError) as caught:
        reader.override(RunConfig(), [(key, text)])
    assert key in str(caught.value)
    assert KNOBS[key].type in str(caught.value)
    assert "\n" not in str(caught.value)


STRANGE: tuple[Any, ...] = (  # values of knobs
    *(True, 0, -1, 3, 2**40, 10**5000, 0.1, -0.0, math.nan, math.inf, 1e-320, 1j, None),
    *(..., "", "a:b", "a\nb", "\ud800"),
    *((), (1, (2.5, "a")), [0.5], [[1]], {}, {"a": 1}, {1: 2}, {1}, b"a", range(3), object(), int, RunConfig()),
    *(np.int64(3), np.float32(0.5), np.bool_(True), np.str_("a"), np.datetime64("2026-01-01"), np.longdouble(1)),
    *(np.arange(3), np.zeros((40, 40)), np.zeros(()), TrainConfig(), lambda: 0),
)


@pytest.mark.parametrize("key", [*KNOBS, "model.width", "model.args.width", "model.args", "rules.embed", "train", 1])
def test_a_value_is_taken_exactly_or_refused(key: Any) -> None:
    """Any value of Python makes a config that JSON and pickle keep, or is refused by one line that names the key."""
    for value in STRANGE:
        try:
            made, refusal = RunConfig().replace({key: value}), str(key)
        except UsageError as error:
            made, refusal = RunConfig(), str(error)
        assert "\n" not in refusal
        assert str(key) in refusal
        assert made == pickle.loads(pickle.dumps(made))
        assert key == "resume" or made == reader.from_json(made.to_json())
        assert {type(v).__module__ for v in made.flatten().values()} == {"builtins"}


def test_sections_are_of_their_types_and_do_not_change() -> None:
    """What is no section, or names a knob as a model's field, is refused; what is one cannot be changed."""
    wrong: list[tuple[Callable[..., object], str, tuple[Any, ...], str]] = [
        (RunConfig, "train", ({"steps": 3}, None, RunConfig().data), "'train' takes a TrainConfig"),
        (RunConfig, "rules", (None, ("embed",), {"a b": 1}, {3: 1}), "'rules'"),
        (ModelConfig, "fields", ({"family": "gpt"}, {"size": "gpt"}), "'(family|size)' is a knob"),
        (ModelConfig, "fields", ({"args": 5},), "'model.args' takes a dict"),
    ]
    for kind, field, values, says in wrong:
        for value in values:
            with pytest.raises(UsageError, match=says):
                kind(**{field: value})
    fields = {"width": 4, "args": {"hidden": [1]}}
    made = RunConfig(model=ModelConfig(fields=fields), rules={"embed": "tp"})
    fields["width"] = 8
    assert made.model.fields == {"width": 4, "args": {"hidden": (1,)}}
    for mapping in (made.model.fields, made.model.fields["args"], made.rules):
        with pytest.raises(TypeError):
            mapping["width"] = 8  # type: ignore[index]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.lrr", "optim.lr"),
        ("optimm.lr", "optim.lr"),
        ("lr", "optim.lr"),
        ("train.step", "train.steps"),
        ("model.family.x", "model.family"),
        ("checkpoint.evry", "checkpoint.every"),
        ("model", "mo"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    """`lr` is answered by `optim.lr`."""
    with pytest.raises(UsageError, match=f"unknown config key '{key}'.*{nearest}"):
        reader.override(RunConfig(), [(key, "1")])


def test_a_later_assignment_wins() -> None:
    """Assignments apply in order."""
    assert reader.override(RunConfig(), [("seed", "1"), ("seed", "2")]).seed == 2


# Knobs


def test_every_default_fits_its_type() -> None:
    """And every knob has a known class and a meaning."""
    assert [key for key, knob in KNOBS.items() if not fits(knob.default, knob.type)] == []
    assert {knob.kind for knob in KNOBS.values()} == {"identity", "schedule", "free"}
    assert [key for key, knob in KNOBS.items() if not knob.says] == []


SECTIONS = {"optim.py": "optim", "schedules.py": "schedule"}  # files to which `config` is one section


def _readings() -> set[str]:
    """The dotted knobs that code outside configs/ reads: `config.section.name`; `config.name` in SECTIONS' files."""
    found: set[str] = set()
    folders = [path for folder in ("cli", "train", "models", "data") for path in (ROOT / folder).rglob("*.py")]
    for path in (*folders, ROOT / "configs/reader.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                found.add(node.attr if owner == "config" else f"{owner}.{node.attr}")
                if owner == "config" and path.name in SECTIONS:
                    found.add(f"{SECTIONS[path.name]}.{node.attr}")
    return found


def test_no_knob_without_a_reader() -> None:
    """Each knob is read somewhere in train/ or the launcher."""
    readings = _readings()
    assert {key for key in KNOBS if key not in readings} == set()


# Kept and compared


@pytest.mark.parametrize("file", list(FILES))
def test_json_round_trip(file: str) -> None:
    """A config comes back equal from what a workdir keeps of it, types included."""
    for names in variants(file):
        cfg = config(file, names)
        again = reader.from_json(cfg.to_json())
        one, two = cfg.flatten(), again.flatten()
        assert two == one, names
        assert {k: type(v) for k, v in two.items()} == {k: type(v) for k, v in one.items()}, names
        assert reader.changes(cfg, again) == {"identity": [], "schedule": [], "free": []}, names


def test_an_older_config_takes_new_defaults() -> None:
    """A knob that a kept config does not have yet stands at its default; one that no longer exists is named."""
    kept = json.loads(RunConfig().to_json())
    del kept["train"]["remat"]
    assert reader.from_json(json.dumps(kept)).train.remat == KNOBS["train.remat"].default
    kept["train"]["rematt"] = "none"
    with pytest.raises(UsageError, match=r"train\.rematt.*train\.remat"):
        reader.from_json(json.dumps(kept))


@pytest.mark.parametrize("key", list(KNOBS))
def test_a_change_is_held_to_its_class(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An identity knob refuses the workdir, a schedule knob asks for resume=extend, a free one passes."""
    knob = KNOBS[key]
    value = not knob.default if knob.type == "bool" else CHANGED[knob.type.split(" |")[0]]
    old = RunConfig()
    new = old.replace({key: value})
    line = f"{key}: {knob.default!r} -> {value!r}"
    assert reader.changes(old, new) == {k: [line] if k == knob.kind else [] for k in ("identity", "schedule", "free")}

    if knob.kind == "free":
        reader.refuse_other_run("W", old, new)
        return
    with pytest.raises(UsageError) as caught:
        reader.refuse_other_run("W", old, new)
    assert line in str(caught.value)
    new = new.replace({"resume": "extend"})
    if knob.kind == "schedule":
        assert "--config.resume=extend" in str(caught.value)
        reader.refuse_other_run("W", old, new)
    else:
        with pytest.raises(UsageError, match="another run"):
            reader.refuse_other_run("W", old, new)


@pytest.mark.parametrize(("key", "kind"), [("model.width", "identity"), ("rules.embed", "free")])
def test_open_sections_have_a_class_too(key: str, kind: str) -> None:
    """A field of the model defines the run, a sharding rule does not."""
    new = RunConfig().replace({key: 64})
    assert [k for k, lines in reader.changes(RunConfig(), new).items() if lines] == [kind]


def test_a_slash_behind_a_folder_changes_nothing() -> None:
    old = RunConfig().replace({"data.name": "runs/set", "init_from": "runs/set"})
    new = RunConfig().replace({"data.name": "runs/set/", "init_from": "runs/set/"})
    assert reader.refuse_other_run("W", old, new) == []


# Named configs


@pytest.mark.parametrize("file", list(FILES))
def test_ablations_are_small(file: str) -> None:
    """At most five keys each, all changed away from the defaults of some config, and no name is config and ablation."""
    module = FILES[file]
    assert all(1 <= len(delta) <= 5 for delta in module.ABLATIONS.values())
    assert not set(module.CONFIGS) & set(module.ABLATIONS)
    for name in module.ABLATIONS:
        differs = [
            n for n in module.CONFIGS if any(reader.changes(config(file, n), config(file, f"{n}+{name}")).values())
        ]
        assert differs, name


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("shakespere", "'shakespeare'.*configs: shakespeare, quickstart, quick, gpt2; ablations: no_warmup"),
        ("quick+no_warmap", "'no_warmup'"),
        ("no_warmup", "must begin with one config"),
        ("no_warmup+quick", "must begin with one config"),
        ("quick+gpt2", "must begin with one config"),
        ("", "must begin with one config"),
    ],
)
def test_wrong_names_are_refused(names: str, says: str) -> None:
    """Unknown names are answered by the nearest; the order is config first."""
    with pytest.raises(UsageError, match=says):
        gpt.get_config(names)


def test_ablations_combine() -> None:
    """Names joined by + apply from left to right."""
    cfg = reader.read(str(ROOT / "configs/gpt.py") + ":quick+no_warmup+relu")
    assert (cfg.schedule.warmup, cfg.model.fields["activation"], cfg.model.fields["width"]) == (0, "relu", 64)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:\n", "line 1"),
        ("x = 1\n", "no function get_config"),
        (None, "unknown config file"),
    ],
)
def test_unusable_config_files_are_refused(tmp_path: Path, text: str | None, says: str) -> None:
    """A file that is not there, is no Python, or has no get_config."""
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=says):
        reader.read(str(path))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise SystemExit(7)", "line 4: SystemExit: 7"),
        ("return 1 / 0", "line 4: ZeroDivisionError"),
        ("return get_config()", "line 4: RecursionError"),
        ("import nosuch", "line 4: ModuleNotFoundError"),
        ("return None", "returns None, not a ConfigDict"),
        ("return ['x'] * 10_000", "returns ['x', 'x'"),
        ("return ConfigDict({'seed': 1})", "lacks model.family, model.size, data.name, …"),
        ("cfg = base.defaults()\n    cfg.unlock()\n    cfg.sed = 1\n    return cfg", "'sed'.*'seed'"),
        ("cfg = base.defaults()\n    cfg.seed = 2**32\n    return cfg", "'seed' takes int up to 4,294,967,295"),
        ("return base.config('x', {}, {})", "unknown config or ablation 'x'"),
    ],
)
def test_a_config_file_that_gives_no_config_is_named(tmp_path: Path, body: str, says: str) -> None:
    """With the line where there is one, and nothing of a traceback."""
    path = tmp_path / "mine.py"
    path.write_text(f"from ml_collections import ConfigDict\nfrom configs import base\ndef get_config():\n    {body}\n")
    with pytest.raises(UsageError, match=f"^config file {path}.*{says}".replace("[", r"\[")):
        reader.read(str(path))


def test_names_that_a_config_file_takes(tmp_path: Path) -> None:
    """Said where one is missing, where none is taken, and where the default is."""
    path = tmp_path / "mine.py"
    path.write_text("CONFIGS = {'a': {}, 'b': {}}\ndef get_config(name):\n    return name\n")
    with pytest.raises(UsageError, match=r"takes a name, as --config=.*mine.py:NAME \(it has a, b\)"):
        reader.read(str(path))
    path.write_text("get_config = lambda: 3\n")
    with pytest.raises(UsageError, match="takes no name"):
        reader.read(f"{path}:a")
    said = reader.describe_default(str(ROOT / "configs/gpt.py"))
    assert said is not None
    assert said.endswith("configs/gpt.py:quickstart (it has shakespeare, quickstart, quick, gpt2)")
    assert reader.describe_default("configs/gpt.py:quick") is None


def test_a_users_own_config_file_is_read(tmp_path: Path) -> None:
    """A file anywhere may build on Canon's configs."""
    path = tmp_path / "mine.py"
    path.write_text("from configs import gpt\n\ndef get_config(names='quick'):\n    return gpt.get_config(names)\n")
    assert reader.read(str(path)) == config("gpt", "quick")


def _model(cfg: RunConfig) -> models.Model:
    """The model as `setup` would build it, with what data would fix made up."""
    fields = cfg.model.fields
    module = models.FAMILIES[cfg.model.family]
    made = {"vocab": 100} if cfg.data.tokenizer != "byte" or cfg.loss in ("next_token", "translation") else {}
    if cfg.loss in ("softmax", "focal", "hinge", "perceptron", "quadratic"):
        made["classes"] = 1 if TASKS[cfg.loss].single_score else 10
    made |= {"shape": (8, 8, 1), "outputs": 1}
    known = {f.name for f in dataclasses.fields(module.Config)}
    given = {*fields, *module.SIZES.get(cfg.model.size, {})}
    return models.build(
        cfg.model.family, cfg.model.size, **fields, **{k: v for k, v in made.items() if k in known - given}
    )


_drawn: dict[Any, tuple[int, ...]] = {}


def drawn(line: Spec) -> tuple[int, ...]:
    """The shape of a leaf's initial value, once for all leaves of one line and law: leaves know nothing of others."""
    law = inspect.unwrap(line.init)
    cells = [cell.cell_contents for cell in getattr(law, "__closure__", None) or ()]
    key = repr((line, getattr(law, "__code__", law), cells))
    if key not in _drawn:
        _drawn[key] = jax.eval_shape(partial(initialize, {"leaf": line}), jax.random.key(0))["leaf"].shape
    return _drawn[key]


@pytest.mark.parametrize("file", list(FILES))
def test_every_variant_builds(file: str) -> None:
    """The model's table and its initial values are legal, by shape alone; every name that the config uses exists."""
    for names in variants(file):
        cfg = config(file, names)
        if (file, names) in IMPOSSIBLE:
            with pytest.raises(UsageError, match=IMPOSSIBLE[file, names]):
                _model(cfg)
            continue
        model = _model(cfg)
        table = flatten(model.specs)
        assert {k: drawn(line) for k, line in table.items()} == {k: line.shape for k, line in table.items()}, names
        assert len({_leaf_hash(k) for k in table}) == len(table), names
        assert model.count() > 0, names

        checks.check(cfg)
        optim.make(cfg.optim, model.specs["params"])
        schedules.make(cfg.schedule, cfg.optim.lr, cfg.train.steps)
        assert TASKS[cfg.loss].output_kind in model.traits, names
        assert cfg.train.batch % cfg.train.accumulate == 0, names


@pytest.mark.parametrize("key", list(checks.CHOICES))
def test_a_word_outside_its_table_is_refused(key: str) -> None:
    """By the knob's name, with the legal words, which its help does not repeat but `list knobs` shows."""
    with pytest.raises(UsageError, match=f"unknown {key} 'zzzz'; legal: "):
        checks.check(RunConfig().replace({key: ("zzzz",) if KNOBS[key].type.startswith("tuple") else "zzzz"}))
    legal = ", ".join(checks.CHOICES[key])
    assert legal not in KNOBS[key].says
    assert f"    one of {legal}" in listing.of_knobs(None, checks.CHOICES)
