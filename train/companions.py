"""Small files of a pretrained model that training does not use: checkpoints carry them, and an export writes them back.

They are chat templates, special-token names, and generation and image-preprocessing settings.
"""

import json
from contextlib import suppress
from functools import partial
from pathlib import Path

from data.files import expand_home
from data.text import tokenizer_reader, tokenizers
from documents import Json, parse_json, read_text
from errors import UsageError
from models import pretrained
from models.pretrained import preprocessing
from train import checkpoint, init_from

TEMPLATES = "additional_chat_templates"  # a folder of .jinja files
CHAT = ("chat_template.jinja", "chat_template.json", "special_tokens_map.json")  # written back unchanged
TOKENIZER, GENERATION, IMAGES = "tokenizer_config.json", "generation_config.json", preprocessing.FILE
LIMIT = 2**20  # maximum bytes of a file
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
SETTINGS = (  # keys of tokenizer_config.json that neither name a class of transformers nor change an id
    *("chat_template", "model_max_length", "model_input_names", "padding_side", "truncation_side"),
    *("clean_up_tokenization_spaces", "additional_special_tokens", "extra_special_tokens", *ROLES),
)


def from_folder(folder: str | Path, tokenizer: str | None) -> dict[str, str]:
    """The companion files of a folder, name -> text.

    `tokenizer` is the fingerprint of the run's tokenizer, None if it has none. If the folder's tokenizer differs, the
    result is {}.
    """
    if not Path(folder).is_dir():
        return {}
    if tokenizer is not None:
        own = None
        with suppress(UsageError):  # the folder may have no tokenizer
            own = tokenizers.fingerprint(tokenizer_reader.read_tokenizer(folder).description())
        if own != tokenizer:
            return {}
    names = (IMAGES,) if tokenizer is None else (*CHAT, TOKENIZER, GENERATION)
    paths = [Path(folder) / name for name in names]
    paths += sorted(Path(folder, TEMPLATES).glob("[!.]*.jinja")) if tokenizer is not None else []
    read = [path for path in paths if path.is_file() and path.stat().st_size <= LIMIT]
    return {path.relative_to(folder).as_posix(): read_text(path) for path in read}


def from_source(source: str | None, tokenizer: str | None) -> dict[str, str]:
    """The companion files of `init_from`: from its folder, or from its checkpoint's manifest."""
    if source is None:
        return {}
    source = expand_home(source)
    if pretrained.is_pretrained(source):
        return from_folder(source, tokenizer)
    workdir, steps = init_from.candidate_checkpoints(source)
    _, manifest = checkpoint.first_restorable(
        workdir, steps, partial(checkpoint.load_manifest, workdir), lambda line: None
    )  # `init_from.load` names the others
    return manifest.get("files") or {} if manifest["tokenizer"] == tokenizer else {}


def bos_and_eos(files: dict[str, str], ids: Json) -> Json:
    """`ids` (bos and eos), with the values of the files' generation_config.json where it has them."""
    given = _parse_settings(files, GENERATION)
    return {key: given.get(key, value) for key, value in ids.items()}


def write(files: dict[str, str], folder: Path, ids: Json, images: Json) -> None:
    """Write companion files into an exported folder, merging with the files that the export wrote.

    `ids` are keys for generation_config.json. The original preprocessor_config.json is written only if it describes the
    run's own image preprocessing, `images`.
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


def _parse_settings(files: dict[str, str], name: str) -> Json:
    found = parse_json(files.get(name, "{}"), name)
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, settings: Json) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")
