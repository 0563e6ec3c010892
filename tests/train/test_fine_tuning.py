"""Fine-tuning a folder of the hub: what of a run is the folder's, what starts fresh, and a run that outlives it."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import launch
import models
from cli.flags import define_flags
from cli.run_config import fine_tuning_config
from configs import reader
from configs.knobs import DataConfig, ModelConfig, RunConfig
from data.source import Source
from data.text import subwords
from data.types import Examples, Texts
from errors import UsageError
from models import pretrained
from models.core.spec import flatten
from tests.support.cases import random_variables
from train import checkpoint, init_from, resume
from train.runtime import Runtime
from train.setup import published, tuning

pytestmark = pytest.mark.usefixtures("no_plots")

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
REVIEWS = Texts(("ab", "c"), {"name": "reviews"}, np.array([0, 1]), 2, ("bad", "good"))


def folder(where: Path, family: str, names: tuple[str, ...] = (), **fields: Any) -> str:
    """A tiny network of the hub with a tokenizer; that of a decoder has fewer tokens than the table has rows."""
    small = dict(width=16, depth=1, heads=2, hidden=24)
    sized = {"vit": dict(inputs=(8, 8, 1), patch=4), "resnet": dict(inputs=1, depths=(1, 1), channels=(8, 16))}
    shape = sized.get(family, dict(vocab=300, context=16)) | (small if family != "resnet" else {})
    more = dict(block="basic", stem_channels=8) if family == "resnet" else {}
    model = models.build(family, **{**shape, **more, **fields})
    models.save_pretrained(model, random_variables(model), where, classes=names)
    if family == "bert":
        (where / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    elif family == "llama":
        (where / "tokenizer.json").write_text(subwords.train_bpe(["the text of nobody"], 270).source)
    return str(where)


def taken(monkeypatch: pytest.MonkeyPatch, path: str, source: Source, **given: Any) -> RunConfig:
    """The config of fine-tuning a folder on a source, some knobs given."""
    monkeypatch.setattr(tuning, "load_source", lambda *_: source)
    knobs = {key.replace("__", "."): value for key, value in given.items()}
    here = Runtime(lambda: 0.0, {}, io.StringIO())
    return tuning.configure(RunConfig().replace(knobs), path, here, given=set(knobs))


def images(classes: int, names: tuple[str, ...] | None = None) -> Examples:
    fields = {"image": np.zeros((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32)}
    return Examples(fields, 2, {"name": "images"}, classes, names)


def test_a_decoder_brings_all_that_a_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "H", "llama")
    cfg = taken(monkeypatch, path, Texts(("a",), {"name": "x"}), train__batch=3)
    assert (cfg.model.family, cfg.model.fields["vocab"], cfg.model.fields["context"]) == ("llama", 300, 16)
    assert (cfg.loss, cfg.data.tokenizer, cfg.init_from, cfg.init_fresh) == ("next_token", "subword", path, None)
    assert "compute" not in cfg.model.fields
    assert resume.find_tokenizer(cfg, str(tmp_path / "W"))["kind"] == "subword"
    with pytest.raises(UsageError, match=r"'model\.family' cannot be set: --pretrained="):
        taken(monkeypatch, path, Texts(("a",), {"name": "x"}), model__family="gpt")


def test_what_an_ablation_changes_of_the_model_holds(tmp_path: Path) -> None:
    """As what is assigned; the rest of the config's model section is the folder's."""
    args = define_flags("train")
    args(["x", f"--pretrained={folder(tmp_path / 'H', 'llama')}", "--config=configs/llama.py:quick+window"])
    runtime = Runtime(lambda: 0.0, {}, io.StringIO())
    assert reader.ablation_keys(args.config) == {"model.window"}
    assert reader.ablation_keys("configs/llama.py:quick") == set()
    own = tmp_path / "own.py"
    own.write_text("from configs import base\nget_config = lambda names: {'a+b': base.defaults()}[names]\n")
    assert reader.ablation_keys(f"{own}:a+b") == set()
    cfg = fine_tuning_config(args, [], runtime, None)
    assert [cfg.model.fields[name] for name in ("window", "width", "vocab")] == [16, 16, 300]


@pytest.mark.parametrize(
    ("fields", "names", "fresh"),
    [
        (dict(head="mlm", pooler=False), (), "head,pooler"),
        (dict(head="none"), (), "head"),
        (dict(head="classes", pool="first", classes=3), (), "head"),
        (dict(head="classes", pool="first", classes=2), (), None),
        (dict(head="classes", pool="first", classes=2), ("Bad", "Good"), None),
        (dict(head="classes", pool="first", classes=2), ("good", "bad"), "head"),
    ],
)
def test_a_bert_becomes_a_classifier_of_the_data(
    fields: dict[str, Any], names: tuple[str, ...], fresh: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that it lacks, or has for other classes, starts fresh; all else is loaded."""
    cfg = taken(monkeypatch, folder(tmp_path / "H", "bert", names, **fields), REVIEWS)
    assert [cfg.model.fields[name] for name in ("head", "pool", "pooler")] == ["classes", "first", True]
    assert cfg.loss == "softmax"
    assert "classes" not in cfg.model.fields  # those of the data
    assert cfg.init_fresh == fresh


@pytest.mark.parametrize(
    ("family", "fields", "classes", "fresh"),
    [
        *[("vit", {}, 5, None), ("vit", {}, 3, "head"), ("vit", dict(head="none", pool="none"), 3, "head")],
        *[("resnet", {}, 5, None), ("resnet", {}, 3, "head"), ("resnet", dict(head="none"), 3, "head")],
    ],
)
def test_networks_of_images_with_other_classes(
    family: str, fields: dict[str, Any], classes: int, fresh: str | None, tmp_path: Path, monkeypatch
) -> None:
    path = folder(tmp_path / "H", family, **{"classes": 5, **fields})
    settings = {"image_processor_type": "ViTImageProcessor", "size": 8, "image_mean": [0.5], "image_std": [0.25]}
    (tmp_path / "H" / "preprocessor_config.json").write_text(json.dumps(settings))
    cfg = taken(monkeypatch, path, images(classes), data__std=1.0)
    assert (cfg.model.fields["head"], cfg.loss, cfg.init_fresh) == ("classes", "softmax", fresh)
    assert (cfg.data.size, cfg.data.mean, cfg.data.std) == ((8, 8), 0.5, 1.0)


CONFIG = ["--config=configs/gpt.py:quick", "--config.schedule.warmup=0"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [CONFIG, []])
def test_a_run_needs_no_more_than_its_workdir(more: list[str], tmp_path: Path, capsys) -> None:
    """The same command goes on when the folder has gone; carried out the table keeps its rows."""
    path, workdir = folder(tmp_path / "H", "llama"), tmp_path / "W"
    (tmp_path / "a.txt").write_text("the text of nobody " * 40)
    command = ["train", f"--pretrained={path}", f"--workdir={workdir}", f"--dataset={tmp_path}/a.txt", *more]
    command += ["--config.train.steps=1", "--config.optim.lr=0", "--config.log.table=false"]
    command += ["--config.eval.split=train", "--config.eval.limit=1", "--config.train.batch=8"]
    assert launch.main(command) == 0
    (tmp_path / "H").rename(tmp_path / "gone")
    assert launch.main(command) == 0
    assert "is complete: 1 of 1 updates" in capsys.readouterr().out
    assert launch.main([*command, "--pretrained=another"]) == 2
    assert "init_from: " in capsys.readouterr().err
    assert launch.main(["convert", f"--workdir={workdir}", f"--export={tmp_path}/again"]) == 0
    one, two = (flatten(models.load_pretrained(tmp_path / name)[1]["params"]) for name in ("gone", "again"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert checkpoint.load_manifest(str(workdir), 1)["config"]["model"]["vocab"] == 300


def test_what_a_classifier_predicts_of_a_row_is_its_loss(tmp_path: Path) -> None:
    """One class, or any number of them; a number, which one output alone is too, is refused by name."""
    path = folder(tmp_path / "H", "bert", head="classes", pool="first", classes=2)
    model, file = pretrained.read_config(path), tmp_path / "H" / "config.json"
    whole = json.loads(file.read_text())
    kinds = {"multi_label_classification": "sigmoid", "single_label_classification": "softmax", None: "softmax"}
    for kind, loss in kinds.items():
        file.write_text(json.dumps(whole | {"problem_type": kind}))
        assert published.default_loss(model, path) == loss
    for changes in ({"problem_type": "regression"}, {"id2label": {"0": "x"}}):
        file.write_text(json.dumps(whole | changes))
        with pytest.raises(UsageError, match="problem_type 'regression'"):
            published.default_loss(model, path)


def test_the_loss_of_a_run_is_that_of_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "H", "bert", head="classes", pool="first", classes=2)
    several = Texts(("ab", "c"), {"name": "tags"}, np.array([[0, 1], [1, 1]], np.float32), 2)
    assert taken(monkeypatch, path, several).loss == "sigmoid"


def from_folder(path: str, **model: Any) -> RunConfig:
    fields = dict(width=16, depth=1, heads=2, hidden=24, context=16, **model)
    data = DataConfig(tokenizer=path)
    return RunConfig(model=ModelConfig("llama", fields=fields), data=data, init_from=path)


def test_init_from_keeps_the_rows_of_a_table(tmp_path: Path) -> None:
    """Of a folder's table, which has more than its tokenizer has tokens; but for one that starts fresh, or was kept."""
    path = folder(tmp_path / "H", "llama")
    for changes, want in (({}, 300), ({"vocab": 512}, 512)):
        cfg = init_from.with_vocab_size(from_folder(path, **changes))
        assert cfg.model.fields["vocab"] == want
        again = init_from.with_vocab_size(from_folder(f"{path}/", **changes), cfg)
        assert again.model.fields["vocab"] == want
    for key, value in (("init_fresh", "embed/token,head"), ("data.tokenizer", "byte")):
        cfg = init_from.with_vocab_size(from_folder(path).replace({key: value}))
        assert "vocab" not in cfg.model.fields


@pytest.mark.parametrize("vocab", [257, 299])
def test_a_table_of_another_size_is_named(vocab: int, tmp_path: Path) -> None:
    """Also where padding gives both the same shape: no error of numpy's is met."""
    path = folder(tmp_path / "H", "llama")
    fields = dict(width=16, depth=1, heads=2, hidden=24, context=16)
    model = models.build("llama", vocab=vocab, **fields)
    found = init_from._read_pretrained(model, path)
    with pytest.raises(UsageError, match=rf"tensor 'model.embed_tokens.weight' is \(300, 16\), not \({vocab}, 16\)"):
        found.read({"params/embed/token": jax.sharding.SingleDeviceSharding(jax.devices()[0])})


def test_a_tokenizer_beyond_the_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "H", "llama", vocab=260)
    for verb in (["sample"], ["eval", "--dataset=pydoc_text"], ["train", "--dataset=pydoc_text", "--workdir=W"]):
        assert launch.main([*verb, f"--pretrained={path}"]) == 2
        assert "model.vocab = 260 is too small for the tokenizer's 270 tokens" in capsys.readouterr().err
