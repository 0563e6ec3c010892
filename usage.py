"""What each verb of the launcher says of itself, and the flags that it takes."""

import re

from absl import flags

import renamed
from errors import UsageError, quote, unknown

LONGEST_NAME = 255  # bytes, of one folder or file, on every common disk
PATHS = (
    *("--workdir", "--config", "--pretrained", "--export", "--dataset", "--data", "--output", "--split"),
    *(f"--config.{key}" for key in ("data.name", "data.tokenizer", "data.split", "eval.split", "init_from")),
)

HELP = {
    "train": """Train a model: --config says which, --workdir where its files go.

The same command again goes on from the newest good checkpoint; a finished run says so. With no --config the one in the
workdir is taken.

--pretrained=DIR fine-tunes a network in the format of the Hugging Face hub. The family, sizes, vocabulary, tokenizer
and image preprocessing come from DIR; a head for other classes than the data's is initialised afresh. --config then
sets how to train. The default is AdamW with a learning rate of 5e-5, linear decay and 8 rows an update. The checkpoints
are complete: DIR is not needed again.

    python launch.py train --pretrained=DIR --dataset=sst2 --config.train.steps=2000 --workdir=W

On several hosts, or for a trial of it on one, start one process each:

    python launch.py train --config=… --workdir=… --coordinator=HOST:PORT --num_processes=2 --process_id=0

Try first:  python launch.py train --config=configs/gpt.py:quickstart --workdir=runs/quickstart
            python launch.py train --config=configs/cnn.py:digits --workdir=runs/a --cpu_devices=8 --config.mesh=dp:8
""",
    "eval": """Restore a checkpoint, on any devices, and measure it on the config's held-out split.

--workdir takes W (its newest good checkpoint), W@n, W@best or W@all. Other data by --dataset, or by knobs. The split
is --config.eval.split; where it is not given and --dataset lacks it, test, else validation. W/plots/eval-n-* shows
where checkpoint n errs: confusion matrix, calibration and worst mistakes of a classifier, boxes and precision of a
detector, translations and attention of a translator, the passages of highest loss of a language model, the values of a
regressor.

± is one standard error, over documents where text is cut into windows. The calibration error (ECE) is the mean distance
of a classifier's confidence to its accuracy.

--pretrained=DIR evaluates a folder in the format of the Hugging Face hub, with its tokenizer. --task chooses how a
language model is measured: perplexity reports loss, perplexity and bits per byte of text; multiple_choice reports acc
and acc_norm as lm-evaluation-harness defines them; lambada reports the accuracy of predicting the last word of a text.
The default is multiple_choice if the data has choices, else perplexity:

    python launch.py eval --pretrained=DIR --dataset=arc_challenge_test
    python launch.py eval --pretrained=DIR --dataset=lambada_openai_test --task=lambada

A DIR with a .cfg and a .weights file is a detector of Darknet's, measured on images with boxes.
""",
    "sample": """Print the text that a language model puts after --prompt. --workdir and --pretrained as for eval.

--temperature=0 takes the likeliest token each time; --top_k=40 draws among the 40 likeliest. Several prompts, each with
a --prompt of its own, are written at once.
""",
    "convert": """Carry a network over from the Hugging Face hub, or to it; a detector from and to Darknet's two files.

    python launch.py convert --pretrained=DIR --workdir=W      # a checkpoint 0 that eval and sample take, and init_from
    python launch.py convert --workdir=W --export=DIR        # a folder that transformers loads; W@n, W@best too
""",
    "tokenizer": """Learn a byte-level BPE from text and write a tokenizer.json, which --config.data.tokenizer takes.

Try first:  python launch.py tokenizer --data=pydoc_text --vocab_size=1024 --output=bpe.json
""",
    "doctor": """Look at what a run needs: devices, versions, data folder, disk, compiled programs.

Say what is wrong and how to mend it.

--data=NAME reads a data set instead, a folder or a name as for --config.data.name, and names all files that cannot be.
""",
    "list": """List what there is to choose from.

    python launch.py list                    # the families, and their published sizes with their parameters
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

    flags.DEFINE_boolean("debug", False, "show the traceback of an error", flag_values=own)
    if verb != "list":
        integer_flag("cpu_devices", None, "simulate so many CPU devices", 1)

    def list_flag(name: str, default: list[str], says: str) -> None:
        flags.DEFINE_multi_string(name, default, says, flag_values=own)

    def float_flag(name: str, says: str) -> None:
        flags.DEFINE_float(name, None, says, flag_values=own)

    if verb not in ("tokenizer", "list"):
        string_flag(
            "cache", None, "where to keep compiled programs: a folder, or none; None is the user's cache folder"
        )
    if verb == "doctor":
        string_flag(
            "data", None, "a data set to read, all of it: a folder, a file or a name; several with commas between"
        )
    if verb not in ("doctor", "tokenizer", "list"):
        string_flag(
            "workdir", None, "the run's folder" + ("" if verb == "train" else ", or a checkpoint in it, as W@best")
        )
    if verb in ("train", "eval", "sample", "convert"):
        instead = "to go on from" if verb == "train" else "instead of a workdir"
        string_flag("pretrained", None, f"{instead}, a folder as the Hugging Face hub has it")
        list_flag("ignore_key", [], "with --pretrained, a key of its config.json to pass over; may be given again")
    if verb == "train":
        string_flag("config", None, "path/to/file.py:name+ablation")
        string_flag("coordinator", None, "host:port of process 0, where several processes train together")
        integer_flag("num_processes", 1, "how many processes train together", 1)
        integer_flag("process_id", 0, "which of them this is, from 0")
    if verb in ("train", "eval"):
        measured = "what to measure it on; for a workdir None is its own data"
        string_flag("dataset", None, measured if verb == "eval" else "what to train on, for --config.data.name")
    if verb == "eval":
        string_flag(
            "task",
            None,
            "perplexity | multiple_choice | lambada; None: multiple_choice if the data has choices",
        )
    if verb == "convert":
        string_flag("export", None, "a folder to write, new or empty, as the Hugging Face hub has it")
    if verb in ("doctor", "tokenizer"):
        string_flag("field", None, "which text of a set that has several, or of rows in files")
    if verb == "tokenizer":
        string_flag("data", None, "a data set to learn from: a .txt file or folder, or a name")
        string_flag("split", "train", "its split")
        integer_flag("vocab_size", 4096, "how many tokens to learn, the 256 bytes and an end among them", 257)
        string_flag("output", None, "the tokenizer.json to write")
    if verb == "list":
        list_flag("words", [], "what to list; stands alone too, as above")
    if verb == "sample":
        list_flag("prompt", ["\n"], "the text to go on from, empty begins one; given again, several at once")
        integer_flag("max_new_tokens", 300, "how many tokens to add", 1)
        flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest", lower_bound=0, flag_values=own)
        integer_flag("top_k", None, "draw among the so many likeliest", 1)
        float_flag("top_p", "among the fewest likeliest that have this probability together")
        float_flag("min_p", "among those with this share of the likeliest's probability")
        flags.DEFINE_float("repetition_penalty", 1.0, "lowers tokens that were there; 1 is none", flag_values=own)
        list_flag("stop", [], "a text that ends the writing; may be given again")
        flags.DEFINE_boolean("timing", False, "report tokens a second of reading and writing", flag_values=own)
        integer_flag("seed", 0, "of the draws", upper=2**32 - 1)
    return own


def check_argument(argument: str) -> None:
    """Hold an argument to be text, and a path among them to be one that a disk can have. Raises UsageError."""
    name, _, value = argument.partition("=")
    if "\0" in argument or any("\ud800" <= sign <= "\udfff" for sign in argument):
        raise UsageError(f"{name.encode(errors='replace').decode()} is not text in the terminal's encoding")
    if name in PATHS and max(len(part.encode()) for part in re.split("[/,]", value)) > LONGEST_NAME:
        raise UsageError(f"{name}={quote(value)}: a name of a file has at most {LONGEST_NAME} bytes")


def refuse_old_flag(verb: str, argument: str) -> None:
    """Refuse a flag under a name that it no longer has. Raises UsageError that gives the new name."""
    name = argument.partition("=")[0].lstrip("-")
    for old, new in renamed.FLAGS.get(verb, {}).items():
        if argument.startswith("-") and name in (old, f"no{old}"):
            raise unknown("flag", f"--{old}", [f"--{new}"], {f"--{old}": f"--{new}"})
