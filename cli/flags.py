"""The help text and the flags of each verb, and how a command line is parsed."""

import re

from absl import flags

import renamed
from errors import UsageError, quote, unknown

Assignments = list[tuple[str, str]]  # (KEY, VALUE) of each --config.KEY=VALUE
LONGEST_NAME = 255  # bytes, of one folder or file, on every common disk
PATHS = (
    *("--workdir", "--config", "--pretrained", "--export", "--dataset", "--data", "--output", "--split"),
    *(f"--config.{key}" for key in ("data.name", "data.tokenizer", "data.split", "eval.split", "init_from")),
)

HELP = {
    "train": """Train a model. --config names the config, --workdir the folder for its files.

Run the same command again to continue from the newest intact checkpoint. Without --config, train uses the config in the
workdir.

--pretrained=DIR fine-tunes a network in the format of the Hugging Face hub. The family, sizes, vocabulary, tokenizer
and image preprocessing come from DIR; a head for other classes than the data's is initialised afresh. --config then
sets how to train. The default is AdamW with a learning rate of 5e-5, linear decay and 8 rows per update. The
checkpoints are complete: DIR is not needed again.

    python launch.py train --pretrained=DIR --dataset=sst2 --config.train.steps=2000 --workdir=W

Several hosts train together if each starts one process. To try it on one host:

    python launch.py train --config=… --workdir=… --coordinator=HOST:PORT --num_processes=2 --process_id=0

Try first:  python launch.py train --config=configs/gpt.py:quickstart --workdir=runs/quickstart
            python launch.py train --config=configs/cnn.py:digits --workdir=runs/a --cpu_devices=8 --config.mesh=dp:8
""",
    "eval": """Restore a checkpoint, on any devices, and evaluate it on the config's held-out split.

--workdir takes W (its newest intact checkpoint), W@n, W@best or W@all. --dataset or knobs choose other data. The split
is --config.eval.split; if that is not given and --dataset lacks it, test, else validation. Plots of checkpoint n go to
W/plots/eval-n-*: confusion matrix, calibration and worst errors of a classifier, boxes and precision of a detector,
translations and attention of a translator, the passages of highest loss of a language model, the values of a regressor.

± is one standard error, clustered by document where text is cut into windows. The expected calibration error (ECE) is
the mean difference between a classifier's confidence and its accuracy.

--pretrained=DIR evaluates a folder in the format of the Hugging Face hub, with its tokenizer. --task chooses how a
language model is measured: perplexity reports loss, perplexity and bits per byte of text; multiple_choice reports acc
and acc_norm as lm-evaluation-harness defines them; lambada reports the accuracy of predicting the last word of a text.
The default is multiple_choice if the data has choices, else perplexity:

    python launch.py eval --pretrained=DIR --dataset=arc_challenge_test
    python launch.py eval --pretrained=DIR --dataset=lambada_openai_test --task=lambada

A DIR with a .cfg and a .weights file is a Darknet detector, evaluated on images with boxes.
""",
    "sample": """Print the text that a language model generates after --prompt. --workdir and --pretrained as for eval.

--temperature=0 takes the most likely token each time; --top_k=40 samples from the 40 most likely. Give --prompt several
times to generate from several prompts at once.
""",
    "convert": """Import a network from the Hugging Face hub's format or export to it; a detector from or to Darknet's.

    python launch.py convert --pretrained=DIR --workdir=W    # checkpoint 0, for eval, sample and init_from
    python launch.py convert --workdir=W --export=DIR        # a folder that transformers loads; also W@n, W@best
""",
    "tokenizer": """Train a byte-level BPE on text and write a tokenizer.json, for --config.data.tokenizer.

Try first:  python launch.py tokenizer --data=pydoc_text --vocab_size=1024 --output=bpe.json
""",
    "doctor": """Check what a run needs: devices, versions, data folder, disk, compiled programs.

Report each problem and how to fix it.

--data=NAME checks a data set instead, a folder or a name as for --config.data.name, and lists all unreadable files.
""",
    "list": """List what there is to choose from.

    python launch.py list                    # the families, and their published sizes with parameter counts
    python launch.py list configs/gpt.py     # the configs and ablations of a file
    python launch.py list knobs optim        # the knobs of a section, or of all
""",
}


def define_flags(verb: str) -> flags.FlagValues:
    """The plain flags of a verb."""
    own = flags.FlagValues()

    def string_flag(name: str, default: str | None, says: str) -> None:
        flags.DEFINE_string(name, default, says, flag_values=own)

    def integer_flag(name: str, default: int | None, says: str, lower: int = 0, upper: int = 2**31 - 1) -> None:
        flags.DEFINE_integer(name, default, says, lower_bound=lower, upper_bound=upper, flag_values=own)

    def list_flag(name: str, default: list[str], says: str) -> None:
        flags.DEFINE_multi_string(name, default, says, flag_values=own)

    def float_flag(name: str, default: float | None, says: str, lower: float | None = None) -> None:
        flags.DEFINE_float(name, default, says, lower_bound=lower, flag_values=own)

    def bool_flag(name: str, says: str) -> None:
        flags.DEFINE_boolean(name, False, says, flag_values=own)

    bool_flag("debug", "show the traceback of an error")
    if verb != "list":
        integer_flag("cpu_devices", None, "number of simulated CPU devices", 1)
    if verb not in ("tokenizer", "list"):
        string_flag("cache", None, "folder for compiled programs, or none for no cache; None: the user's cache folder")
    if verb == "doctor":
        string_flag("data", None, "data set to check: a folder, a file or a name; several joined by commas")
    if verb not in ("doctor", "tokenizer", "list"):
        string_flag(
            "workdir", None, "folder of the run" + ("" if verb == "train" else ", or a checkpoint in it, as W@best")
        )
    if verb in ("train", "eval", "sample", "convert"):
        instead = "to fine-tune" if verb == "train" else "instead of a workdir"
        string_flag("pretrained", None, f"{instead}: a folder in the format of the Hugging Face hub")
        list_flag("ignore_key", [], "with --pretrained: a key of its config.json to ignore; may be repeated")
    if verb == "train":
        string_flag("config", None, "path/to/file.py:name+ablation")
        string_flag("coordinator", None, "host:port of process 0, if several processes train together")
        integer_flag("num_processes", 1, "number of processes that train together", 1)
        integer_flag("process_id", 0, "number of this process, from 0")
    if verb in ("train", "eval"):
        measured = "data set to evaluate on; None: the data of the workdir's config"
        string_flag("dataset", None, measured if verb == "eval" else "data set to train on; sets --config.data.name")
    if verb == "eval":
        string_flag(
            "task",
            None,
            "perplexity | multiple_choice | lambada; None: multiple_choice if the data has choices",
        )
    if verb == "convert":
        string_flag("export", None, "new or empty folder to write, in the format of the Hugging Face hub")
    if verb in ("doctor", "tokenizer"):
        string_flag("field", None, "text field, of a data set that has several or of rows in files")
    if verb == "tokenizer":
        string_flag("data", None, "data set to train on: a .txt file or folder, or a name")
        string_flag("split", "train", "split of the data set")
        integer_flag("vocab_size", 4096, "number of tokens, including 256 bytes and an end token", 257)
        string_flag("output", None, "tokenizer.json to write")
    if verb == "list":
        list_flag("words", [], "what to list; also without the flag, as above")
    if verb == "sample":
        list_flag("prompt", ["\n"], "text to continue; empty: generate from nothing; may be repeated")
        integer_flag("max_new_tokens", 300, "maximum number of tokens to generate", 1)
        float_flag("temperature", 0.8, "divides the logits; 0 takes the most likely token", 0)
        integer_flag("top_k", None, "sample from this many most likely tokens", 1)
        float_flag("top_p", None, "sample from the smallest set of tokens with this total probability")
        float_flag("min_p", None, "sample from tokens with this share of the highest probability")
        float_flag("repetition_penalty", 1.0, "lowers the logits of tokens that occurred before; 1: no penalty")
        list_flag("stop", [], "text that ends generation; may be repeated")
        bool_flag("timing", "report tokens per second of prefill and decoding")
        integer_flag("seed", 0, "seed of sampling", upper=2**32 - 1)
    return own


def help_text(verb: str) -> str:
    """What `VERB --help` prints."""
    described = define_flags(verb).get_help(include_special_flags=False).strip()
    return f"{HELP[verb]}\nusage:{described.removeprefix(f'{__name__}:')}"  # absl heads flags with their module


def parse(verb: str, argv: list[str]) -> tuple[flags.FlagValues, Assignments]:
    """The flags and the assigned knobs of a verb's arguments. Raises UsageError."""
    for text in argv:
        check_argument(text)
        refuse_renamed(verb, text)
    knobs = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    if verb != "train" and any(a.partition("=")[0] == "--config" for a in argv):
        raise UsageError(f"{verb} uses the checkpoint's config; change knobs by --config.KEY=VALUE")
    for text in knobs:
        if "=" not in text:
            raise UsageError(f"--config.{text} has no value; write --config.{text}=VALUE")
    args = define_flags(verb)
    try:
        rest = args(["launch.py", *(a for a in argv if not a.startswith("--config."))])[1:]
    except flags.Error as error:
        raise UsageError(str(error)) from None
    for name in args:
        if args[name].present and args[name].value == "":
            raise UsageError(f"--{name} is empty; give it a value, or leave it out")
    if rest and "words" in args:
        args.words = rest
    elif rest:
        raise UsageError(f"{quote(rest[0])} is not a flag; flags are written --name=value, as --workdir=runs/a")
    return args, [(key, value) for key, _, value in (text.partition("=") for text in knobs)]


def check_argument(argument: str) -> None:
    """Check that an argument is text, and that a path has no name longer than a disk allows. Raises UsageError."""
    name, _, value = argument.partition("=")
    if "\0" in argument or any("\ud800" <= sign <= "\udfff" for sign in argument):
        raise UsageError(f"{name.encode(errors='replace').decode()} is not text in the terminal's encoding")
    if name in PATHS and max(len(part.encode()) for part in re.split("[/,]", value)) > LONGEST_NAME:
        raise UsageError(f"{name}={quote(value)}: a file name has at most {LONGEST_NAME} bytes")


def refuse_renamed(verb: str, argument: str) -> None:
    """Refuse a flag under its old name. Raises UsageError with the new name."""
    name = argument.partition("=")[0].lstrip("-")
    for old, new in renamed.FLAGS.get(verb, {}).items():
        if argument.startswith("-") and name in (old, f"no{old}"):
            raise unknown("flag", f"--{old}", [f"--{new}"], {f"--{old}": f"--{new}"})
