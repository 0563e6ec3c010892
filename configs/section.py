"""What a knob is: a typed field of a section of the config, with its class, its meaning and a check of its value."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, cast

from errors import UsageError

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
        if not fits(value, self.type, self.most):
            bound = f" up to {self.most:,}" if isinstance(value, int) and value > self.most else ""
            raise UsageError(f"config key {key!r} takes {self.type}{bound} ({self.says}), not {value!r}")
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
    """A frozen dataclass of knobs. Raises UsageError for a value of another type than its field's."""

    section: ClassVar[str]  # its name in keys; "" for knobs without a section

    def __post_init__(self) -> None:
        """Check the values, and make floats of ints."""
        for key, knob in knobs_of(type(self)).items():
            name = key.rpartition(".")[2]
            object.__setattr__(self, name, knob.check(key, getattr(self, name)))


def knobs_of(section: type[Section]) -> dict[str, Knob]:
    """The knobs of a section by dotted key."""
    found = {}
    for field in dataclasses.fields(cast(type, section)):
        if "kind" in field.metadata:
            key = f"{section.section}.{field.name}" if section.section else field.name
            found[key] = Knob(cast(Value, field.default), _type_text(field.type), **field.metadata)
    return found


def _type_text(annotation: object) -> str:
    """A field's type as messages show it: `tuple[float] | None`."""
    if isinstance(annotation, types.UnionType):
        return " | ".join(map(_type_text, typing.get_args(annotation)))
    if annotation is type(None):
        return "None"
    if typing.get_origin(annotation) is tuple:
        return f"tuple[{_type_text(typing.get_args(annotation)[0])}]"
    return cast(type, annotation).__name__
