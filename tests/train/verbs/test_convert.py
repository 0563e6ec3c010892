"""Networks carried over, by the verbs: a run to the hub's form, and such a folder measured, sampled and brought in."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import launch
import models
from configs import reader
from data.text import tokenizer_reader, tokenizer_writer
from models.core.spec import flatten
from models.pretrained import class_names
from tests.support.cases import random_variables
from train import checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")

TEXT = ["--config.data.name=pydoc_text", "--config.train.batch=8", "--config.train.steps=2", "--config.eval.limit=1"]
SMALL = [
    *TEXT,
    "--config.schedule.warmup=0",
    "--config.model.width=32",
    "--config.model.depth=2",
    "--config.model.heads=4",
]
SMALL += ["--config.model.context=32", "--config.eval.batch=8", "--config.log.table=false", "--config.optim.lr=0.01"]

NEWER = ("mixtral", "gemma", "gemma4", "deepseek", "gpt_oss", "llama4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W, a run of a Llama with a BPE of its own and a running mean, and H, its folder of the hub."""
    home = tmp_path_factory.mktemp("export")
    learn = ["tokenizer", "--data=pydoc_text", "--vocab_size=400", f"--output={home}/bpe.json"]
    assert launch.main(learn) == 0
    more = [f"--config.data.tokenizer={home}/bpe.json", "--config.optim.ema=0.5", "--config.model.kv_heads=2"]
    assert launch.main(["train", "--config=configs/llama.py:quick", f"--workdir={home}/W", *SMALL, *more]) == 0
    (home / "bpe.json").unlink()  # from here on the checkpoint's own will do
    assert launch.main(["convert", f"--workdir={home}/W", f"--export={home}/H"]) == 0
    return home


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert launch.main(list(argv)) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_it_is_the_running_mean_that_goes_out(folder: Path) -> None:
    model, variables = models.load_pretrained(folder / "H")
    saved = checkpoint.load_manifest(f"{folder}/W", 2)["state"]
    for path, leaf in flatten(variables["params"]).items():
        whole = path == "embed/token"  # padded by zeros there
        assert whole or checkpoint.digests({"x": leaf})["x"] == saved[f"ema/{path}"]["digest"], path
    assert model.config.vocab == 400
    assert tokenizer_reader.read_tokenizer(folder / "H").vocab == 400


@pytest.mark.slow
def test_a_folder_is_measured_and_sampled_as_its_run(folder: Path, capsys) -> None:
    """A folder gives the figures and the text of its run; the output counts the tensors that were loaded."""
    sample = ["--prompt=The import", "--max_new_tokens=24", "--temperature=0"]
    ours = said(capsys, "sample", f"--workdir={folder}/W", *sample)
    theirs = said(capsys, "sample", f"--pretrained={folder}/H", *sample)
    assert theirs.endswith(ours)
    assert "20 tensors, 0 fresh, 0 left over" in theirs
    both = said(capsys, "sample", f"--pretrained={folder}/H", *sample, "--prompt=If", "--timing")
    assert ours.strip() in both
    assert "prefill: " in both
    assert "decode: " in both
    held = ["--dataset=pydoc_text", "--config.eval.split=validation", "--config.eval.batch=8", "--config.eval.limit=2"]
    ours = said(capsys, "eval", f"--workdir={folder}/W", *held)
    theirs = said(capsys, "eval", f"--pretrained={folder}/H", *held)
    figure = theirs.rpartition("validation: ")[2].partition(",")[0]
    assert figure.startswith("loss ")
    assert f"ema_{figure}" in ours


@pytest.mark.slow
def test_what_is_brought_in_goes_out_again_bit_for_bit(folder: Path, tmp_path: Path, capsys) -> None:
    assert "checkpoint 0 in" in said(capsys, "convert", f"--pretrained={folder}/H", f"--workdir={tmp_path}/W")
    said(capsys, "convert", f"--workdir={tmp_path}/W", f"--export={tmp_path}/H")
    names = "model.safetensors config.json tokenizer.json tokenizer_config.json generation_config.json"
    for name in names.split():
        assert (tmp_path / "H" / name).read_bytes() == (folder / "H" / name).read_bytes(), name
    # and another run may begin with it
    more = ["--config.model.kv_heads=2", f"--config.data.tokenizer={folder}/H", f"--config.init_from={tmp_path}/W"]
    out = said(capsys, "train", "--config=configs/llama.py:quick", f"--workdir={tmp_path}/N", *SMALL, *more)
    assert "11 leaves loaded" in out


@pytest.mark.slow
def test_what_begins_and_ends_a_text_goes_through_a_checkpoint(folder: Path, tmp_path: Path, capsys) -> None:
    """Only the files beside a tokenizer give it. An unknown key of config.json may be ignored by name."""
    hub = shutil.copytree(folder / "H", tmp_path / "hub")
    for name, more in (
        ("tokenizer_config.json", {"bos_token": "<|endoftext|>", "add_bos_token": True}),
        ("generation_config.json", {"eos_token_id": [0, 7, 9]}),
        ("config.json", {"novelty": 1}),
    ):
        (hub / name).write_text(json.dumps({**json.loads((hub / name).read_text()), **more}))
    (hub / "chat_template.jinja").write_text("{{ messages }}")
    assert launch.main(["convert", f"--pretrained={hub}", f"--workdir={tmp_path}/W"]) == 2
    assert "novelty = 1" in capsys.readouterr().err
    (tmp_path / ".again.part").mkdir()  # as a conversion leaves that is killed
    said(capsys, "convert", f"--pretrained={hub}", f"--workdir={tmp_path}/W", "--ignore_key=novelty")
    said(capsys, "convert", f"--workdir={tmp_path}/W", f"--export={tmp_path}/again")
    one, two = (tokenizer_reader.read_tokenizer(path) for path in (hub, tmp_path / "again"))
    assert (one.prefix, one.stop_ids) == ((0,), (0, 7, 9))
    assert (two.prefix, two.suffix, two.stop_ids, two.eot) == (one.prefix, one.suffix, one.stop_ids, one.eot)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [0, 7, 9]
    assert (tmp_path / "again" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not list(tmp_path.glob(".*.part"))
    # the split that there is, where none is asked for
    assert "pydoc_text, validation" in said(
        capsys, "eval", f"--pretrained={tmp_path}/again", "--dataset=pydoc_text", "--config.eval.limit=1"
    )


@pytest.mark.slow
def test_questions_are_put_to_a_folder(folder: Path, tmp_path: Path, capsys) -> None:
    lines = [{"context": "a", "choices": ["b", "c d"], "answer": i % 2} for i in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = said(capsys, "eval", f"--pretrained={folder}/H", f"--dataset={tmp_path}/q.jsonl")
    assert "choices: acc 0.5000 ± 0.2887, acc_norm 0.5000" in out
    assert "4 examples" in out
    words = said(capsys, "eval", f"--workdir={folder}/W", "--task=lambada", "--config.eval.limit=1")
    assert "last words: loss" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["eval", "--pretrained=H", "--workdir=W", "--dataset=x"], "give one of them"),
        (["eval", "--pretrained=H"], "--dataset is missing"),
        (["eval", "--pretrained=H", "--dataset=digits"], "has examples with"),
        (["eval", "--pretrained=H", "--dataset=pydoc_text", "--task=multiple_choise"], "'multiple_choice'"),
        (["eval", "--pretrained=H", "--dataset=pydoc_text", "--task=multiple_choice"], "has no questions"),
        (["eval", "--pretrained=H", "--dataset=pydoc_text", "--config.optim.lr=1"], "has no effect here"),
        (["eval", "--pretrained=H", "--dataset=pydoc_text", "--config.model.family=gpt"], "cannot be set: the folder"),
        (["eval", "--pretrained=H", "--dataset=nowhere.txt"], "no .txt, .jsonl, .csv, .tsv or .parquet file at"),
        (
            ["eval", "--pretrained=H", "--dataset=short.txt", "--config.eval.split=train"],
            "no document of two tokens or more",
        ),
        (["eval", "--workdir=W", "--dataset=digits"], "has examples with"),
        (["sample", "--pretrained=nowhere"], "nowhere"),
        (["sample", "--pretrained=H", "--top_p=2"], "top_p"),
        (["convert", "--workdir=W"], "--export=DIR"),
        (["convert", "--workdir=W", "--export=N", "--ignore_key=x"], "goes with --pretrained"),
        (["convert", "--workdir=W", "--pretrained=H"], "has checkpoints already"),
        (["convert", "--workdir=W", "--export=H"], "not an empty folder"),
    ],
)
def test_mistakes_get_one_line(argv: list[str], says: str, folder: Path, capsys) -> None:
    (folder / "short.txt").write_text("a")
    argv = [a.replace("=H", f"={folder}/H").replace("=W", f"={folder}/W") for a in argv]
    argv = [a.replace("=short.txt", f"={folder}/short.txt") for a in argv]
    capsys.readouterr()
    assert launch.main(argv) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the hub: the exported run for Llama, and for other families random parameters with its tokenizer."""
    if request.param == "llama":
        return folder / "H"
    fields = reader.read(f"configs/{request.param}.py:quick").model.fields
    model = models.build(request.param, **fields | {"vocab": 400, "context": 32, "width": 32, "depth": 2, "heads": 4})
    tokenizer, home = tokenizer_reader.read_tokenizer(folder / "H"), tmp_path_factory.mktemp(request.param)
    models.save_pretrained(model, random_variables(model), home, **tokenizer_writer.special_ids(tokenizer))
    tokenizer_writer.write_tokenizer(tokenizer, home)
    return home


FAMILIES = [pytest.param(f, marks=pytest.mark.slow) for f in ("llama", *NEWER)]


@pytest.mark.parametrize("exported", FAMILIES, indirect=True)
def test_transformers_writes_the_same_text(exported: Path, capsys) -> None:
    """Greedily, with the tokenizer that was exported."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
    theirs = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")
    module, loading_info = theirs.AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(loading_info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert module.generation_config.eos_token_id == 0  # what ends a text, of the BPE
    assert module.generation_config.bos_token_id is None
    tokenizer = theirs.AutoTokenizer.from_pretrained(exported)
    prompt = "The import"
    ids = torch.tensor(tokenizer(prompt, add_special_tokens=False)["input_ids"])[None]
    assert ids[0].tolist() == tokenizer_reader.read_tokenizer(exported).encode(prompt).tolist()
    made = module.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    ours = said(
        capsys, "sample", f"--pretrained={exported}", f"--prompt={prompt}", "--max_new_tokens=20", "--temperature=0"
    )
    text = tokenizer.decode(np.asarray(made), skip_special_tokens=True)
    assert ours.endswith(f"\n{text}\n")


@pytest.mark.slow
def test_a_classifier_goes_out_too(tmp_path: Path, capsys) -> None:
    """Without its data; and comes back with the figures that it had, and with theirs."""
    theirs = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
    given = os.environ.get("TFDS_DATA_DIR", "")
    if not (Path(given) / "glue" / "sst2").exists():
        pytest.skip("glue/sst2 is not prepared in TFDS_DATA_DIR")
    small = [
        f"--config.model.{f}" for f in ("size=None", "width=16", "depth=1", "heads=2", "pool=first", "pooler=true")
    ]
    small += [
        "--config.data.tokenizer=byte",
        "--config.data.max_length=24",
        "--config.train.batch=8",
        "--config.train.steps=1",
    ]
    small += ["--config.schedule.warmup=0", "--config.eval.limit=1", "--config.log.table=false"]
    run = ["train", "--config=configs/bert.py:sst2+scratch", f"--workdir={tmp_path}/W", *small]
    assert launch.main(run) == 0
    assert "parameters and its tokenizer" in said(
        capsys, "convert", f"--workdir={tmp_path}/W", f"--export={tmp_path}/H"
    )
    module, loading_info = theirs.BertForSequenceClassification.from_pretrained(
        tmp_path / "H", output_loading_info=True
    )
    assert not any(loading_info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    said(capsys, "convert", f"--pretrained={tmp_path}/H", f"--workdir={tmp_path}/V")
    said(capsys, "convert", f"--workdir={tmp_path}/V", f"--export={tmp_path}/G")
    assert (tmp_path / "G" / "model.safetensors").read_bytes() == (tmp_path / "H" / "model.safetensors").read_bytes()
    model, variables = models.load_pretrained(tmp_path / "H")
    tokens = np.arange(20)[None]
    with torch.no_grad():
        logits = module.eval()(torch.tensor(tokens)).logits
    np.testing.assert_allclose(model.predict(variables, tokens), logits, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["cover", "stretch"])
def test_a_network_that_sees_goes_out_with_its_classes_and_pixels(fit: str, tmp_path: Path, capsys) -> None:
    """Names, size and moments, so that the folder is measured as the run was; other orders of classes are refused."""
    folder = tmp_path / "photos"
    draw = np.random.default_rng(0)
    for name in ("Cat", "dog", "eel"):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(0, 256, (*draw.integers(9, 20, 2), 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    fields = {"size": None, "inputs": (12, 12, 3), "patch": 4, "width": 16, "depth": 1, "heads": 2}
    fields |= {"pool": "first", "class_token": True, "position": "learned"}
    knobs = {
        "name": folder,
        "size": 12,
        "resize_mode": fit,
        "interpolation": "bicubic",
        "mean": 0.4,
        "std": 0.3,
        "augment": None,
    }
    run = ["train", "--config=configs/vit.py:fashion", f"--workdir={tmp_path}/W", "--config.log.table=false"]
    run += [f"--config.model.{name}={value}" for name, value in fields.items()]
    run += [f"--config.data.{name}={value}" for name, value in knobs.items()]
    run += ["--config.train.batch=8", "--config.train.steps=2", "--config.schedule.warmup=0", "--config.eval.batch=4"]
    assert launch.main(run) == 0
    before = said(capsys, "eval", f"--workdir={tmp_path}/W")
    said(capsys, "convert", f"--workdir={tmp_path}/W", f"--export={tmp_path}/H")
    said(capsys, "convert", f"--pretrained={tmp_path}/H", f"--workdir={tmp_path}/V")
    said(capsys, "convert", f"--workdir={tmp_path}/V", f"--export={tmp_path}/G")
    assert (tmp_path / "G" / "preprocessor_config.json").read_text() == (
        tmp_path / "H" / "preprocessor_config.json"
    ).read_text()
    assert class_names.read(tmp_path / "H") == class_names.read(tmp_path / "G") == ("Cat", "dog", "eel")
    data = [f"--dataset={folder}", "--config.eval.batch=4"]
    folders = ["eval", f"--pretrained={tmp_path}/H", *data], ["eval", f"--workdir={tmp_path}/V", *data]
    after = [said(capsys, *args) for args in folders]
    assert f"data.resize_mode = {fit}, data.interpolation = bicubic, data.mean = (0.4, 0.4, 0.4)" in after[0]
    scores = [text.split(", test: ")[1].split(" (")[0] for text in (before, *after)]
    assert scores[0] == scores[1] == scores[2]
    (folder / "Cat").rename(folder / "Ant")
    for args in folders:
        assert "Cat, dog, eel, those of" in said(capsys, *args)
    (folder / "Ant").rename(folder / "_cat")
    (folder / "eel").rename(folder / "Eel")  # before dog now
    for args in (*folders, ["eval", f"--workdir={tmp_path}/W", *data]):
        assert launch.main(args) == 2
        assert "Eel, _cat, dog: names and order must be equal" in capsys.readouterr().err
