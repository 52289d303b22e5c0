"""Where the audit log lies: names of directories and files, and nothing about what is in them.

DIR/key.pem                           public key of the checkpoints, for whoever copies it elsewhere
DIR/checkpoints                       signed checkpoints, one behind the other
DIR/checkpoints.new                   the same, shorter, while the oldest are being removed
DIR/<chain, 32 hexadecimal digits>/   one chain of one process
    00000001.log, 00000002.log, ...   its segments
    next                              the next segment, empty: room that is already taken
    00000002.4711.torn                what was cut off segment 2 at byte 4711 after a crash
"""

import re
from pathlib import Path
from typing import Final

__all__ = [
    "CHECKPOINTS",
    "CHECKPOINTS_NEW",
    "PUBLIC_KEY",
    "SPARE",
    "chain_directories",
    "chain_of",
    "is_known",
    "segment_name",
    "segment_paths",
    "torn_name",
    "torn_paths",
]

CHECKPOINTS: Final = "checkpoints"
CHECKPOINTS_NEW: Final = "checkpoints.new"
PUBLIC_KEY: Final = "key.pem"
SPARE: Final = "next"
_CHAIN: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SEGMENT: Final = re.compile(r"([0-9]{8})\.log", re.ASCII)
_TORN: Final = re.compile(r"([0-9]{8})\.[0-9]{1,19}\.torn", re.ASCII)


def chain_of(directory: Path) -> bytes:
    """The chain that a directory of `chain_directories` holds, 16 bytes."""
    return bytes.fromhex(directory.name)


def chain_directories(root: Path) -> list[Path]:
    """The directories of all chains, in the order of their names."""
    return sorted(p for p in root.iterdir() if _CHAIN.fullmatch(p.name) and p.is_dir())


def segment_name(number: int) -> str:
    """The name of a segment's file."""
    return f"{number:08}.log"


def torn_name(number: int, offset: int) -> str:
    """The name of what was cut off a segment."""
    return f"{number:08}.{offset}.torn"


def segment_paths(directory: Path) -> dict[int, Path]:
    """The segments of a chain by their numbers, in order."""
    found = {}
    for path in directory.iterdir():
        match = _SEGMENT.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def torn_paths(directory: Path, segment: int) -> list[Path]:
    """What was cut off the segments of a chain up to one."""
    found = ((path, _TORN.fullmatch(path.name)) for path in directory.iterdir())
    return [path for path, match in found if match and int(match[1]) <= segment]


def is_known(name: str) -> bool:
    """Whether a file of this name can be in a chain's directory."""
    return name == SPARE or bool(_SEGMENT.fullmatch(name) or _TORN.fullmatch(name))
