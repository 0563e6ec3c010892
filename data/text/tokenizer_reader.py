"""Reads published tokenizers from a file or folder, and converts them to a tokenizer.json.

    tokenizer.json                            unchanged
    vocab.json, merges.txt                    GPT-2's byte-level BPE; encoder.json, vocab.bpe in OpenAI's release
    vocab.txt                                 BERT's WordPiece
    tokenizer.model                           SentencePiece

Special tokens come from tokenizer_config.json, special_tokens_map.json, config.json and generation_config.json.
"""

import json
from pathlib import Path
from typing import Any

from data.files import expand_home
from data.text import added_tokens, sentencepiece
from data.text.subwords import EOT, SubwordTokenizer, as_usage_error, flatten_steps, load_tokenizer
from documents import Json, read_json, read_settings, read_text, reject_lfs_pointer, split_lines
from errors import UsageError, quote

SIDECARS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
USUAL_EOTS = (
    EOT,
    "<|end_of_text|>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "<eos>",
    "[SEP]",
)  # eot tokens to look for if none is set
# By the beginning of `tokenizer_class`: the classes that read each kind of file as we do. Others have further rules
# (Qwen2's splits, RoBERTa's ends, XLM-R's shifted ids), which only a tokenizer.json contains.
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
CLASSES = {
    "vocab.json": (*GENERIC, "GPT2", "CodeGen"),
    "vocab.txt": (*GENERIC, "Bert", "DistilBert", "Electra", "MobileBert"),
    "tokenizer.model": (*GENERIC, "Llama", "CodeLlama", "Gemma", "T5"),
}


def has_tokenizer(path: str) -> bool:
    """Whether a path exists, and so may be a tokenizer."""
    return Path(expand_home(path)).exists()


def read_tokenizer(path: str | Path) -> SubwordTokenizer:
    """The tokenizer of a file or folder. Raises UsageError if there is none, or it cannot be read."""
    path = Path(expand_home(str(path)))
    folder = path if path.is_dir() else path.parent
    names = {n.name for n in folder.iterdir() if not n.name.startswith(".")} if path.is_dir() else {path.name}
    sidecars = {
        name: read_settings(folder / name) for name in (*SIDECARS, "added_tokens.json") if (folder / name).is_file()
    }
    settings = _settings(sidecars, folder)
    tokens = added_tokens.read_added_tokens(sidecars, folder)
    pair = next((pair for pair in BPE_FILES if names & set(pair) and all((folder / n).is_file() for n in pair)), None)
    backend = None
    if "tokenizer.json" in names or (path.is_file() and path.suffix == ".json" and pair is None):
        file = folder / "tokenizer.json" if path.is_dir() else path
        text = read_text(file)
        backend = load_tokenizer(text, str(file))
        source = _set_prefix_space(text, settings, file)
        if tokens and "added_tokens_decoder" not in sidecars.get("tokenizer_config.json", {}):
            known = {token["content"] for token in json.loads(source).get("added_tokens") or []}
            tokens = [token for token in tokens if token["content"] not in known]
    elif pair:
        source = _byte_level(folder / pair[0], folder / pair[1], settings)
    elif "vocab.txt" in names:
        source = _word_piece(folder / "vocab.txt", settings)
    elif any(name.endswith(".model") for name in names):
        file = next(folder / name for name in sorted(names) if name.endswith(".model"))
        source, tokens = _sentence_piece(file, settings, tokens)
    else:
        wanted = "tokenizer.json, vocab.json with merges.txt, vocab.txt or tokenizer.model"
        raise UsageError(f"{path} has no tokenizer: {wanted}")
    merged = added_tokens.merge_added_tokens(source, tokens, path) if tokens else source
    backend = backend if backend is not None and merged == text else load_tokenizer(merged, str(path))
    added_tokens.check_ids(tokens, backend, path)
    return _with_special_ids(merged, backend, settings, path)


def _settings(sidecars: dict[str, Json], folder: Path) -> Json:
    """The settings of a tokenizer's sidecars; earlier files take precedence. `ends` has all ids of eos_token_id.

    Raises UsageError for an id that no token can have.
    """
    found: Json = {"ends": []}
    for name in SIDECARS:
        for key, value in sidecars.get(name, {}).items():
            value = value.get("content") if isinstance(value, dict) else value
            if key == "eos_token_id":
                ids = [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
                if large := [i for i in ids if abs(i) >= 2**31]:
                    raise UsageError(f"{folder / name}: eos_token_id = {quote(large[0])} is not the id of a token")
                found["ends"] += ids
            elif value is not None:
                found.setdefault(key, value)
    return found


def _with_special_ids(source: str, backend: Any, settings: Json, path: Path) -> SubwordTokenizer:
    """The tokenizer with its special ids. Raises UsageError if it has no eot."""
    named = (settings.get("eos_token"), settings.get("sep_token"), *USUAL_EOTS)
    ids = [backend.token_to_id(name) for name in named if isinstance(name, str)]
    eot = next((i for i in ids if i is not None), next(iter(settings["ends"]), None))
    if eot is None:
        raise UsageError(f"{path} has no token for the end of a text: eos_token, sep_token or {', '.join(USUAL_EOTS)}")
    prefix, suffix = special_affixes(backend)
    bos = backend.token_to_id(settings["bos_token"]) if isinstance(settings.get("bos_token"), str) else None
    if not prefix and bos is not None and settings.get("add_bos_token") is True:
        prefix = (bos,)
    ends = tuple(dict.fromkeys([eot, *settings["ends"]]))
    return SubwordTokenizer(source, eot, prefix, suffix, ends)


def special_affixes(backend: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the library's tokenizer puts before and after a text, found by encoding one ordinary token."""

    def ids(text: str, add_special: bool) -> list[int]:
        with as_usage_error("this tokenizer cannot encode the text"):
            return backend.encode(text, add_special_tokens=add_special).ids

    nothing, added = ids("", False), ids("", True)
    for text in ("a", *backend.get_vocab()):
        plain_ids, all_ids = ids(text, False), ids(text, True)
        if plain_ids and not set(plain_ids) & (set(added) - set(nothing)):
            at = next((i for i in range(len(all_ids)) if all_ids[i : i + len(plain_ids)] == plain_ids), 0)
            return tuple(all_ids[:at]), tuple(all_ids[at + len(plain_ids) :])
    return (), ()


def _set_prefix_space(source: str, settings: Json, path: Path) -> str:
    """A tokenizer.json changed to put a space before a text or not, as set by `add_prefix_space` in a sidecar.

    Generic tokenizer classes ignore that setting. Raises UsageError if a SentencePiece file puts a space that the
    setting forbids.
    """
    add_space = settings.get("add_prefix_space")
    if not isinstance(add_space, bool) or str(settings.get("tokenizer_class") or GENERIC[0]).startswith(GENERIC):
        return source
    file = json.loads(source)
    parts = [p for name in ("normalizer", "pre_tokenizer") for p in flatten_steps(file.get(name))]
    words = [part for part in parts if part["type"] == "ByteLevel"]
    puts = any(part["type"] == "Prepend" or part.get("prepend_scheme", "never") != "never" for part in parts)
    if puts and not add_space:
        raise UsageError(f"{path} puts a space before a text, but tokenizer_config.json has add_prefix_space = false")
    if all(part["add_prefix_space"] == add_space for part in words):
        return source
    for part in words:
        part["add_prefix_space"] = add_space
    return json.dumps(file, ensure_ascii=False)


def _check_class(kind: str, settings: Json, path: Path) -> None:
    """Raises UsageError for a tokenizer class that reads this kind of file in another way."""
    name = settings.get("tokenizer_class")
    if name is not None and not str(name).startswith(CLASSES[kind]):
        raise UsageError(
            f"{path} is of a {quote(name)}, which has rules that this file does not contain; give its tokenizer.json"
        )


def _flag(settings: Json, name: str, usual: bool) -> bool:
    value = settings.get(name, usual)
    if not isinstance(value, bool):
        raise UsageError(f"tokenizer_config.json: {name} is {quote(value)}, not true or false")
    return value


def _byte_level(vocab: Path, merges: Path, settings: Json) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    _check_class("vocab.json", settings, vocab)
    lines = [line for line in split_lines(read_text(merges)) if line and not line.startswith("#version")]
    ids = read_json(vocab)
    with as_usage_error(f"{vocab} and {merges.name} are not a byte-level BPE"):
        backend = Tokenizer(
            models.BPE(ids, [(left, right) for left, _, right in (line.partition(" ") for line in lines)])
        )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_flag(settings, "add_prefix_space", False))
    backend.decoder = decoders.ByteLevel()
    if EOT in ids:
        backend.add_special_tokens([AddedToken(EOT, special=True)])
    return backend.to_str()


def _word_piece(vocab: Path, settings: Json) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    _check_class("vocab.txt", settings, vocab)
    ids = {token: i for i, token in enumerate(split_lines(read_text(vocab)))}
    special = {
        k: settings.get(f"{k.strip('[]').lower()}_token", k) for k in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    }
    missing = [str(name) for name in special.values() if name not in ids]
    if missing:
        raise UsageError(f"{vocab} lacks {', '.join(missing)}, which a BERT vocabulary must have")
    backend = Tokenizer(models.WordPiece(ids, unk_token=special["[UNK]"]))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=_flag(settings, "do_lower_case", True),
        strip_accents=None if settings.get("strip_accents") is None else _flag(settings, "strip_accents", True),
        handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(special.values()))
    backend.post_processor = processors.BertProcessing(
        (special["[SEP]"], ids[special["[SEP]"]]), (special["[CLS]"], ids[special["[CLS]"]])
    )
    return backend.to_str()


def _sentence_piece(
    path: Path, settings: Json, tokens: list[added_tokens.Token]
) -> tuple[str, list[added_tokens.Token]]:
    """A tokenizer.json, and the added tokens with flags for it: matched in the text after the space is prepended.

    A `legacy` tokenizer treats each text between added tokens as a separate text, which begins with a space.
    """
    _check_class("tokenizer.model", settings, path)
    reject_lfs_pointer(path)
    legacy = _flag(settings, "legacy", str(settings.get("tokenizer_class")).startswith(GENERIC))
    plain = [token["content"] for token in tokens if not token["special"]]
    tokens = [token if token["special"] else {**token, "normalized": not legacy} for token in tokens]
    first = None if settings.get("add_prefix_space") is None else _flag(settings, "add_prefix_space", True)
    try:
        return json.dumps(sentencepiece.parse(path.read_bytes(), plain, first), ensure_ascii=False), tokens
    except (OSError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from None
