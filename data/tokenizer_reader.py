"""Tokenizers as others publish them, read from a file or a folder and made a tokenizer.json where they are none.

    tokenizer.json                            as it is
    vocab.json, merges.txt                    GPT-2's byte-level BPE; encoder.json, vocab.bpe in OpenAI's release
    vocab.txt                                 BERT's WordPiece
    tokenizer.model                           SentencePiece

tokenizer_config.json, special_tokens_map.json, config.json and generation_config.json beside them say what is special.
"""

import json
from pathlib import Path
from typing import Any

from data import added_tokens, sentencepieces
from data.files import expand_home
from data.subwords import EOT, SubwordTokenizer, as_usage_error, flatten_steps, load_tokenizer
from documents import read_json, read_settings, read_text, reject_lfs_pointer, split_lines
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
)  # ends of text, where none is named
# By the beginning of `tokenizer_class`: those that make of each kind of file what we make of it. Others have rules of
# their own (Qwen2's splits, RoBERTa's ends, XLM-R's shifted ids), which a tokenizer.json would hold.
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
CLASSES = {
    "vocab.json": (*GENERIC, "GPT2", "CodeGen"),
    "vocab.txt": (*GENERIC, "Bert", "DistilBert", "Electra", "MobileBert"),
    "tokenizer.model": (*GENERIC, "Llama", "CodeLlama", "Gemma", "T5"),
}


def has_tokenizer(path: str) -> bool:
    """Whether a path may be a tokenizer."""
    return Path(expand_home(path)).exists()


def read_tokenizer(path: str | Path) -> SubwordTokenizer:
    """The tokenizer of a file or folder. Raises UsageError where there is none, or it cannot be read."""
    path = Path(expand_home(str(path)))
    folder = path if path.is_dir() else path.parent
    names = {n.name for n in folder.iterdir() if not n.name.startswith(".")} if path.is_dir() else {path.name}
    sides = {
        name: read_settings(folder / name) for name in (*SIDECARS, "added_tokens.json") if (folder / name).is_file()
    }
    settings = _settings(sides, folder)
    tokens = added_tokens.read_added_tokens(sides, folder)
    pair = next((pair for pair in BPE_FILES if names & set(pair) and all((folder / n).is_file() for n in pair)), None)
    made = None
    if "tokenizer.json" in names or (path.is_file() and path.suffix == ".json" and pair is None):
        file = folder / "tokenizer.json" if path.is_dir() else path
        text = read_text(file)
        made = load_tokenizer(text, str(file))
        source = _set_prefix_space(text, settings, file)
        if tokens and "added_tokens_decoder" not in sides.get("tokenizer_config.json", {}):
            held = {token["content"] for token in json.loads(source).get("added_tokens") or []}
            tokens = [token for token in tokens if token["content"] not in held]
    elif pair:
        source = _byte_level(folder / pair[0], folder / pair[1], settings)
    elif "vocab.txt" in names:
        source = _word_piece(folder / "vocab.txt", settings)
    elif any(name.endswith(".model") for name in names):
        file = next(folder / name for name in sorted(names) if name.endswith(".model"))
        source, tokens = _sentence_piece(file, settings, tokens)
    else:
        wanted = "tokenizer.json, vocab.json with merges.txt, vocab.txt or tokenizer.model"
        raise UsageError(f"{path} holds no tokenizer: {wanted}")
    whole = added_tokens.merge_added_tokens(source, tokens, path) if tokens else source
    made = made if made is not None and whole == text else load_tokenizer(whole, str(path))
    added_tokens.check_ids(tokens, made, path)
    return _with_special_ids(whole, made, settings, path)


def _settings(sides: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer set, the first of them that does; the ids of all ends under `ends`.

    Raises UsageError for an id that no token can have.
    """
    found: dict[str, Any] = {"ends": []}
    for name in SIDECARS:
        for key, value in sides.get(name, {}).items():
            value = value.get("content") if isinstance(value, dict) else value
            if key == "eos_token_id":
                ids = [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
                if large := [i for i in ids if abs(i) >= 2**31]:
                    raise UsageError(f"{folder / name}: eos_token_id = {quote(large[0])} is no token's id")
                found["ends"] += ids
            elif value is not None:
                found.setdefault(key, value)
    return found


def _with_special_ids(source: str, made: Any, settings: dict[str, Any], path: Path) -> SubwordTokenizer:
    """The tokenizer with the ids that have a part to play. Raises UsageError where no text can end."""
    named = (settings.get("eos_token"), settings.get("sep_token"), *USUAL_EOTS)
    ids = [made.token_to_id(name) for name in named if isinstance(name, str)]
    eot = next((i for i in ids if i is not None), next(iter(settings["ends"]), None))
    if eot is None:
        raise UsageError(f"{path} has no end of a text: no eos_token or sep_token, nor any of {', '.join(USUAL_EOTS)}")
    prefix, suffix = special_affixes(made)
    bos = made.token_to_id(settings["bos_token"]) if isinstance(settings.get("bos_token"), str) else None
    if not prefix and bos is not None and settings.get("add_bos_token") is True:
        prefix = (bos,)
    ends = tuple(dict.fromkeys([eot, *settings["ends"]]))
    return SubwordTokenizer(source, eot, prefix, suffix, ends)


def special_affixes(made: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the library's tokenizer puts before a text and after it, found by one token that is neither."""

    def ids(text: str, whole: bool) -> list[int]:
        with as_usage_error("this tokenizer cannot encode the text"):
            return made.encode(text, add_special_tokens=whole).ids

    nothing, added = ids("", False), ids("", True)
    for text in ("a", *made.get_vocab()):
        bare, whole = ids(text, False), ids(text, True)
        if bare and not set(bare) & (set(added) - set(nothing)):
            at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
            return tuple(whole[:at]), tuple(whole[at + len(bare) :])
    return (), ()


def _set_prefix_space(source: str, settings: dict[str, Any], path: Path) -> str:
    """A tokenizer.json that puts a space before a text or not, as `add_prefix_space` beside it says.

    Generic classes of tokenizers leave that to the tokenizer.json. Raises UsageError where a file of SentencePiece
    puts one that is not to be put.
    """
    asked = settings.get("add_prefix_space")
    if not isinstance(asked, bool) or str(settings.get("tokenizer_class") or GENERIC[0]).startswith(GENERIC):
        return source
    file = json.loads(source)
    parts = [p for name in ("normalizer", "pre_tokenizer") for p in flatten_steps(file.get(name))]
    words = [part for part in parts if part["type"] == "ByteLevel"]
    puts = any(part["type"] == "Prepend" or part.get("prepend_scheme", "never") != "never" for part in parts)
    if puts and not asked:
        raise UsageError(f"{path} puts a space before a text; the tokenizer_config.json beside it says it must not")
    if all(part["add_prefix_space"] == asked for part in words):
        return source
    for part in words:
        part["add_prefix_space"] = asked
    return json.dumps(file, ensure_ascii=False)


def _check_class(kind: str, settings: dict[str, Any], path: Path) -> None:
    """Raises UsageError for a class of tokenizers that makes something else of a kind of file."""
    name = settings.get("tokenizer_class")
    if name is not None and not str(name).startswith(CLASSES[kind]):
        raise UsageError(
            f"{path} is of a {quote(name)}, which has rules of its own beside this file; a tokenizer.json has them all"
        )


def _flag(settings: dict[str, Any], name: str, usual: bool) -> bool:
    value = settings.get(name, usual)
    if not isinstance(value, bool):
        raise UsageError(f"tokenizer_config.json: {name} is {quote(value)}, not true or false")
    return value


def _byte_level(vocab: Path, merges: Path, settings: dict[str, Any]) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    _check_class("vocab.json", settings, vocab)
    lines = [line for line in split_lines(read_text(merges)) if line and not line.startswith("#version")]
    ids = read_json(vocab)
    with as_usage_error(f"{vocab} and {merges.name} are no byte-level BPE"):
        made = Tokenizer(models.BPE(ids, [(left, right) for left, _, right in (line.partition(" ") for line in lines)]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_flag(settings, "add_prefix_space", False))
    made.decoder = decoders.ByteLevel()
    if EOT in ids:
        made.add_special_tokens([AddedToken(EOT, special=True)])
    return made.to_str()


def _word_piece(vocab: Path, settings: dict[str, Any]) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    _check_class("vocab.txt", settings, vocab)
    ids = {token: i for i, token in enumerate(split_lines(read_text(vocab)))}
    special = {
        k: settings.get(f"{k.strip('[]').lower()}_token", k) for k in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    }
    missing = [str(name) for name in special.values() if name not in ids]
    if missing:
        raise UsageError(f"{vocab} lacks {', '.join(missing)}, which BERT's vocabulary has")
    made = Tokenizer(models.WordPiece(ids, unk_token=special["[UNK]"]))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=_flag(settings, "do_lower_case", True),
        strip_accents=None if settings.get("strip_accents") is None else _flag(settings, "strip_accents", True),
        handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(list(special.values()))
    made.post_processor = processors.BertProcessing(
        (special["[SEP]"], ids[special["[SEP]"]]), (special["[CLS]"], ids[special["[CLS]"]])
    )
    return made.to_str()


def _sentence_piece(
    path: Path, settings: dict[str, Any], tokens: list[added_tokens.Token]
) -> tuple[str, list[added_tokens.Token]]:
    """A tokenizer.json, and the added tokens as it wants them: looked for in the text with its space in front.

    A `legacy` tokenizer takes each text between added tokens for one of its own, which begins with a space.
    """
    _check_class("tokenizer.model", settings, path)
    reject_lfs_pointer(path)
    legacy = _flag(settings, "legacy", str(settings.get("tokenizer_class")).startswith(GENERIC))
    plain = [token["content"] for token in tokens if not token["special"]]
    tokens = [token if token["special"] else {**token, "normalized": not legacy} for token in tokens]
    first = None if settings.get("add_prefix_space") is None else _flag(settings, "add_prefix_space", True)
    try:
        return json.dumps(sentencepieces.parse(path.read_bytes(), plain, first), ensure_ascii=False), tokens
    except (OSError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from None
