"""Train, evaluate and sample the networks of Canon.

    python launch.py train  --config=configs/gpt.py:quickstart --workdir=runs/a   # goes on if runs/a has a checkpoint
    python launch.py eval   --workdir=runs/a            # or runs/a@500, @best, @latest, @all
    python launch.py sample --workdir=runs/a --prompt="The import statement"    # or --pretrained=DIR
    python launch.py convert --pretrained=DIR --workdir=runs/b     # and back: --workdir=runs/b --export=DIR
    python launch.py tokenizer --data=TEXT --output=bpe.json
    python launch.py doctor                             # devices, versions, data folder, disk; or --data=FOLDER
    python launch.py list                               # families; or: list configs/gpt.py, list knobs optim

`python launch.py VERB --help` explains a verb and its flags. A config is a file, a named config in it, and ablations:
`configs/gpt.py:shakespeare+no_warmup`. `train` takes any knob of configs/knobs.py, in any order; `eval`, `sample` and
`convert` take those that affect them: `--config.optim.lr=3e-4 --config.mesh=fsdp:4,tp:2 --config.eval.every=None`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 4 interrupted and saved (run the same command again).
"""

import os
import sys

from cli import flags, process, runtime
from cli.process import DONE, FAILED, USAGE
from cli.verbs import VERBS
from errors import unknown

DEBUG = ("--debug", "--debug=true")  # show the traceback of an error


def main(argv: list[str]) -> int:
    """Run one verb -> exit code. An error prints one line; with --debug it is raised."""
    process.open_streams()
    if not argv or argv[0] in ("--help", "-h", "help"):
        process.print_text(__doc__.strip())
        return DONE if argv else USAGE
    if argv[0] == "--version":
        process.print_text(runtime.version())
        return DONE
    debug = any(flag in argv for flag in DEBUG)
    try:
        process.require_cwd()
        return _run_verb(argv[0], [a for a in argv[1:] if a not in DEBUG])
    except KeyboardInterrupt:
        process.print_error("interrupted")
        return FAILED
    except BaseException as error:  # a library may panic or exit, which is not an Exception
        if debug:
            raise
        text, code = process.error_line(error, [a.partition("=")[2] for a in argv])
        process.print_error(f"launch.py {argv[0]}: {text}")
        return code


def _run_verb(verb: str, argv: list[str]) -> int:
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    if "--help" in argv or "-h" in argv:
        process.print_text(flags.help_text(verb))
        return DONE
    return VERBS[verb](*flags.parse(verb, argv))


if __name__ == "__main__":
    if sys.argv[1:2] in (["train"], ["eval"], ["sample"]):
        process.restart_with_huge_pages(os.environ)
    process.exit_process(main(sys.argv[1:]))
