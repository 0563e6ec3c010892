"""Tokenizers as others publish them, read from a file or a folder and made a tokenizer.json where they are none.

    tokenizer.json                            as it is
    vocab.json, merges.txt                    GPT-2's byte-level BPE; encoder.json, vocab.bpe in OpenAI's release
    vocab.txt                                 BERT's WordPiece
    tokenizer.model                           SentencePiece

tokenizer_config.json, special_tokens_map.json, config.json and generation_config.json beside them tell what is special.
"""

import json
from pathlib import Path
from typing import Any

from data import sentencepieces
from data.subwords import EOT, Subwords, coder
from documents import read_json, read_settings, read_text, refuse_pointer
from errors import UsageError

SIDE = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
USUAL = (EOT, "<|end_of_text|>", "</s>", "<｜end▁of▁sentence｜>", "<eos>", "[SEP]")  # ends of text, where none is told


def is_there(path: str) -> bool:
    """Whether a path may be a tokenizer."""
    return Path(path).exists()


def read(path: str | Path) -> Subwords:
    """The tokenizer of a file or folder. Raises UsageError where there is none, or it cannot be read."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    names = {file.name for file in folder.iterdir()} if path.is_dir() else {path.name}
    told = _told(folder)
    pair = next((pair for pair in PAIRS if names & set(pair) and all((folder / n).is_file() for n in pair)), None)
    if "tokenizer.json" in names or (path.is_file() and path.suffix == ".json" and pair is None):
        source = read_text(folder / "tokenizer.json" if path.is_dir() else path)
    elif pair:
        source = _byte_level(folder / pair[0], folder / pair[1])
    elif "vocab.txt" in names:
        source = _word_piece(folder / "vocab.txt", told)
    elif any(name.endswith(".model") for name in names):
        source = _sentence_piece(next(folder / name for name in sorted(names) if name.endswith(".model")))
    else:
        wanted = "tokenizer.json, vocab.json with merges.txt, vocab.txt or tokenizer.model"
        raise UsageError(f"{path} holds no tokenizer: {wanted}")
    return _with_parts(source, told, path)


def _told(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer tell, the first of them that knows; the ids of all ends under `ends`."""
    found: dict[str, Any] = {"ends": []}
    for name in SIDE:
        if not (folder / name).is_file():
            continue
        for key, value in read_settings(folder / name).items():
            value = value.get("content") if isinstance(value, dict) else value
            if key == "eos_token_id":
                found["ends"] += value if isinstance(value, list) else [value]
            elif value is not None:
                found.setdefault(key, value)
    found["ends"] = [i for i in found["ends"] if type(i) is int]
    return found


def _with_parts(source: str, told: dict[str, Any], path: Path) -> Subwords:
    """The tokenizer with the ids that have a part to play. Raises UsageError where no text can end."""
    made = coder(source)
    named = (told.get("eos_token"), told.get("sep_token"), *USUAL)
    ids = [made.token_to_id(name) for name in named if isinstance(name, str)]
    eot = next((i for i in ids if i is not None), next(iter(told["ends"]), None))
    if eot is None:
        raise UsageError(f"{path} has no end of a text: no eos_token or sep_token, nor any of {', '.join(USUAL)}")
    prefix, suffix = around(made)
    bos = made.token_to_id(told["bos_token"]) if isinstance(told.get("bos_token"), str) else None
    if not prefix and bos is not None and told.get("add_bos_token") is True:
        prefix = (bos,)
    ends = tuple(dict.fromkeys([eot, *told["ends"]]))
    return Subwords(source, eot, prefix, suffix, ends)


def around(made: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the library's tokenizer puts before a text and after it, told by one of tokens that are neither."""
    nothing, added = (made.encode("", add_special_tokens=on).ids for on in (False, True))
    for text in ("a", *made.get_vocab()):
        bare, whole = (made.encode(text, add_special_tokens=on).ids for on in (False, True))
        if bare and not set(bare) & (set(added) - set(nothing)):
            at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
            return tuple(whole[:at]), tuple(whole[at + len(bare) :])
    return (), ()


def _byte_level(vocab: Path, merges: Path) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    lines = [line for line in read_text(merges).split("\n") if line and not line.startswith("#version")]
    ids = read_json(vocab)
    try:
        made = Tokenizer(models.BPE(ids, [(left, right) for left, _, right in (line.partition(" ") for line in lines)]))
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"{vocab} and {merges.name} are no byte-level BPE: {str(error).splitlines()[0]}") from None
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if EOT in ids:
        made.add_special_tokens([AddedToken(EOT, special=True)])
    return made.to_str()


def _word_piece(vocab: Path, told: dict[str, Any]) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate(read_text(vocab).splitlines())}
    special = {k: told.get(f"{k.strip('[]').lower()}_token", k) for k in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    missing = [name for name in special.values() if name not in ids]
    if missing:
        raise UsageError(f"{vocab} lacks {', '.join(missing)}, which BERT's vocabulary has")
    lower = told.get("do_lower_case", True)
    made = Tokenizer(models.WordPiece(ids, unk_token=special["[UNK]"]))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=lower,
        strip_accents=told.get("strip_accents"),
        handle_chinese_chars=told.get("tokenize_chinese_chars", True),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(list(special.values()))
    made.post_processor = processors.BertProcessing(
        (special["[SEP]"], ids[special["[SEP]"]]), (special["[CLS]"], ids[special["[CLS]"]])
    )
    return made.to_str()


def _sentence_piece(path: Path) -> str:
    refuse_pointer(path)
    try:
        return json.dumps(sentencepieces.parse(path.read_bytes()), ensure_ascii=False)
    except (OSError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from None
