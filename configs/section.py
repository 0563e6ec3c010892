"""What a knob is: a typed field of a section of the config, with its class, its meaning and a check of its value."""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast

from errors import UsageError, quote

Value = bool | int | float | str | None | tuple["Value", ...] | Mapping[str, "Value"]  # of a knob
Kind = Literal["identity", "schedule", "free"]
T = TypeVar("T")
MOST = 2**31 - 1  # largest absolute value of an int, unless its knob has another


@dataclass(frozen=True)
class Knob:
    """One setting. `type` is a union of int, float, str, bool, tuples of one of them and None in Python's syntax."""

    default: Value
    type: str
    kind: Kind
    says: str
    most: int = MOST  # largest absolute value of an int

    def check(self, key: str, value: Value) -> Value:
        """The value, an int as a float if the knob takes floats. Raises UsageError for a value of another type."""
        value = to_python(value)
        if not fits(value, self.type, self.most):
            bound = f" up to {self.most:,}" if isinstance(value, int) and value > self.most else ""
            raise UsageError(f"config key {key!r} takes {self.type}{bound} ({self.says}), not {quote(value)}")
        return float(value) if self.type.startswith("float") and isinstance(value, int) else value


def fits(value: Value, kind: str, most: int = MOST) -> bool:
    """Whether a value has a knob's type. An int lies between -most and most, a float in the range of float32."""
    for one in (k.strip() for k in kind.split("|")):
        if one == "None" and value is None:
            return True
        if one == "float" and isinstance(value, int | float) and not isinstance(value, bool):
            return value == 0 or 2**-126 <= abs(value) < 2**128
        if one in ("tuple[float]", "tuple[int]", "tuple[str]") and isinstance(value, tuple):
            return all(fits(v, one[6:-1], most) for v in value)
        if one in ("int", "str", "bool") and type(value).__name__ == one:
            return one != "int" or abs(cast(int, value)) <= most
    return False


def to_python(value: object) -> Value:
    """A value with scalars of numpy and jax as Python's and lists as tuples, nested ones too; others as they are."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return cast(Value, value.item())
    return tuple(map(to_python, value)) if isinstance(value, list | tuple) else cast(Value, value)


def check_open(prefix: str, values: object, taken: Collection[str] = (), nested: str = "") -> Mapping[str, Value]:
    """The values of a section without knobs of its own, read-only, such that JSON can hold them.

    `taken` are the names of knobs of the same prefix; the value `nested` is a mapping too. Raises UsageError for
    another name or value.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"config section {prefix!r} takes a dict of names and values, not {quote(values)}")
    found: dict[str, Value] = {}
    for name, value in values.items():
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            also = f"; {name!r} is a knob of its own" if name in taken else ""
            raise UsageError(f"config section {prefix!r} takes names of fields, not {quote(name)}{also}")
        key = f"{prefix}.{name}"
        found[name] = check_open(key, value) if name == nested else to_python(value)
        if name != nested and not _is_plain(found[name]):
            raise UsageError(f"config key {key!r} takes a bool, number, str, tuple of such or None, not {quote(value)}")
    return types.MappingProxyType(found)


def _is_plain(value: Value) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    if value is None or type(value) in (bool, str):
        return True
    return (type(value) is int and value.bit_length() <= 1024) or (type(value) is float and math.isfinite(value))


def plain(value: object) -> Any:
    """A section or mapping as dicts, which pickle, copy and JSON take."""
    if isinstance(value, Section):
        value = vars(value)
    return {name: plain(v) for name, v in value.items()} if isinstance(value, Mapping) else value


def identity(default: T, says: str, most: int = MOST) -> T:
    """A knob that defines the run: resuming under another value is refused."""
    return _field(default, "identity", says, most)


def schedule(default: T, says: str, most: int = MOST) -> T:
    """A knob that may change with `--config.resume=extend`, which records a new phase."""
    return _field(default, "schedule", says, most)


def free(default: T, says: str, most: int = MOST) -> T:
    """A knob that changes the result by rounding at most."""
    return _field(default, "free", says, most)


def _field(default: T, kind: Kind, says: str, most: int) -> T:
    """A dataclass field with its knob's metadata; typed as its default, for type checkers."""
    return dataclasses.field(default=default, metadata={"kind": kind, "says": says, "most": most})


class Section:
    """A frozen dataclass of knobs and sections. Raises UsageError for a value of another type than its field's."""

    section: ClassVar[str]  # its name in keys; "" for knobs without a section

    def __post_init__(self) -> None:
        """Check the values, and make floats of ints."""
        for key, knob in knobs_of(type(self)).items():
            name = key.rpartition(".")[2]
            object.__setattr__(self, name, knob.check(key, getattr(self, name)))
        for name, kind in sections_of(type(self)).items():
            if not isinstance(value := getattr(self, name), kind):
                raise UsageError(f"config section {name!r} takes a {kind.__name__}, not {quote(value)}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Copied and pickled by its fields, as read-only mappings cannot be."""
        return type(self), tuple(v if isinstance(v, Section) else plain(v) for v in vars(self).values())


def knobs_of(section: type[Section]) -> dict[str, Knob]:
    """The knobs of a section by dotted key."""
    found = {}
    for field in dataclasses.fields(cast(type, section)):
        if "kind" in field.metadata:
            key = f"{section.section}.{field.name}" if section.section else field.name
            found[key] = Knob(cast(Value, field.default), _type_text(field.type), **field.metadata)
    return found


def sections_of(section: type[Section]) -> dict[str, type[Section]]:
    """The sections of a section by name."""
    types_of = {field.name: field.type for field in dataclasses.fields(cast(type, section))}
    return {name: kind for name, kind in types_of.items() if isinstance(kind, type) and issubclass(kind, Section)}


def _type_text(annotation: object) -> str:
    """A field's type as messages show it: `tuple[float] | None`."""
    if isinstance(annotation, types.UnionType):
        return " | ".join(map(_type_text, typing.get_args(annotation)))
    if annotation is type(None):
        return "None"
    if typing.get_origin(annotation) is tuple:
        return f"tuple[{_type_text(typing.get_args(annotation)[0])}]"
    return cast(type, annotation).__name__
