"""SoftHSM's files: what it does not do for durability is done here.

SoftHSM 2.6.1 never calls fsync, so a key it acknowledged is lost at a power cut; and C_Login
truncates and rewrites `token.object` in place, so a kill in the middle loses the token. So:

* after a login and after a key was made, the changed files and their directories are made durable;
* a verified copy of each `token.object` is kept by the gateway, and put back before a worker starts
  when the original is empty or shorter than the copy, which is what such a kill leaves.

Files are only ever read here, but for that one restoration.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

__all__ = ["MANUFACTURER", "keep_copies", "make_durable", "restore", "token_directories"]

MANUFACTURER: Final = "SoftHSM"
_TOKEN_FILE: Final = "token.object"


def token_directories(environment: Mapping[str, str]) -> list[Path]:
    """The directories of all tokens of a SoftHSM configuration."""
    try:
        lines = Path(environment.get("SOFTHSM2_CONF", "/etc/softhsm/softhsm2.conf")).read_text()
    except OSError:
        return []
    for line in lines.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "directories.tokendir":
            root = Path(value.strip())
            return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return []


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


def _copy_of(directory: Path, copies: Path) -> Path:
    return copies / f"softhsm-{directory.name}-{_TOKEN_FILE}"


def keep_copies(environment: Mapping[str, str], copies: Path) -> None:
    """Keep a copy of each token file that is whole; blocks."""
    from ..instance import write_file

    for directory in token_directories(environment):
        try:
            data = (directory / _TOKEN_FILE).read_bytes()
            kept = _copy_of(directory, copies)
            if data and (not kept.exists() or len(data) >= kept.stat().st_size):
                write_file(kept, data)
        except FileNotFoundError:
            continue


def restore(environment: Mapping[str, str], copies: Path) -> list[str]:
    """Put back token files that a kill in C_Login cut short; their directories' names."""
    from ..instance import write_file

    restored = []
    for directory in token_directories(environment):
        kept = _copy_of(directory, copies)
        original = directory / _TOKEN_FILE
        if not kept.exists():
            continue
        size = original.stat().st_size if original.exists() else 0
        data = kept.read_bytes()
        if size < len(data):
            write_file(original, data)
            restored.append(directory.name)
    return restored
