"""The types of arguments and results, each reading a decoded value and writing an encodable one.

`read` turns what msgpack decoded into what a handler or a caller works with; `write` is the way
back. Both refuse with a ValueError whose text begins with what is wrong, so the caller can put
the field's name before it. A type is strict: a boolean is no number, a text is no binary value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from .context import check_decoded_context, encode_context, parse_context
from .references import KeyReference, parse_key_reference

__all__ = [
    "Array",
    "Binary",
    "Boolean",
    "Choice",
    "Column",
    "Context",
    "Field",
    "FieldType",
    "Integer",
    "Name",
    "Numbers",
    "Optional",
    "Record",
    "Reference",
    "Tags",
    "Text",
    "ValueMap",
    "Values",
    "read_fields",
    "write_fields",
]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
TAGS_MAX: Final = 50
TAG_SIZE_MAX: Final = 256
NUMBERS_MAX: Final = 64
NUMBER_NAME_SIZE_MAX: Final = 64


class FieldType(Protocol):
    """How one value is checked and converted."""

    def read(self, value: Any) -> Any:
        """Convert a decoded value; raises ValueError."""

    def write(self, value: Any) -> Any:
        """Convert a Python value to an encodable one; raises ValueError."""

    def describe(self) -> str:
        """The type as PROTOCOL.md names it."""


class Field(NamedTuple):
    """A named value of an operation or record."""

    name: str
    type: FieldType


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 text of `size_min` to `size_max` bytes."""

    size_max: int
    size_min: int = 0

    def read(self, value: Any) -> str:
        if type(value) is not str:
            raise ValueError("must be text")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise ValueError("must be valid Unicode") from None
        if not self.size_min <= size <= self.size_max:
            raise ValueError(
                f"must have {self.size_min} to {self.size_max} bytes of UTF-8, not {size}"
            )
        return value

    write = read

    def describe(self) -> str:
        return f"str {self.size_min}..{self.size_max} bytes"


@dataclass(frozen=True, slots=True)
class Name:
    """A name that people give a policy or a network rule; one spelling, no look-alikes."""

    def read(self, value: Any) -> str:
        if type(value) is not str or not _NAME.fullmatch(value):
            raise ValueError("must be a name: 1 to 64 of a-z 0-9 . _ -, a letter or digit first")
        return value

    write = read

    def describe(self) -> str:
        return "str: a name, 1..64 of a-z 0-9 . _ -"


@dataclass(frozen=True, slots=True)
class Binary:
    """A byte string of `size_min` to `size_max` bytes."""

    size_max: int
    size_min: int = 0

    def read(self, value: Any) -> bytes:
        if type(value) is not bytes:
            raise ValueError("must be binary")
        if not self.size_min <= len(value) <= self.size_max:
            raise ValueError(
                f"must have {self.size_min} to {self.size_max} bytes, not {len(value)}"
            )
        return value

    def write(self, value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise ValueError("must be bytes")
        return self.read(bytes(value))

    def describe(self) -> str:
        size = (
            f"{self.size_min}..{self.size_max}" if self.size_min != self.size_max else self.size_max
        )
        return f"bin {size} bytes"


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer from `least` to `most`."""

    most: int
    least: int = 0

    def read(self, value: Any) -> int:
        if type(value) is not int:
            raise ValueError("must be an integer")
        if not self.least <= value <= self.most:
            raise ValueError(f"must be from {self.least} to {self.most}, not {value}")
        return value

    write = read

    def describe(self) -> str:
        return f"int {self.least}..{self.most}"


@dataclass(frozen=True, slots=True)
class Boolean:
    """true or false."""

    def read(self, value: Any) -> bool:
        if type(value) is not bool:
            raise ValueError("must be true or false")
        return value

    write = read

    def describe(self) -> str:
        return "bool"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a fixed set of names."""

    names: tuple[str, ...]

    def read(self, value: Any) -> str:
        if type(value) is not str or value not in self.names:
            raise ValueError(f"must be one of {', '.join(self.names)}")
        return value

    write = read

    def describe(self) -> str:
        return f"str: {', '.join(name or 'empty' for name in self.names)}"


@dataclass(frozen=True, slots=True)
class Context:
    """An encryption context: a canonical map on the wire, its canonical bytes in the gateway."""

    def read(self, value: Any) -> bytes:
        return check_decoded_context(value)

    def write(self, value: Mapping[str, str] | None) -> dict[str, str]:
        return parse_context(encode_context(value))

    def describe(self) -> str:
        return "context (canonical map)"


@dataclass(frozen=True, slots=True)
class Reference:
    """A key reference: text on the wire, parsed in the gateway."""

    def read(self, value: Any) -> KeyReference:
        if type(value) is not str:
            raise ValueError("must be text")
        return parse_key_reference(value)

    def write(self, value: Any) -> str:
        if type(value) is not str:
            raise ValueError("must be text")
        parse_key_reference(value)
        return value

    def describe(self) -> str:
        return "str: key reference"


@dataclass(frozen=True, slots=True)
class Column(Binary):
    """A column of `items` (byte strings, u16 or u32); its inside is checked where it is used."""

    items: str = "bin"

    def describe(self) -> str:
        return f"column of {self.items}"


@dataclass(frozen=True, slots=True)
class Optional:
    """Another type, or nil."""

    inner: FieldType

    def read(self, value: Any) -> Any:
        return None if value is None else self.inner.read(value)

    def write(self, value: Any) -> Any:
        return None if value is None else self.inner.write(value)

    def describe(self) -> str:
        return f"nil or {self.inner.describe()}"


@dataclass(frozen=True, slots=True)
class Array:
    """At most `items_max` values of one type."""

    inner: FieldType
    items_max: int

    def read(self, value: Any) -> list[Any]:
        self._check(value)
        return [self.inner.read(item) for item in value]

    def write(self, value: Any) -> list[Any]:
        self._check(value)
        return [self.inner.write(item) for item in value]

    def _check(self, value: Any) -> None:
        if not isinstance(value, list | tuple):
            raise ValueError("must be an array")
        if len(value) > self.items_max:
            raise ValueError(f"must have at most {self.items_max} items, not {len(value)}")

    def describe(self) -> str:
        return f"array of 0..{self.items_max} {self.inner.describe()}"


@dataclass(frozen=True, slots=True)
class Tags:
    """A map from text to text: at most 50 entries, keys of 1 to 256 bytes, values of at most 256
    bytes.
    """

    def read(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            raise ValueError("must be a map from text to text")
        if len(value) > TAGS_MAX:
            raise ValueError(f"must have at most {TAGS_MAX} entries, not {len(value)}")
        key_type, value_type = Text(TAG_SIZE_MAX, 1), Text(TAG_SIZE_MAX)
        return {key_type.read(key): value_type.read(text) for key, text in value.items()}

    def write(self, value: Any) -> dict[str, str]:
        return self.read(dict(value) if isinstance(value, Mapping) else value)

    def describe(self) -> str:
        return f"map of 0..{TAGS_MAX}: str 1..{TAG_SIZE_MAX} bytes to str 0..{TAG_SIZE_MAX} bytes"


@dataclass(frozen=True, slots=True)
class Numbers:
    """A map from text to unsigned integers, such as the announced limits."""

    def read(self, value: Any) -> dict[str, int]:
        if not isinstance(value, dict) or len(value) > NUMBERS_MAX:
            raise ValueError(f"must be a map of at most {NUMBERS_MAX} numbers")
        name_type, number_type = Text(NUMBER_NAME_SIZE_MAX, 1), Integer(2**63)
        return {name_type.read(name): number_type.read(number) for name, number in value.items()}

    write = read

    def describe(self) -> str:
        return f"map of 0..{NUMBERS_MAX}: str 1..{NUMBER_NAME_SIZE_MAX} bytes to int 0..{2**63}"


@dataclass(frozen=True, slots=True)
class Values:
    """An array whose items the operation table describes."""

    def read(self, value: Any) -> list[Any]:
        if type(value) is not list:
            raise ValueError("must be an array")
        return value

    write = read

    def describe(self) -> str:
        return "array, by operation"


@dataclass(frozen=True, slots=True)
class ValueMap:
    """A map whose entries the option table describes."""

    def read(self, value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise ValueError("must be a map")
        return value

    write = read

    def describe(self) -> str:
        return "map, by option"


@dataclass(frozen=True, slots=True)
class Record:
    """A NamedTuple as an array of its fields in order."""

    type: Any
    fields: tuple[Field, ...]

    def read(self, value: Any) -> Any:
        return self.type(*read_fields(self.fields, value))

    def write(self, value: Any) -> list[Any]:
        return write_fields(self.fields, tuple(value))

    def describe(self) -> str:
        return self.type.__name__  # type: ignore[no-any-return]


def read_fields(fields: tuple[Field, ...], values: Any) -> list[Any]:
    """Read an array of values in the order of their fields.

    Raises:
        ValueError: The array has another length, or a value does not fit; the text names the field.
    """
    if type(values) is not list or len(values) != len(fields):
        raise ValueError(f"must be an array of {len(fields)}: {', '.join(f.name for f in fields)}")
    return [
        _named(field, field.type.read, value) for field, value in zip(fields, values, strict=True)
    ]


def write_fields(fields: tuple[Field, ...], values: tuple[Any, ...]) -> list[Any]:
    """Write values in the order of their fields.

    Raises:
        ValueError: There are too many or too few values, or one does not fit; the text names the
            field.
    """
    if len(values) != len(fields):
        raise ValueError(f"must be {len(fields)} values: {', '.join(f.name for f in fields)}")
    return [
        _named(field, field.type.write, value) for field, value in zip(fields, values, strict=True)
    ]


def _named(field: Field, convert: Any, value: Any) -> Any:
    try:
        return convert(value)
    except ValueError as error:
        raise ValueError(f"{field.name}: {error}") from None
