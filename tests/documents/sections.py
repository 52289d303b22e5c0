"""Generated sections of documents: found by their markers, made, compared and replaced."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["ROOT", "Section", "check", "project_files", "render", "table"]

ROOT: Final = Path(__file__).parents[2]

Section = Callable[[], str]
"""Makes the text of one section."""

_MADE: Final = frozenset({"build", "dist", "__pycache__"})
"""Directories that tools make."""

_BEGIN: Final = "<!-- begin {}: made by `python -m tests.documents --write` -->"
_END: Final = "<!-- end {} -->"
_MARKED: Final = re.compile(r"<!-- begin ([a-z-]+)(?::[^>]*)? -->\n(.*?)<!-- end \1 -->", re.DOTALL)


def project_files() -> list[Path]:
    """Every file that somebody wrote: what tools make and hidden directories are left out."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
        if path.is_file() and path.name != ".git" and not hidden and not _MADE.intersection(parts):
            found.append(path)
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a `|` inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def render(text: str, sections: Mapping[str, Section]) -> str:
    """A document with its sections made anew.

    Args:
        text: The document.
        sections: By the name in the markers.

    Raises:
        ValueError: The document marks a section that is not known, or does not mark one that is.
    """
    marked = [name for name, _ in _MARKED.findall(text)]
    if sorted(marked) != sorted(sections):
        raise ValueError(f"marked are {sorted(marked)}; made are {sorted(sections)}")

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        made = sections[name]().strip("\n")
        return f"{_BEGIN.format(name)}\n\n{made}\n\n{_END.format(name)}"

    return _MARKED.sub(replaced, text)


def check(path: Path, sections: Mapping[str, Section]) -> list[str]:
    """The names of the sections of a document that are not what the code makes."""
    text = path.read_text(encoding="utf-8")
    made = dict(_MARKED.findall(render(text, sections)))
    return [name for name, found in _MARKED.findall(text) if found != made[name]]
