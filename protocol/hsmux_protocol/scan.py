"""The strict pre-scan: what a frame body must be before any decoder may touch it.

Theory of operation
-------------------
A general msgpack decoder accepts far more than this protocol means: nesting about a thousand
levels deep, duplicate map keys (the last one wins), three encodings of the same number, extension
types, and a megabyte of one-byte values that become seventy megabytes of objects. Each of those
is a way to spend the peer's memory, or to have two implementations read one frame differently. So
`scan` first walks the bytes once, allocating almost nothing, and refuses everything that is not
the one canonical form:

* exactly one value, no bytes behind it;
* at most `DEPTH_MAX` arrays or maps inside each other, at most `ELEMENTS_MAX` values in all;
* nil, booleans, integers, text, binary, arrays and maps only: no floats, no extension types, no
  reserved byte;
* every integer and every length in its shortest form, so that a value has one encoding;
* map keys are text, and no key stands twice in one map.

What it does not look at: whether text is UTF-8 (the decoder refuses that) and what the values
mean (the field tables do). After `scan` accepts, `msgpack.unpackb` cannot fail for any other
reason than invalid UTF-8.

The walk keeps a stack of what is still to come in each open container. A map of n entries is 2n
values, of which those with an even number still to come are keys.
"""

from typing import Final

from .errors import RemoteProtocolError
from .limits import DEPTH_MAX, ELEMENTS_MAX

__all__ = ["scan"]

# A first byte's meaning: what follows it. Fixed forms carry their size in the byte itself.
_PLAIN, _TEXT, _BINARY, _ARRAY, _MAP, _UNSIGNED, _SIGNED, _REFUSED = range(8)

# For forms with a length or a value behind the first byte: how many bytes, and the least value
# that needs so many.
_SIZED: Final[dict[int, tuple[int, int, int]]] = {
    0xC4: (_BINARY, 1, 0),
    0xC5: (_BINARY, 2, 0x100),
    0xC6: (_BINARY, 4, 0x1_0000),
    0xCC: (_UNSIGNED, 1, 0x80),
    0xCD: (_UNSIGNED, 2, 0x100),
    0xCE: (_UNSIGNED, 4, 0x1_0000),
    0xCF: (_UNSIGNED, 8, 0x1_0000_0000),
    0xD0: (_SIGNED, 1, -0x20),
    0xD1: (_SIGNED, 2, -0x80),
    0xD2: (_SIGNED, 4, -0x8000),
    0xD3: (_SIGNED, 8, -0x8000_0000),
    0xD9: (_TEXT, 1, 0x20),
    0xDA: (_TEXT, 2, 0x100),
    0xDB: (_TEXT, 4, 0x1_0000),
    0xDC: (_ARRAY, 2, 0x10),
    0xDD: (_ARRAY, 4, 0x1_0000),
    0xDE: (_MAP, 2, 0x10),
    0xDF: (_MAP, 4, 0x1_0000),
}


def _first_bytes() -> tuple[tuple[int, int], ...]:
    """For each first byte: its kind and, for fixed forms, the size or count it carries."""
    table = [(_REFUSED, 0)] * 256
    for byte in range(256):
        if byte < 0x80 or byte >= 0xE0 or byte in (0xC0, 0xC2, 0xC3):
            table[byte] = (_PLAIN, 0)
        elif byte < 0x90:
            table[byte] = (_MAP, byte & 0x0F)
        elif byte < 0xA0:
            table[byte] = (_ARRAY, byte & 0x0F)
        elif byte < 0xC0:
            table[byte] = (_TEXT, byte & 0x1F)
    return tuple(table)


_FIRST: Final = _first_bytes()


def _sized(data: bytes | memoryview, position: int, first: int) -> tuple[int, int, int]:
    """Kind, value and next position of a form whose length or value follows its first byte."""
    entry = _SIZED.get(first)
    if entry is None:
        raise RemoteProtocolError(
            f"byte {position}: type 0x{first:02x} is not part of the protocol"
        )
    kind, width, least = entry
    end = position + 1 + width
    if end > len(data):
        raise RemoteProtocolError(f"byte {position}: the frame ends inside a value")
    value = int.from_bytes(data[position + 1 : end], "big", signed=kind == _SIGNED)
    if value >= least if kind == _SIGNED else value < least:
        raise RemoteProtocolError(f"byte {position}: not the shortest form")
    return kind, value, end


def scan(
    data: bytes | memoryview, *, depth_max: int = DEPTH_MAX, elements_max: int = ELEMENTS_MAX
) -> None:
    """Walk one frame body and refuse everything but the canonical form.

    Args:
        data: The whole body of one frame.
        depth_max: Arrays and maps inside each other.
        elements_max: Values in all, containers counted too.

    Raises:
        RemoteProtocolError: The body is not one canonical value; the text names the byte.
    """
    size = len(data)
    position = elements = 0
    remaining = 1
    keys: set[bytes] | None = None
    stack: list[tuple[int, set[bytes] | None]] = []
    while True:
        while remaining == 0:
            if not stack:
                if position != size:
                    raise RemoteProtocolError(f"byte {position}: bytes behind the value")
                return
            remaining, keys = stack.pop()
        if position >= size:
            raise RemoteProtocolError(f"byte {position}: the frame ends inside a value")
        is_key = keys is not None and not remaining & 1
        remaining -= 1
        elements += 1
        if elements > elements_max:
            raise RemoteProtocolError(f"byte {position}: more than {elements_max} values")
        start = position
        kind, value = _FIRST[data[position]]
        position += 1
        if kind == _REFUSED:
            kind, value, position = _sized(data, start, data[start])
        if kind == _TEXT or kind == _BINARY:
            body = position
            position += value
            if position > size:
                raise RemoteProtocolError(f"byte {start}: the frame ends inside a value")
            if is_key:
                _add_key(keys, kind, bytes(data[body:position]), start)
            continue
        if is_key:
            raise RemoteProtocolError(f"byte {start}: a map key that is not text")
        if kind == _ARRAY or kind == _MAP:
            if len(stack) >= depth_max:
                raise RemoteProtocolError(f"byte {start}: nested deeper than {depth_max}")
            stack.append((remaining, keys))
            remaining = value if kind == _ARRAY else 2 * value
            keys = set() if kind == _MAP else None


def _add_key(keys: set[bytes] | None, kind: int, key: bytes, start: int) -> None:
    if kind != _TEXT:
        raise RemoteProtocolError(f"byte {start}: a map key that is not text")
    if keys is not None:
        if key in keys:
            raise RemoteProtocolError(f"byte {start}: a map key that stands twice")
        keys.add(key)
