"""Canon from Python: the functions that a notebook or a script of one's own calls.

    import canon
    result = canon.train(canon.config("configs/gpt.py:quick", {"train.steps": 200}), "runs/a")
    model, variables, tokenizer = canon.load("runs/a@best")
    logits = model.predict(variables, tokenizer.encode("The statement")[None])
    print(canon.generate(model, variables, tokenizer, "The statement", max_new_tokens=50))

docs/python.md has an example of each. A mistake raises `canon.UsageError`, whose message is one line.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax

from configs import reader
from configs.knobs import Knobs, RunConfig, flatten
from configs.section import fits, to_python
from configs.unread import require_effect, unread
from data.text.tokenizer_reader import read_tokenizer as load_tokenizer
from data.text.tokenizers import Tokenizer
from errors import UsageError, quote
from models import Model, build, load_pretrained, save_pretrained
from models.core.gradients import plain_gradients
from models.core.types import Variables
from train import checkpoint, run
from train.evaluate.evaluate import Scores
from train.evaluate.losses import losses
from train.generate import sample
from train.generate.stream import encode_prompt, stream_texts
from train.runtime import Runtime, find_revision
from train.trainer import RunResult
from train.update.precision import products_of
from train.verbs import evaluate as evaluate_verb
from train.verbs import load_model
from train.workdir import normalize_workdir

T = TypeVar("T")
CLONE = Path(__file__).parent
MOST = 2**32 - 1  # largest int that generate takes; of a larger seed jax.random.key drops bits

__all__ = [
    "LoadedCheckpoint",
    "Model",
    "RunConfig",
    "RunResult",
    "Scores",
    "UsageError",
    "build",
    "config",
    "evaluate",
    "generate",
    "load",
    "load_pretrained",
    "load_tokenizer",
    "losses",
    "plain_gradients",
    "save_pretrained",
    "train",
]


class LoadedCheckpoint(NamedTuple):
    """A model with its variables on one device; `tokenizer` is None for a model that reads no text."""

    model: Model
    variables: Variables
    tokenizer: Tokenizer | None


def config(source: str | os.PathLike[str] | None = None, knobs: Knobs | None = None) -> RunConfig:
    """The config of `path/to/file.py:name+ablation` (None: the defaults) with the values of some knobs, by dotted key.

    A path is one below the working folder, else below Canon's clone. Raises UsageError as the launcher does.
    """
    if source is None:
        return RunConfig().replace(knobs or {})
    if not isinstance(source, str | Path):
        raise UsageError(f"a config is path/to/file.py:name, a text or Path, not {quote(source)}")
    path, colon, names = str(source).partition(":")
    here = CLONE / path
    found = f"{here}{colon}{names}" if here.is_file() and not Path(path).is_file() else str(source)
    return reader.read(found).replace(knobs or {})


def train(
    config: RunConfig, workdir: str | os.PathLike[str], *, devices: Sequence[jax.Device] | None = None
) -> RunResult:
    """Train in a workdir on devices (None: all), or go on with the run that it holds. Prints as the launcher does.

    A knob without effect is refused. One that the config file sets passes if `replace` changes what it was for, such as
    the optimizer. Raises UsageError for a config that cannot run and for a workdir of another run, and the errors of
    training.
    """
    if not isinstance(config, RunConfig):
        raise UsageError(f"train takes a RunConfig, as canon.config('configs/gpt.py:quick'), not {quote(config)}")
    runtime, find_unread = _runtime(find_revision()), partial(unread, given=config.given)
    return run.train(config, normalize_workdir(os.fspath(workdir)), runtime, find_unread, _listed(devices))


def load(name: str | os.PathLike[str], device: jax.Device | None = None) -> LoadedCheckpoint:
    """The model, variables and tokenizer of a run's checkpoint, `W`, `W@500`, `W@best` or `W@latest`, on one device.

    Its data need not exist. Of a run with averaged parameters (optim.ema, schedule_free) it takes these. Damaged
    checkpoints are named and passed over, as by the launcher. Raises UsageError if there is no checkpoint, and
    checkpoint.CorruptCheckpoint if none can be restored.
    """
    device = device or jax.local_devices()[0]

    def load_one(config: RunConfig, workdir: str, n: int, runtime: Runtime) -> LoadedCheckpoint:
        opened = load_model.open_without_data(config.replace({"mesh": "dp:1"}), workdir, n, runtime, [device])
        variables = {part: tree for part, tree in opened.variables.items() if tree}
        sharding = jax.sharding.SingleDeviceSharding(device)  # not of the mesh, so that no context is needed
        return LoadedCheckpoint(opened.setup.model, jax.device_put(variables, sharding), opened.setup.tokenizer)

    return _first(name, load_one)


def evaluate(
    name: str | os.PathLike[str], knobs: Knobs | None = None, *, devices: Sequence[jax.Device] | None = None
) -> Scores:
    """The scores of a run's checkpoint on its held-out split, as the verb `eval` prints them.

    `knobs` are other values of its config, as {"data.name": "my.txt", "eval.split": "train"}. Raises as `load`, and
    UsageError for data that do not fit and for a knob that has no effect on an evaluation.
    """
    changes = flatten(knobs or {})

    def evaluate_one(config: RunConfig, workdir: str, n: int, runtime: Runtime) -> Scores:
        config = config.replace(changes)
        require_effect(changes)
        return evaluate_verb.evaluate_checkpoint(config, workdir, n, runtime, _listed(devices), changes)

    return _first(name, evaluate_one)


def generate(
    model: Model,
    variables: Variables,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = 256,
    seed: int = 0,
    stop: Sequence[str] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> str:
    """The text with which a language model continues a prompt, to an end token or before one of the texts `stop`.

    A temperature of 0 is greedy. Products have the precision of the model's training, as in the verb `sample`. Raises
    UsageError for a model that does not generate text and for illegal settings.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise UsageError(f"generate takes a tokenizer, as load returns for a model of text, not {quote(tokenizer)}")
    stop = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else stop
    given = {"prompt": (prompt, "str"), "max_new_tokens": (max_new_tokens, "int"), "seed": (seed, "int")}
    given |= {"stop": (stop, "tuple[str]"), "temperature": (temperature, "float"), "top_k": (top_k, "int | None")}
    given |= {"top_p": (top_p, "float | None"), "min_p": (min_p, "float | None")}
    for name, (value, kind) in {**given, "repetition_penalty": (repetition_penalty, "float")}.items():
        if not fits(to_python(value), kind, MOST):
            raise UsageError(f"{name} takes {kind}{' up to 2^32 - 1' * (kind == 'int')}, not {quote(value)}")
    if seed < 0:
        raise UsageError(f"seed takes 0 or more, not {seed}")
    ids = [encode_prompt(tokenizer, prompt)]
    how = sample.Sampling(temperature, top_k, top_p, min_p, repetition_penalty, tokenizer.stop_ids)
    chunks = sample.generate(model, variables, ids, jax.random.key(seed), count=max_new_tokens, sampling=how)
    with jax.default_matmul_precision(products_of(getattr(model.config, "compute", "float32"))):
        return "".join(new for (new,) in stream_texts(tokenizer, ids, chunks, [text for text in stop if text]))


def _first(name: str | os.PathLike[str], use: Callable[[RunConfig, str, int, Runtime], T]) -> T:
    """The result of `use(config, workdir, n, runtime)` for the first checkpoint of a name that can be restored."""
    workdir, which = checkpoint.split_name(normalize_workdir(os.fspath(name)))
    if which == "all":
        raise UsageError(f"{name} names all checkpoints; give one, such as {workdir}@best")
    runtime = _runtime()
    steps, read_config = checkpoint.select(workdir, which, runtime.say), load_model.config_reader(workdir, runtime)

    def use_checkpoint(n: int) -> T:
        return use(read_config(n), workdir, n, runtime)

    return checkpoint.first_restorable(workdir, steps, use_checkpoint, runtime.say)[1]


def _runtime(revision: str | None = None) -> Runtime:
    """The Runtime of this process. Raises UsageError if it is one of several of a distributed run."""
    if (count := jax.process_count()) > 1:
        raise UsageError(
            f"canon.train, load and evaluate run in one process, and jax.distributed has {count}: "
            f"start launch.py in each, with --coordinator"
        )
    return Runtime(time.time, os.environ, sys.stdout, revision=revision, monotonic=time.monotonic)


def _listed(devices: Sequence[jax.Device] | None) -> list[jax.Device] | None:
    if devices is None:
        return None
    listed = list(devices) if isinstance(devices, Iterable) else []
    if not listed or not all(isinstance(device, jax.Device) for device in listed):
        raise UsageError(f"devices takes a list of one or more of jax.devices(), or None for all, not {quote(devices)}")
    return listed
