"""Text to tokens and back."""

import numpy as np
import pytest

from data.text import tokenizers
from errors import UsageError

BYTE = tokenizers.ByteTokenizer()
EOT = BYTE.vocab - 1


UNICODE = ["", "plain", "naïve – “quoted”", "日本語", "🙂👩‍🚀", "\x00\r\n\t\x7f", "a\u0301", "\ufffd\uffff\U0010ffff"]


@pytest.mark.parametrize("text", UNICODE)
def test_bytes_round_trip(text: str) -> None:
    """Any text comes back from its bytes, eot decodes to nothing, and the lengths add up to the UTF-8 length."""
    ids = BYTE.encode(text)
    assert ids.dtype == np.int32
    assert BYTE.decode([*ids, EOT]) == text
    assert BYTE.byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("text", UNICODE)
def test_characters_round_trip(text: str) -> None:
    """Any text of the corpus comes back, an id a character."""
    made = tokenizers.make("char", UNICODE)
    ids = made.encode(text)
    assert ids.dtype == np.int32
    assert len(ids) == len(text)
    assert made.decode([*ids, made.vocab - 1]) == text
    assert made.byte_lengths[ids].sum() == len(text.encode())
    assert made.byte_lengths[-1] == 0
    assert ids.max(initial=0) < made.vocab - 1


def test_broken_utf8_decodes_to_a_replacement() -> None:
    """Half a character is shown as U+FFFD, not raised."""
    assert BYTE.decode(BYTE.encode("é")[:1]) == "\ufffd"


@pytest.mark.parametrize("strange", ["z", "A", "é", "🙂"])
def test_an_unknown_character_is_named(strange: str) -> None:
    """The refusal names the character, and what would take it."""
    made = tokenizers.make("char", ["abc"])
    with pytest.raises(UsageError, match=f"character '{strange}'.*data.tokenizer=byte"):
        made.encode(f"ab{strange}c")


def test_a_character_tokenizer_needs_characters() -> None:
    """An empty corpus is refused."""
    with pytest.raises(UsageError, match="at least one character"):
        tokenizers.make("char", ["", ""])


@pytest.mark.parametrize("made", [BYTE, tokenizers.make("char", ["hello, wörld"])], ids=["byte", "char"])
def test_restore_is_the_inverse_of_description(made: tokenizers.Tokenizer) -> None:
    """A tokenizer comes back from its description, with the same fingerprint."""
    again = tokenizers.restore(made.description())
    assert again == made
    assert tokenizers.fingerprint(again.description()) == tokenizers.fingerprint(made.description())
    other = tokenizers.make("char", ["hello"])
    assert tokenizers.fingerprint(other.description()) != tokenizers.fingerprint(made.description())


def test_unknown_tokenizer_names_the_nearest() -> None:
    """`bytes` is answered by `byte`."""
    with pytest.raises(UsageError, match=r"'bytes'.*did you mean 'byte'"):
        tokenizers.make("bytes", ())
