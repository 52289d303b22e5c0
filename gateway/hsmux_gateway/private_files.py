"""Files and directories that belong to the gateway's user alone: the one look at owners and modes.

A file that holds a secret (PIN, root key, private key) is for nobody else, not even a group. A
directory that the gateway writes into must not be writable for others: who can write there can put
a link or another file where the gateway is about to write or read. Both belong to the user that
asks; a secret may belong to root, who reads everything anyway.

`check-config`, `init`, `serve`, `dev` and the verbs on tokens all ask here, so what one of them
takes the others take too. A mode tells of access control lists as well: their widest right shows as
that of the group.
"""

import errno
import os
import pwd
import shlex
import stat
from pathlib import Path
from typing import BinaryIO, Final

from .errors import EXIT_CONFIGURATION, OperatorError

__all__ = [
    "check_directory",
    "check_secret",
    "open_log",
    "open_regular",
    "read_regular",
    "read_unwritable",
]

SECRET_MASK: Final = 0o077
"""Permission bits that a secret's file must not have: any right of anybody else."""

WRITABLE_MASK: Final = 0o022
"""Permission bits that a directory must not have: that others may write there."""


def check_secret(what: str, path: Path) -> None:
    """Refuse a secret's file that is not for this user alone.

    Args:
        what: What it is to an operator, such as "configuration: hsm.main.pin_file".
        path: The file.

    Raises:
        OperatorError: It cannot be read, or somebody else can; says what to do.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        text = f"{what}: {path} cannot be read: {error.strerror}"
        raise OperatorError(text, exit_code=EXIT_CONFIGURATION) from None
    if not stat.S_ISREG(status.st_mode):
        raise OperatorError(f"{what}: {path} is not a file", exit_code=EXIT_CONFIGURATION)
    quoted = shlex.quote(str(path))
    if status.st_uid not in (os.geteuid(), 0):
        raise OperatorError(f"{what}: {path} belongs to {_remedy(status, quoted)}")
    if status.st_mode & SECRET_MASK:
        raise OperatorError(
            f"{what}: {path} is open to others (mode {_mode(status)}): chmod 600 {quoted}"
        )


def check_directory(what: str, path: Path) -> None:
    """Refuse a directory that another user has or can write into.

    Args:
        what: What it is to an operator, such as "instance_dir".
        path: The directory.

    Raises:
        OperatorError: It is not this user's alone, or is no directory; says what to do.
    """
    if not path.is_dir():
        text = f"{what}: {path} is no directory: make it, with mode 0700"
        raise OperatorError(text, exit_code=EXIT_CONFIGURATION)
    status = path.stat()
    quoted = shlex.quote(str(path))
    if status.st_uid != os.geteuid():
        raise OperatorError(
            f"{what}: {path} must belong to this user and belongs to {_remedy(status, quoted)}"
        )
    if status.st_mode & WRITABLE_MASK:
        raise OperatorError(
            f"{what}: {path} is writable for others (mode {_mode(status)}): chmod 700 {quoted}"
        )


def read_unwritable(what: str, path: Path, size_max: int) -> bytes:
    """What a file holds on which trust is built: others may read it and not write it.

    Raises:
        OperatorError: Others can write it, or what `read_regular` raises.
    """
    data, status = _read(what, path, size_max)
    quoted = shlex.quote(str(path))
    if status.st_uid not in (os.geteuid(), 0):
        raise OperatorError(f"{what}: {path} belongs to {_remedy(status, quoted)}")
    if status.st_mode & WRITABLE_MASK:
        raise OperatorError(
            f"{what}: {path} is writable for others (mode {_mode(status)}): chmod go-w {quoted}"
        )
    return data


def read_regular(what: str, path: Path, size_max: int) -> bytes:
    """What a file holds.

    Args:
        what: What it is to an operator.
        path: The file; anything else, which might never end, is refused.
        size_max: Its most bytes.

    Raises:
        OperatorError: It cannot be read or is too large; says which.
    """
    return _read(what, path, size_max)[0]


def open_regular(path: Path) -> BinaryIO:
    """A file to read; what is no file is refused, and nobody waits for the other end of a pipe.

    Raises:
        OSError: It cannot be opened, or is something else.
    """
    file = open(path, "rb", opener=_open_at_once)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file", str(path))
    return file


def _open_at_once(path: str, flags: int) -> int:
    """A descriptor, without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read(what: str, path: Path, size_max: int) -> tuple[bytes, os.stat_result]:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            data = file.read(size_max + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        text = f"{what}: {path} cannot be read: {error.strerror}"
        raise OperatorError(text, exit_code=EXIT_CONFIGURATION) from None
    if not stat.S_ISREG(status.st_mode):
        raise OperatorError(f"{what}: {path} is not a file", exit_code=EXIT_CONFIGURATION)
    if len(data) > size_max:
        raise OperatorError(f"{what}: {path} is larger than {size_max:,} bytes")
    return data, status


def open_log(path: Path) -> int:
    """A descriptor that appends to a log; a new file is for this user alone, a link is refused.

    Raises:
        OSError: It cannot be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"


def _remedy(status: os.stat_result, quoted: str) -> str:
    """Whose a file is, and what to do: who is wrong may be the file or the one that asks."""
    owner = _user(status.st_uid)
    return f"{owner}: run this as {owner}, or chown {_user(os.geteuid())} {quoted}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
