"""The memory of a process as /proc shows it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")


@dataclass(frozen=True)
class Mapping:
    """A range of pages.

    Attributes:
        start: Address of the first byte.
        end: Address behind the last byte.
        permissions: Such as `rw-p`.
        name: Of the file, or empty.
        flags: The kernel's two-letter words: `lo` locked, `dd` not in core files, `wf` wiped on
            fork, `dc` not copied on fork.
    """

    start: int
    end: int
    permissions: str
    name: str
    flags: frozenset[str]


def mappings(pid: int | str = "self") -> set[Mapping]:
    """All mappings of a process."""
    found = set()
    head: tuple[str, ...] = ()
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if match := re.match(r"(\w+)-(\w+) (\S+) \w+ \S+ \d+ *(.*)", line):
            head = match.groups()
        elif line.startswith("VmFlags:"):
            start, end, permissions, name = head
            flags = frozenset(line.split()[1:])
            found.add(Mapping(int(start, 16), int(end, 16), permissions, name, flags))
    return found


def new_mappings(make: Callable[[], Made]) -> tuple[Made, list[Mapping]]:
    """What a function makes, and the mappings that are there since, by address."""
    before = mappings()
    made = make()
    return made, sorted(mappings() - before, key=lambda mapping: mapping.start)
