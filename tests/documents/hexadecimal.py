"""Frames taken apart for people: each value's bytes beside what they mean."""

import json
from typing import Any, Final

from msgpack import fallback

from .sections import ROOT

__all__ = ["explained", "golden_frame"]

GOLDEN: Final = ROOT / "tests" / "protocol" / "vectors" / "golden.json"
_WIDTH: Final = 16
_HEADER_SIZES: Final = {0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}


def golden_frame(name: str) -> bytes:
    """The bytes of a frame of the golden vectors."""
    frames = json.loads(GOLDEN.read_text(encoding="utf-8"))["frames"]
    (found,) = [frame["bytes"] for frame in frames if frame["name"] == name]
    return bytes.fromhex(found)


def explained(data: bytes, names: tuple[str, ...]) -> str:
    """A block with one line for the length of a frame and one for each value of its body.

    Args:
        data: The frame.
        names: What the values of the outermost array are called.
    """
    walk = _Walk(data[4:])
    walk.add(data[:4], f"length of the body: {len(data) - 4}", 0)
    walk.value(0, 0, "", names)
    return "```text\n" + "\n".join(walk.lines) + "\n```\n"


class _Walk:
    """Follows the values of a frame body and writes a line for each."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.lines: list[str] = []

    def add(self, part: bytes, text: str, depth: int) -> None:
        pieces = [part[start : start + _WIDTH].hex(" ") for start in range(0, len(part), _WIDTH)]
        self.lines.append(f"{pieces[0]:<{3 * _WIDTH}} {'  ' * depth}{text}".rstrip())
        self.lines += pieces[1:]

    def value(self, start: int, depth: int, label: str, names: tuple[str, ...] = ()) -> int:
        """Write the value that begins at `start`; where the next one begins."""
        first = self._body[start]
        unpacker = fallback.Unpacker()
        unpacker.feed(self._body[start:])
        if first >> 4 == 0x9 or first in (0xDC, 0xDD):
            return self._items(start, depth, f"{label}array", names, unpacker.read_array_header())
        if first >> 4 == 0x8 or first in (0xDE, 0xDF):
            entries = ("key: ", "value: ") * unpacker.read_map_header()
            return self._items(start, depth, f"{label}map", entries, len(entries))
        value = unpacker.unpack()
        end: int = start + unpacker.tell()
        self.add(self._body[start:end], label + _shown(value), depth)
        return end

    def _items(self, start: int, depth: int, label: str, names: tuple[str, ...], count: int) -> int:
        end = start + _HEADER_SIZES.get(self._body[start], 1)
        size = count // 2 if label.endswith("map") else count
        self.add(self._body[start:end], f"{label} of {size}", depth)
        for index in range(count):
            end = self.value(end, depth + 1, names[index] if index < len(names) else "")
        return end


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"binary value of {len(value)} bytes"
    return json.dumps(value, ensure_ascii=False)
