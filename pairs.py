"""Lists of names with values in one text: `fsdp:4,tp:2`."""

from errors import UsageError


def parse_pairs(text: str | None, key: str, form: str = "NAME:VALUE") -> list[tuple[str, str]]:
    """`a:b,c` -> [("a", "b"), ("c", "")]: split at commas, then at the first colon, without outer spaces.

    [] for no text. `key` is the config key, `form` says in messages what a pair is. Raises UsageError for a pair
    without a name, or with a colon but no value.
    """
    pairs = []
    for part in text.split(",") if text else ():
        name, colon, value = (word.strip() for word in part.partition(":"))
        if not name or (colon and not value):
            raise pairs_error(text, key, form)
        pairs.append((name, value))
    return pairs


def pairs_error(text: str | None, key: str, form: str) -> UsageError:
    """The error for a text that is no list of pairs, or has a value that is not legal."""
    return UsageError(f"config key {key!r} must be {form} joined by commas, not {text!r}")
