"""Translators and detectors from the command line: trained, resumed, evaluated on other devices, and shown."""

from pathlib import Path

import pytest

import launch
from tests.support.boxed_folders import coco, write_coco

PAIRS = [
    ("one dog sleeps here", "ein Hund schläft jetzt hier"),
    ("two dogs sleep here", "zwei Hunde schlafen jetzt hier"),
    ("one cat sleeps here", "eine Katze schläft jetzt hier"),
    ("two cats sleep here", "zwei Katzen schlafen jetzt hier"),
]


def texts(folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        for side, name in enumerate(("en", "de")):
            lines = [pair[side] for pair in 8 * PAIRS]
            (folder / f"{split}.{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "knobs", "steps", "files"),
    [
        ("transformer", ("width=32", "hidden=64", "depth=1"), 120, ["attention.png", "translations.txt"]),
        ("seq2seq", ("width=32", "embed=32"), 6, ["attention.png", "translations.txt"]),
        ("seq2seq", ("width=32", "embed=32", "attention_score=none"), 6, ["translations.txt"]),
    ],
)
def test_a_translator(
    config: str,
    knobs: tuple[str, ...],
    steps: int,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A Transformer learns four sentences by heart; a BPE is learnt and goes along; BLEU is of the limited exam too."""
    args = [
        *("train", f"--workdir={tmp_path}/w", f"--config=configs/{config}.py:multi30k"),
        *(
            f"--config.data.name={texts(tmp_path / 'pairs')}",
            "--config.data.vocab_size=290",
            "--config.eval.split=test",
        ),
        *("--config.train.batch=16", "--config.schedule.name=constant", "--config.schedule.warmup=0"),
        *("--config.model.dropout=0", "--config.train.label_smoothing=0", "--config.eval.every=None"),
        *(f"--config.model.{knob}" for knob in knobs),
    ]
    assert launch.main([*args, f"--config.train.steps={steps // 2}"]) == 0
    more = [f"--config.train.steps={steps}", "--config.resume=extend"]
    assert launch.main([*args, *more]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert launch.main(["eval", f"--workdir={tmp_path}/w", "--config.eval.batch=4", "--config.eval.limit=2"]) == 0
    said = capsys.readouterr().out
    assert "(16 examples; ± standard error)" in said  # of 8 devices
    assert ("BLEU 100.00" if config == "transformer" else "BLEU ") in said
    assert sorted(p.name for p in (tmp_path / "w" / "plots").glob("eval-*")) == [f"eval-{steps}-{f}" for f in files]
    assert (
        "target ein Hund schläft jetzt hier"
        in (tmp_path / "w" / "plots" / f"eval-{steps}-translations.txt").read_text()
    )


@pytest.mark.slow
def test_a_mixture_of_pairs_has_rows_of_one_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (texts(tmp_path / name) for name in ("first", "second"))
    lines = (second / "train.en").read_text().splitlines()
    (second / "train.en").write_text("\n".join([lines[0] * 5, *lines[1:]]) + "\n")
    args = [
        *("train", f"--workdir={tmp_path}/w", "--config=configs/transformer.py:multi30k", "--config.train.steps=1"),
        *(f"--config.data.name={first},{second}", "--config.data.vocab_size=290", "--config.eval.split=test"),
        *("--config.train.batch=16", "--config.schedule.warmup=0", "--config.model.width=32", "--config.model.depth=1"),
    ]
    assert launch.main([*args, "--config.data.max_length=None"]) == 2
    assert "such as 64, not None" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert launch.main([*args, "--config.data.max_length=40"]) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a folder of COCO's, training and eval report the same mAP; eval also gives the precision of each class."""
    root = tmp_path / "set"
    for split in ("train", "val"):
        write_coco(root, coco(), split=split)
    args = [
        *("train", f"--workdir={tmp_path}/w", "--config=configs/yolo.py:bccd", f"--config.data.name={root}"),
        *("--config.data.size=(32, 64)", "--config.eval.split=val", "--config.train.batch=8", "--config.eval.batch=8"),
        *("--config.train.steps=2", "--config.schedule.warmup=0", "--config.eval.every=None"),
    ]
    assert launch.main([*args, "--config.data.mean=0.5"]) == 2
    assert "for images with boxes" in capsys.readouterr().err
    assert launch.main([*args, "--config.data.size=None"]) == 2
    assert "'data.size' must be rows and columns" in capsys.readouterr().err
    assert launch.main(args) == 0, capsys.readouterr().err
    trained = capsys.readouterr().out
    assert launch.main(["eval", f"--workdir={tmp_path}/w"]) == 0
    said = capsys.readouterr().out
    assert "average precision at 0.5: bird" in said
    last = next(line for line in trained.splitlines() if "map_50" in line).partition("map ")[2]
    assert last in said
    drawn = sorted(p.name for p in (tmp_path / "w" / "plots").glob("eval-2-*"))
    assert drawn == ["eval-2-boxes.png", "eval-2-precision.png"]
