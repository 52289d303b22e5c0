"""What stands in a Markdown document: links, headings, blocks of code, commands."""

import re
import shlex
from pathlib import Path
from typing import Final, NamedTuple

from .sections import project_files

__all__ = [
    "Block",
    "anchors",
    "blocks",
    "commands",
    "documents",
    "links",
    "loose_lines",
]

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN: Final = re.compile(r"`([^`]+)`")
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#{1,6} +(.*)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: What stands behind the fence.
        text: The lines.
        before: The line before the fence.
    """

    language: str
    text: str
    before: str


def documents() -> list[Path]:
    """Every Markdown document of the project."""
    return [path for path in project_files() if path.suffix == ".md"]


def blocks(text: str, language: str | None = None) -> list[Block]:
    """The fenced blocks, all or those of one language."""
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        found.append(Block(match[1], match[2], before))
    return [block for block in found if language is None or block.language == language]


def _prose(text: str) -> str:
    return _FENCE.sub("", text)


def links(text: str) -> list[str]:
    """The targets of all links."""
    return _LINK.findall(_SPAN.sub("", _prose(text)))


def anchors(text: str) -> set[str]:
    """What `#...` can name: the headings, spelled as GitHub does."""
    found: set[str] = set()
    for heading in _HEADING.findall(_prose(text)):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        number = sum(name == plain or name.startswith(f"{plain}-") for name in found)
        found.add(f"{plain}-{number}" if plain in found else plain)
    return found


def loose_lines(text: str) -> list[str]:
    """Lines that can be broken: no code, no table, no comment."""
    lines = _prose(text).splitlines()
    return [line for line in lines if not line.startswith(("|", "<!--"))]


def commands(text: str) -> list[list[str]]:
    """The words of every `hsmux ...` that a document shows, in a block or between backquotes."""
    lines = [" ".join(span.split()) for span in _SPAN.findall(_prose(text))]
    for block in blocks(text):
        if block.language in ("", "console", "sh", "shell", "text"):
            lines += block.text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        for part in re.split(r"[|&;]+|\$\(", line.removeprefix("$ ")):
            plain = part.partition(" #")[0].partition(" > ")[0].partition(" < ")[0].strip(" )")
            if re.match(r"(sudo )?hsmux( |$)", plain):
                found.append(shlex.split(plain.removeprefix("sudo "))[1:])
    return found
