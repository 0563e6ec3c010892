"""Strange knobs, flags and files for the launcher: whatever they hold, it answers in one line that names them.

    python -m tests.support.fuzz --seconds=600 --seed=7          # prints every input that is answered otherwise

A case is a valid small input of one kind with one thing in it changed. The slow suite runs this for a minute.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import launch
from cli.flags import define_flags
from configs.knobs import KNOBS

LONGEST = 60  # seconds of one case
STRANGE = (
    *("", " ", "None", "nan", "inf", "-1", "0", "1", "2", "1e400", "1e-300", "1.5", "0x10", "1_000", "true", "ü", "*"),
    *(
        "(1, 2",
        "[[",
        "{}",
        "{[]: 1}",
        "()",
        "(0,)",
        "a,b",
        ",",
        ":",
        "1:2:3",
        "x:0.5",
        "/dev/null",
        "..",
        "/",
        "'",
        '"',
    ),
    *("\n", "a\0b", "\udcff", "9" * 20, "-" + "9" * 20, "9" * 5000, "x" * 300, "x " * 2500, "(" * 300, "mnist:9.9.9"),
)
VALUES = (
    None,
    [],
    {},
    True,
    -1,
    0,
    1.5,
    10**20,
    1e300,
    "",
    "x",
    "x" * 300,
    "\ud800",
    [[]],
    {"a": []},
    [1, "x"],
    "9" * 30,
)
CALM = (
    "num_processes",
    "process_id",
    "coordinator",
    "cpu_devices",
    "debug",
    "help",
    "cache",
)  # flags of the whole process
CONFIG = """from configs import base

def get_config(names=""):
    cfg = base.defaults()
    cfg.model.family, cfg.data.name, cfg.train.steps = "mlp", "xor", 1
    return {}
"""
RETURNS = (
    *("None", "3", "[]", "'x'", "{}", "cfg.to_dict()", "cfg.train", "get_config()", "1 / 0", "names.x", "exit(7)"),
    *("__import__('nosuch')", "cfg.update({'train': {'steps': 'x'}})", "base.config('x', {}, {})", "input", "cfg.lr"),
)

ENVIRONMENT_ERRORS = (
    "CorruptCheckpoint",
    "Diverged",
    "NotFinite",
    "SaveError",
)  # errors of ours that the world causes, not the input
Case = tuple[list[str], tuple[str, ...]]  # the command, and words of which its answer must hold one


class Fuzz:
    """Valid seeds in a folder, and cases made of them by a random generator."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.work, configs = folder / "work", Path(launch.__file__).parent / "configs"
        self.configs = configs
        quiet = ["--config.log.table=false", "--config.train.steps=1", "--config.train.batch=8"]
        self.xor = ["train", f"--workdir={self.work}", f"--config={configs}/mlp.py:xor", *quiet]
        self.gpt = ["train", f"--config={configs}/gpt.py:quick", *quiet, "--config.schedule.warmup=0"]
        self.gpt += [f"--config.model.{k}" for k in ("width=8", "depth=1", "heads=1", "context=8")]
        self.run, self.hub = folder / "run", folder / "hub"
        for argv in (
            ["train", f"--workdir={self.run}", *self.xor[2:]],
            [*self.gpt, f"--workdir={folder / 'gpt'}"],
            ["convert", f"--workdir={folder / 'gpt'}", f"--export={self.hub}"],
        ):
            code, said = run_command(argv)
            assert code == 0, said
        self._write_data()
        self.kinds: list[Callable[[], Case]] = [self.knob, self.flag, self.config_file, self.file]

    def _write_data(self) -> None:
        draw = np.random.default_rng(0)
        for name in ("train/a/1", "train/b/2", "test/a/3", "test/b/4"):
            path = self.folder / "classes" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
        boxes = self.folder / "boxes"
        (boxes / "train2017").mkdir(parents=True)
        (boxes / "annotations").mkdir()
        shutil.copytree(boxes / "train2017", boxes / "val2017")
        for split in ("train", "val"):
            Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(boxes / f"{split}2017" / "a.jpg")
            instances = {
                "images": [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 32}],
                "categories": [{"id": 1, "name": "cell"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 9], "iscrowd": 0}],
            }
            (boxes / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(instances))
        quiz = {"question": "a?", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "A"}
        (self.folder / "quiz.jsonl").write_text((json.dumps(quiz) + "\n") * 2)
        (self.folder / "text.txt").write_text("a text of some words\n" * 40)
        words = self.folder / "words"
        words.mkdir()
        (words / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c"]))
        net = "[net]\nheight=32\nwidth=32\nchannels=3\n\n[convolutional]\nfilters=4\nsize=3\nstride=2\npad=1\n"
        net += "activation=leaky\n\n[convolutional]\nfilters=21\nsize=1\nactivation=linear\n\n[yolo]\nmask=0,1,2\n"
        net += "anchors=1,1,2,2,3,3\nclasses=2\nnum=3\n"
        (self.folder / "darknet").mkdir()
        (self.folder / "darknet" / "net.cfg").write_text(net)
        weights = np.zeros(4 + 4 * 3 * 9 + 21 * 4 + 21, np.float32)
        (self.folder / "darknet" / "net.weights").write_bytes(
            np.array([0, 2, 0, 0, 0], np.int32).tobytes() + weights.tobytes()
        )

    def knob(self) -> Case:
        """A knob, or a field of the model, of a strange value."""
        fields = ("hidden", "inputs", "classes", "activation", "dropout", "init", "nosuch", "args.x")
        key = self.random.choice(  # a legal data.workers may start a thousand processes
            [*(key for key in KNOBS if key != "data.workers"), *(f"model.{name}" for name in fields)]
        )
        value = self.random.choice(STRANGE)
        return [*self.random.choice((self.xor, [*self.gpt, f"--workdir={self.work}"])), f"--config.{key}={value}"], (
            *key.split("."),
            key,
        )

    def flag(self) -> Case:
        """A flag of any verb, with a strange value."""
        verb = self.random.choice(list(launch.VERBS))
        name = self.random.choice([n for n in define_flags(verb) if n not in CALM] or ["nosuch"])
        given = {
            "workdir": self.run,
            "pretrained": self.hub,
            "export": self.folder / "to",
            "output": self.folder / "to",
            "dataset": "xor",
        } | ({"data": "pydoc_text"} if verb == "tokenizer" else {})  # the doctor prints what it finds in data
        calm = [f"--{n}={given[n]}" for n in define_flags(verb) if n in given and n != name]
        drop = self.random.choice(("--pretrained", "--workdir")) if verb != "train" else "--pretrained"
        return [verb, *(a for a in calm if not a.startswith(drop)), f"--{name}={self.random.choice(STRANGE)}"], ("",)

    def config_file(self) -> Case:
        """A config file whose function gives, or does, something else."""
        path = self.folder / "strange.py"
        text = CONFIG.format(self.random.choice(RETURNS))
        if self.random.random() < 0.3:
            text = self.changed(text.encode(), text=True).decode(errors="replace")
        path.write_text(text, errors="replace")
        return ["train", f"--workdir={self.work}", f"--config={path}", "--config.loss=nosuch"], (str(path), "loss")

    def file(self) -> Case:
        """One of the files that Canon reads, of which something has changed."""
        names = [
            *(
                (self.hub / name)
                for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json")
            ),
            *(self.folder / "classes" / "train" / "a" / "1.png", self.folder / "words" / "vocab.txt"),
            *(self.folder / "boxes" / name for name in ("annotations/instances_train2017.json", "train2017/a.jpg")),
            *(self.folder / "darknet" / name for name in ("net.cfg", "net.weights")),
            *(self.folder / name for name in ("quiz.jsonl", "text.txt")),
            *(self.run / "metrics.jsonl", self.run / "config.json", *self.run.glob("checkpoints/*/manifest.json")),
        ]
        path = self.random.choice([p for p in names if p.exists()])
        top = path.relative_to(self.folder).parts[0]
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        source = self.folder / top
        (shutil.copytree if source.is_dir() else shutil.copy)(
            source, copy if source.is_dir() else self._single(copy, top)
        )
        there = copy / path.relative_to(source) if source.is_dir() else copy / top
        self._change(there)
        stop = "--config.model.nosuch=1"  # ends what is right so far, before anything compiles
        argv = {
            "hub": [*self.random.choice((["convert"], ["sample", "--max_new_tokens=1"])), f"--pretrained={copy}"],
            "classes": ["train", f"--config={self.configs}/cnn.py:digits", f"--config.data.name={copy}", stop],
            "words": [*self.gpt, f"--config.data.tokenizer={copy}", stop],
            "boxes": ["train", f"--config={self.configs}/yolo.py:bccd", f"--config.data.name={copy}", stop,
                      "--config.data.split=train2017", "--config.eval.split=val2017"],
            "darknet": ["convert", f"--pretrained={copy}"],
            "quiz.jsonl": ["eval", f"--pretrained={self.hub}", f"--dataset={there}"],
            "text.txt": [*self.gpt, f"--config.data.name={there}", "--config.data.tokenizer=char", stop],
            "run": self.random.choice((["train"], ["eval"])),
        }[top]  # fmt: skip
        workdir = [f"--workdir={copy}"] if top == "run" else [f"--workdir={self.work}"]
        takes = argv[0] in ("train", "convert") or top == "run"
        return [*argv, *(workdir if takes else [])], (str(copy), "nosuch", there.name, "--config is missing")

    @staticmethod
    def _single(folder: Path, name: str) -> Path:
        folder.mkdir()
        return folder / name

    def _change(self, path: Path) -> None:
        held = path.read_bytes()
        if path.suffix in (".json", ".jsonl") and self.random.random() < 0.7:
            lines = held.decode().splitlines() if path.suffix == ".jsonl" else [held.decode()]
            i = self.random.randrange(len(lines))
            lines[i] = json.dumps(self._other(json.loads(lines[i])))
            path.write_text("\n".join(lines) + "\n", errors="surrogatepass")
        else:
            path.write_bytes(self.changed(held, text=path.suffix in (".json", ".jsonl", ".txt", ".cfg")))

    def _other(self, value: Any) -> Any:
        """A JSON value, one of whose parts is another, is gone or is there twice."""
        if not isinstance(value, dict | list) or not value or self.random.random() < 0.15:
            return self.random.choice(VALUES)
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, chance = self.random.choice(keys), self.random.random()
        if chance < 0.15:
            del value[key]
        elif chance < 0.2 and isinstance(value, list):
            value.append(value[key])
        else:
            value[key] = self._other(value[key])
        return value

    def changed(self, held: bytes, text: bool) -> bytes:
        """Bytes with a part gone, doubled, in its place something else, or cut off."""
        i = self.random.randrange(len(held) + 1)
        j = min(len(held), i + self.random.choice((1, 2, 8, 64)))
        strange = self.random.choice(STRANGE).encode(errors="surrogateescape")
        return self.random.choice(
            (
                held[:i],
                held[:i] + held[j:],
                held[:j] + held[i:],
                held[:i] + strange + held[j:],
                held[:i] + self.random.randbytes(j - i) + held[j:],
                held[:i] + "\ufeff\u2028\x85".encode() + held[i:],
                b"[" * 100_000 if text else b"\0" * len(held),
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            )
        )

    def cases(self) -> Iterator[Case]:
        """Without end; each begins with no workdir of its own."""
        while True:
            case = self.random.choice(self.kinds)()
            for path in (self.work, self.folder / "to"):
                shutil.rmtree(path, ignore_errors=True)
            yield case


class Slow(BaseException):
    """A case that takes too long."""


def run_command(argv: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command, run in this process."""

    def ring(*_: object) -> None:
        raise Slow(f"no answer in {LONGEST} s")

    before = signal.signal(signal.SIGALRM, ring)
    others = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.alarm(LONGEST)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return launch.main(argv), err.getvalue()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        for number, handler in others.items():
            signal.signal(number, handler)


def find_fault(case: Case) -> str | None:
    """What is wrong with the launcher's answer to a case: None where nothing is."""
    argv, names = case
    try:
        code, said = run_command(argv)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"raises {type(error).__name__}: {error}"
    wrong = []
    if code not in (0, 1, 2):
        wrong.append(f"exit code {code}")
    if (code and said.count("\n") != 1) or "Traceback" in said:
        wrong.append("not one line")
    if code == 1 and "; --debug shows where]" in said and not any(f"[{name};" in said for name in ENVIRONMENT_ERRORS):
        wrong.append("a raw exception")
    if code and not any(name in said for name in names):
        wrong.append("names nothing")
    if len(said) > 3000:
        wrong.append("too long")
    return f"{', '.join(wrong)}: {said[:600].strip()}" if wrong else None


def find_faults(seconds: float, seed: int, folder: Path) -> Iterator[tuple[list[str], str]]:
    """The cases of some seconds whose answers are wrong, as (command, what is wrong)."""
    cases, end = Fuzz(folder, seed).cases(), time.monotonic() + seconds
    here = folder / "here"  # for what a strange name makes, which is no other case's
    while time.monotonic() < end:
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        os.chdir(here)
        argv, names = next(cases)
        if found := find_fault((argv, names)):
            yield argv, found


def main() -> int:
    """Print the faults of --seconds=S --seed=N, keep the files of each -> exit code 1 where there are some."""
    given = dict(a.removeprefix("--").split("=") for a in sys.argv[1:])
    count = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for argv, found in find_faults(float(given.get("seconds", 60)), int(given.get("seed", 0)), Path(folder)):
            count += 1
            print(f"{[a[:150] for a in argv]}\n    {found}", flush=True)
            if (copy := Path(folder) / "copy").exists() and "keep" in given and any("copy" in a for a in argv):
                shutil.copytree(copy, Path(given["keep"]) / str(count), dirs_exist_ok=True)
    print(f"{count} faults")
    return bool(count)


if __name__ == "__main__":
    sys.exit(main())
