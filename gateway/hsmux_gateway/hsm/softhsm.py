"""SoftHSM's files: what it does not do for durability is done here.

SoftHSM 2.6.1 never calls fsync, so a key it acknowledged is lost at a power cut; and C_Login
truncates and rewrites `token.object` in place, so a kill in the middle loses the token. So:

* after a login and after a key was made, the changed files and their directories are made durable;
* a copy of each `token.object` that is whole is kept by the gateway, and put back before a worker
  initialises the module when the original is empty, cut short or gone, which is what such a kill
  leaves;
* making a key while another process looks for one fails now and then, and so does making two at a
  time: those who make keys, and those who log in, take turns on this host.

Files are only ever read here, but for that one restoration. Their format: `u64 generation`, then
attributes of `u64 type ‖ u64 kind ‖ value`, all big-endian; a value is one byte (kind 1), a u64 (2)
or a u64 length and so many bytes (3). A token's own file has no other kinds.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ..instance import write_file

__all__ = [
    "MANUFACTURER",
    "VARIABLE",
    "alone",
    "attribute_count",
    "is_softhsm",
    "keep_copies",
    "make_durable",
    "restore",
    "token_directories",
    "whereabouts",
]

MANUFACTURER: Final = "SoftHSM"
VARIABLE: Final = "SOFTHSM2_CONF"
"""Names SoftHSM's configuration; without the file it has no token and says nothing of why."""

_TOKEN_FILE: Final = "token.object"
_CONFIGURATION: Final = "/etc/softhsm/softhsm2.conf"
_WORD: Final = 8
_FIXED_SIZES: Final = {1: 1, 2: _WORD}
_BYTES_KIND: Final = 3
_UNTOLD: Final = 1 << 30


def is_softhsm(module: str) -> bool:
    """Whether a module is SoftHSM's, by its file's name."""
    return MANUFACTURER.lower() in module.lower()


def whereabouts(environment: Mapping[str, str]) -> str:
    """Which tokens SoftHSM sees, to end a message with; empty for other modules."""
    if not is_softhsm(environment.get("HSMUX_ADAPTER_MODULE", "")):
        return ""
    path = environment.get(VARIABLE)
    if path is None:
        return f"; SOFTHSM2_CONF is not set, so SoftHSM's tokens are those of {_CONFIGURATION}"
    return f"; SoftHSM's tokens are where SOFTHSM2_CONF leads, {path}"


def _root(environment: Mapping[str, str]) -> Path | None:
    """Where a SoftHSM configuration keeps its tokens."""
    try:
        lines = Path(environment.get(VARIABLE, _CONFIGURATION)).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() == "directories.tokendir":
            root = Path(value.strip())
            return root if root.is_dir() else None
    return None


def token_directories(environment: Mapping[str, str]) -> list[Path]:
    """The directories of all tokens of a SoftHSM configuration."""
    root = _root(environment)
    return [path for path in root.iterdir() if path.is_dir()] if root else []


@contextlib.contextmanager
def alone(is_softhsm: bool) -> Iterator[None]:
    """Keep all others out that log in or make keys in the same tokens, on this host."""
    root = _root(os.environ) if is_softhsm else None
    if root is None:
        yield
        return
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(directory: Path, since: float) -> Iterator[Path]:
    for entry in os.scandir(directory):
        try:
            if entry.stat().st_mtime >= since - 1:
                yield Path(entry.path)
        except FileNotFoundError:
            continue


def make_durable(since: float) -> None:
    """Make every file durable that changed since a time of `time.time()`; 0: the token files."""
    for directory in token_directories(os.environ):
        if since:
            for path in _changed(directory, since):
                _sync(path)
        else:
            _sync(directory / _TOKEN_FILE)
        _sync(directory)


def attribute_count(data: bytes) -> int | None:
    """Attributes in a token's file; None if it is cut short, very many if it is not understood."""
    place, count = _WORD, 0
    while place < len(data):
        kind = int.from_bytes(data[place + _WORD : place + 2 * _WORD], "big")
        place += 2 * _WORD
        if place > len(data):
            return None
        if kind == _BYTES_KIND:
            place += _WORD + int.from_bytes(data[place : place + _WORD], "big")
        elif kind in _FIXED_SIZES:
            place += _FIXED_SIZES[kind]
        else:
            return _UNTOLD
        count += 1
    return count if count and place == len(data) else None


def _copy_of(directory: Path, copies: Path) -> Path:
    return copies / f"softhsm-{directory.name}-{_TOKEN_FILE}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _whole_copies(
    environment: Mapping[str, str], copies: Path
) -> Iterator[tuple[Path, bytes, Path, bytes]]:
    """Each token file with its data, and its copy with its data."""
    for directory in token_directories(environment):
        original, kept = directory / _TOKEN_FILE, _copy_of(directory, copies)
        yield original, _read(original), kept, _read(kept)


def keep_copies(environment: Mapping[str, str], copies: Path) -> None:
    """Keep a copy of each token file that is whole; blocks."""
    for _, data, kept, kept_data in _whole_copies(environment, copies):
        if data != kept_data and (attribute_count(data) or 0) >= (attribute_count(kept_data) or 1):
            write_file(kept, data)


def restore(environment: Mapping[str, str], copies: Path) -> list[str]:
    """Put back token files that a kill in C_Login cut short; their directories' names."""
    restored = []
    for original, data, _, kept_data in _whole_copies(environment, copies):
        if (attribute_count(data) or 0) < (attribute_count(kept_data) or 0):
            write_file(original, kept_data)
            restored.append(original.parent.name)
    return restored
