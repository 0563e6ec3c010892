"""The launcher: its messages for mistakes, help, exit codes."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import launch
from cli import flags
from configs import gpt
from errors import UsageError
from tests.support import ROOT
from train.checkpoint import manifest


@pytest.fixture(autouse=True)
def same_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run from the repository's root; put back what a launched command sets for its process."""
    monkeypatch.chdir(ROOT)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    level = logging.getLogger("absl").level
    yield
    logging.getLogger("absl").setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


TRAIN = ["train", "--workdir=W", "--config=configs/gpt.py:quick"]
DIGITS = ["train", "--workdir=W", "--config=configs/cnn.py:digits"]
EQUATIONS = ["train", "--workdir=W", "--config=configs/mlp.py:micrograd+equations", "--config.train.batch=96"]
# What is wrong -> the command, and what the one line must say. W becomes a folder that is not there, T a short text.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "verb": (["trian"], "did you mean 'train'"),
    "no_workdir": (["train"], "--workdir=runs/a"),
    "no_config": (["train", "--workdir=W"], "--config=configs/gpt.py:quickstart"),
    "flag": (["train", "--workdr=W"], "workdir"),
    "flag_of_another_verb": (["eval", "--prompt=x"], "prompt"),
    "no_flag": ([*TRAIN, "extra"], "'extra' is not a flag"),
    "flag_type": (["sample", "--workdir=W", "--max_new_tokens=many"], "--max_new_tokens=many"),
    "flag_bound": (["sample", "--workdir=W", "--top_k=0"], "--top_k=0"),
    "temperature": (["sample", "--workdir=W", "--temperature=-1"], "--temperature=-1"),
    "config_file": (["train", "--workdir=W", "--config=configs/gtp.py"], "configs/gpt.py"),
    "config_name": (["train", "--workdir=W", "--config=configs/gpt.py:quik"], "'quick'"),
    "ablation": (["train", "--workdir=W", "--config=configs/gpt.py:quick+no_warmpu"], "'no_warmup'"),
    "no_value": ([*TRAIN, "--config.optim.lr"], "--config.optim.lr=VALUE"),
    "knob": ([*TRAIN, "--config.optim.lrr=1"], "'optim.lr'"),
    "type": ([*TRAIN, "--config.optim.lr=fast"], "'optim.lr' takes float"),
    "resume": ([*TRAIN, "--config.resume=extent"], "'extend'"),
    "coordinator": ([*TRAIN, "--num_processes=2"], "--coordinator=HOST:PORT"),
    "process": ([*TRAIN, "--num_processes=2", "--process_id=2", "--coordinator=localhost:1"], "--process_id=2"),
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
    "clip": ([*TRAIN, "--config.optim.clip_norm=0"], "positive"),
    "rates": ([*TRAIN, "--config.optim.lr_multipliers=embed/*"], "PATTERN:FACTOR"),
    "rates_pattern": ([*TRAIN, "--config.optim.lr_multipliers=embd/*:0.1"], "'embed/*'"),
    "freeze": ([*TRAIN, "--config.optim.freeze=embed/tokens"], "'embed/token'"),
    "freeze_all": ([*TRAIN, "--config.optim.freeze=*"], "nothing to train"),
    "layer_decay": ([*TRAIN, "--config.optim.layer_decay=1.5"], "at most 1"),
    "layers": ([*DIGITS, "--config.optim.layer_decay=0.9"], "no stacked layers"),
    "average": ([*TRAIN, "--config.optim.name=schedule_free", "--config.optim.beta1=0"], "'optim.beta1'"),
    "schedule": ([*TRAIN, "--config.schedule.name=cosin"], "'cosine'"),
    "warmup": ([*TRAIN, "--config.schedule.warmup=101"], "train.steps = 100"),
    "schedule_end": ([*TRAIN, "--config.schedule.end_fraction=2"], "between 0 and 1"),
    "schedule_power": ([*TRAIN, "--config.schedule.power=0"], "positive"),
    "schedule_decay": ([*TRAIN, "--config.schedule.decay_fraction=0"], "above 0"),
    "schedule_overlap": ([*TRAIN, "--config.schedule.name=wsd", "--config.schedule.decay_fraction=1"], "overlap"),
    "schedule_start": ([*TRAIN, "--config.schedule.start_fraction=0"], "above 0"),
    "schedule_rise": ([*TRAIN, "--config.schedule.warmup_fraction=0.6"], "at most 0.5"),
    "gradient": ([*EQUATIONS, "--config.model.dropout=0.1"], "dropout = 0.1 must be 0"),
    "vocab": ([*TRAIN, "--config.data.vocab_size=100"], "where data.tokenizer is word"),
    "field_of_images": ([*DIGITS, "--config.data.field=text"], "'data.field' = 'text'"),
    "onecycle": ([*TRAIN, "--config.schedule.name=onecycle"], "schedule.warmup must be 0"),
    "no_steps": ([*TRAIN, "--config.schedule.name=piecewise"], "600:0.1"),
    "bad_steps": ([*TRAIN, "--config.schedule.name=piecewise", "--config.schedule.milestones=50"], "UPDATE:FACTOR"),
    "precision": ([*TRAIN, "--config.train.precision=fp32"], "'f32'"),
    "remat": ([*TRAIN, "--config.train.remat=dot"], "'dots'"),
    "attention": ([*TRAIN, "--config.train.attention=flash"], "reference, splash"),
    "attention_of_family": (
        [*DIGITS, "--config.train.attention=xla"],
        "where the model has attention; here: family cnn",
    ),
    "attention_of_machine": ([*TRAIN, "--config.train.attention=cudnn"], "cpu. Backends that do: reference, xla"),
    "attention_of_model": ([*TRAIN, "--config.model.attention=xla"], "is set by train.attention"),
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
    "deviation": ([*DIGITS, "--config.data.std=0"], "'data.std'"),
    "deviation_in_float32": ([*DIGITS, "--config.data.std=1e-300"], "not 1e-300"),
    "deviations_in_float32": ([*DIGITS, "--config.data.std=(1e-300,)"], "1e-300"),
    "deviation_of_a_channel": ([*DIGITS, "--config.data.std=(1, 0)"], "'data.std'"),
    "mean_of_channels": ([*DIGITS, "--config.data.mean=(0.5, 0.5, 0.5)"], "have 1 channel"),
    "size_of_text": ([*TRAIN, "--config.data.size=8"], "where the data are images or boxes; here: text"),
    "image_size": ([*DIGITS, "--config.data.size=(8, 8, 1)"], "'data.size' must be rows and columns"),
    "size_of_half_pixels": ([*DIGITS, "--config.data.size=(8, 7.5)"], "takes tuple[int] | None"),
    "size_for_the_model": ([*DIGITS, "--config.data.size=9", "--config.model.inputs=(8, 8, 1)"], "(9, 9, 1)"),
    "crop": ([*DIGITS, "--config.data.size=9", "--config.data.crop_pct=2"], "'data.crop_pct' must be above 0"),
    "crop_of_no_size": ([*DIGITS, "--config.data.crop_pct=0.5"], "where data.size is set"),
    "fit_of_no_size": (
        [*DIGITS, "--config.data.resize_mode=stretch"],
        "'data.resize_mode' = 'stretch' has no effect: it is read where data.size",
    ),
    "fit": ([*DIGITS, "--config.data.size=9", "--config.data.resize_mode=stretched"], "did you mean 'stretch'"),
    "resample": ([*DIGITS, "--config.data.interpolation=cubic"], "did you mean 'bicubic'"),
    "resample_of_text": (
        [*TRAIN, "--config.data.interpolation=bicubic"],
        "where the data are resized images; here: text",
    ),
    "mixup_of_another_loss": (
        [*DIGITS, "--config.data.augment=mixup:1", "--config.loss=quadratic"],
        "mixup needs the loss softmax, focal, not",
    ),
    "steps_of_no_piecewise": ([*TRAIN, "--config.schedule.milestones=50:0.1"], "where schedule.name is piecewise"),
    "steps_are_no_steps": ([*TRAIN, "--config.schedule.milestones=nan"], "UPDATE:FACTOR"),
    "beta_of_momentum": (
        [*TRAIN, "--config.optim.name=momentum", "--config.optim.beta1=0.5"],
        "here: momentum",
    ),
    "mean_of_text": ([*TRAIN, "--config.data.mean=0.5"], "where the data are images"),
    "length_of_a_language_model": ([*TRAIN, "--config.data.max_length=8"], "classifier or encoder_decoder"),
    "tokenizer_of_images": ([*DIGITS, "--config.data.tokenizer=char"], "where the data are text or pairs"),
    "context_of_a_classifier": ([*DIGITS, "--config.eval.context=8"], "kind language_model"),
    "beams_of_a_classifier": ([*DIGITS, "--config.eval.num_beams=2"], "kind encoder_decoder"),
    "embeddings_of_a_classifier": (
        [*DIGITS, "--config.optim.weight_decay=0.1", "--config.optim.decay_embeddings=false"],
        "where the model has embeddings",
    ),
    "two_problems": ([*TRAIN, "--config.train.steps=4", "--config.model.heads=7"], "2 problems: (1) gpt: heads = 7"),
    "three_problems": (
        [*TRAIN, "--config.schedule.end_fraction=2", "--config.schedule.power=3", "--config.optim.lr=-1"],
        "3 problems: ",
    ),
    "problems_of_two_kinds": (
        [*TRAIN, "--config.schedule.power=3", "--config.data.mean=0.5", "--config.data.max_length=8"],
        "launch.py train: 3 problems: (1) config key",
    ),
    "number_of_20_digits": ([*TRAIN, f"--config.train.steps={10**20}"], "takes int up to 2,147,483,647"),
    "field_of_20_digits": ([*TRAIN, f"--config.model.width={10**20}"], "not of type int"),
    "workers_of_20_digits": ([*DIGITS, f"--config.data.workers={10**20}"], "up to 1,024"),
    "deviation_of_nothing": ([*DIGITS, "--config.data.std=1e-300"], "'data.std' takes float"),
    "name_of_300": ([*TRAIN, f"--config.data.name={'x' * 300}"], "at most 255 bytes"),
    "name_of_5000": (["eval", "--workdir=W", f"--dataset={'x' * 5000}"], "at most 255 bytes"),
    "short_text": ([*TRAIN, "--config.data.name=T"], "too few for one window of context 64"),
    "missing_text": (
        [*TRAIN, "--config.data.name=missing.txt"],
        "no .txt, .jsonl, .csv, .tsv or .parquet file at",
    ),
    "eval_without_workdir": (["eval"], "--workdir=runs/a"),
    "workdir_as_an_address": (["eval", "--workdir=file:///tmp/a"], "gs://, s3://, az://"),
    "eval_of_nothing": (["eval", "--workdir=W"], "no checkpoint in"),
    "eval_best_of_nothing": (["eval", "--workdir=W@best"], "no checkpoint in"),
    "sample_of_nothing": (["sample", "--workdir=W@7"], "no checkpoint in"),
    "empty_folder_of_the_hub": ([*TRAIN, "--pretrained="], "--pretrained is empty"),
    "empty_data": (["eval", "--workdir=W", "--dataset", ""], "--dataset is empty"),
    "prompt": (["sample", "--workdir=W", "--prompt=\udcff"], "--prompt is not text"),
    "knob_of_doctor": (["doctor", "--config.seed=1"], "--config.KEY=VALUE"),
    "knob_of_list": (["list", "--config.seed=1"], "--config.KEY=VALUE"),
    "section_of_knobs": (["list", "knobs", "optm"], "'optim'"),
    "file_of_no_config": (["list", "configs/base.py"], "no function get_config"),
    "words_of_list": (["list", "models"], "not 'models'"),
    "field_of_no_data": (["doctor", "--field=text"], "--field=text needs --data"),
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
    assert out.startswith(f"{flags.HELP[verb]}\nusage:\n  --")
    assert all(f"--{'[no]' if name in ('debug', 'timing') else ''}{name}:" in out for name in flags.define_flags(verb))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["list"], "llama3.2_1b        1,235,814,400 parameters"),
        (["list", "configs/gpt.py"], "no_warmup            schedule.warmup=0"),
        (["list", "knobs", "optim"], "float; identity; read where optim.name is momentum or nesterov or muon"),
        (["list", "knobs"], "--config.seed=0"),
    ],
)
def test_list_shows_what_there_is(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Families with their sizes, the configs and ablations of a file, knobs with the condition of each."""
    assert launch.main(argv) == launch.DONE
    assert says in capsys.readouterr().out


def test_version_is_that_of_the_citation(capsys: pytest.CaptureFixture[str]) -> None:
    """With the commit and jax's version."""
    assert launch.main(["--version"]) == launch.DONE
    out = capsys.readouterr().out
    assert f"version: {out.split()[1].rstrip(',')}\n" in (ROOT / "CITATION.cff").read_text()
    assert out.endswith(f"jax {jax.__version__}\n")


def test_debug_shows_where(tmp_path: Path) -> None:
    """--debug raises instead of the one line."""
    with pytest.raises(UsageError, match="quick"):
        launch.main(["train", "--debug", f"--workdir={tmp_path}/run", "--config=configs/gpt.py:quik"])


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(36, "File name too long", "x" * 300), 2, "… (302 characters)"),
        (SystemExit(7), 1, "7 [SystemExit; --debug shows where]"),
        (type("PanicException", (BaseException,), {})("a panic"), 1, "a panic [PanicException"),
        (RuntimeError("two\nlines"), 1, "two lines [RuntimeError; --debug shows where]"),
        (AssertionError(), 1, "AssertionError"),
        (KeyboardInterrupt(), 1, "interrupted"),
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
    kept = manifest.dump_manifest(
        {
            **{name: kinds[0]() for name, kinds in manifest.FIELDS.items()},
            **{"step": 5, "config": gpt.get_config("quick").to_dict()},
            "phases": [{"from_step": 0, "batch_size": 8, "weights": [1.0]}],
            "state": {"step": {"shape": [], "dtype": "int32", "digest": "0" * 16}},
        }
    )
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
