"""Small files beside a published network that no run reads: its checkpoints carry them, and an export writes them back.

A chat template, names of special tokens, settings of generation and of images.
"""

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from data.files import expand_home
from data.text import tokenizer_reader, tokenizers
from documents import parse_json, read_text
from errors import UsageError
from models import pretrained
from models.pretrained import preprocessing
from train import checkpoint, init_from

TEMPLATES = "additional_chat_templates"  # a folder of .jinja files, each of which is asked for by its name
CHAT = ("chat_template.jinja", "chat_template.json", "special_tokens_map.json")  # written as they were
TOKENIZER, GENERATION, IMAGES = "tokenizer_config.json", "generation_config.json", preprocessing.FILE
LIMIT = 2**20  # bytes of a file, at most
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
SETTINGS = (  # of a tokenizer_config.json that name no class of transformers and change no id
    *("chat_template", "model_max_length", "model_input_names", "padding_side", "truncation_side"),
    *("clean_up_tokenization_spaces", "additional_special_tokens", "extra_special_tokens", *ROLES),
)


def from_folder(folder: str | Path, tokenizer: str | None) -> dict[str, str]:
    """The files of a folder by name, for a run of its own tokenizer, or of none; `tokenizer` is the fingerprint."""
    if not Path(folder).is_dir():
        return {}
    if tokenizer is not None:
        own = None
        with suppress(UsageError):  # it may have none
            own = tokenizers.fingerprint(tokenizer_reader.read_tokenizer(folder).description())
        if own != tokenizer:
            return {}
    names = (IMAGES,) if tokenizer is None else (*CHAT, TOKENIZER, GENERATION)
    paths = [Path(folder) / name for name in names]
    paths += sorted(Path(folder, TEMPLATES).glob("[!.]*.jinja")) if tokenizer is not None else []
    read = [path for path in paths if path.is_file() and path.stat().st_size <= LIMIT]
    return {path.relative_to(folder).as_posix(): read_text(path) for path in read}


def from_source(source: str | None, tokenizer: str | None) -> dict[str, str]:
    """The files that come with what `init_from` names: of its folder, or those that its checkpoint carries."""
    if source is None:
        return {}
    source = expand_home(source)
    if pretrained.is_pretrained(source):
        return from_folder(source, tokenizer)
    workdir, steps = init_from.candidate_checkpoints(source)
    _, manifest = checkpoint.first_restorable(
        workdir, steps, partial(checkpoint.load_manifest, workdir), lambda line: None
    )  # `initial.load` names the others
    return manifest.get("files") or {} if manifest["tokenizer"] == tokenizer else {}


def bos_and_eos(files: dict[str, str], ids: dict[str, Any]) -> dict[str, Any]:
    """The ids that begin and end a text, as the generation_config.json among the files has them, where it has."""
    given = _parse_settings(files, GENERATION)
    return {key: given.get(key, value) for key, value in ids.items()}


def write(files: dict[str, str], folder: Path, ids: dict[str, Any], images: dict[str, Any]) -> None:
    """Write files into an exported folder that has those of its own.

    `ids` are keys for its generation_config.json. A preprocessor_config.json is written where it says of images what
    the run did with them, `images`.
    """
    text = (folder / "tokenizer.json").is_file()
    for name in (name for name in files if text and (name in CHAT or Path(name).parent == Path(TEMPLATES))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(files[name], "utf-8")
    if text and TOKENIZER in files:
        theirs = {key: value for key, value in _parse_settings(files, TOKENIZER).items() if key in SETTINGS}
        _write_json(folder / TOKENIZER, {**json.loads((folder / TOKENIZER).read_text()), **theirs})
    if generation := {**ids, **_parse_settings(files, GENERATION)}:
        _write_json(folder / GENERATION, generation)
    if IMAGES in files and (folder / IMAGES).is_file():
        ours = (folder / IMAGES).read_text()
        (folder / IMAGES).write_text(files[IMAGES], "utf-8")
        if preprocessing.from_folder(folder) != images:
            (folder / IMAGES).write_text(ours)


def _parse_settings(files: dict[str, str], name: str) -> dict[str, Any]:
    found = parse_json(files.get(name, "{}"), name)
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")
