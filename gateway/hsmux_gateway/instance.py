"""The instance directory: everything one gateway keeps on its host, owned by it alone.

    lock                 held while the gateway runs; a second one is refused
    store.db             the embedded store, unless `store.url` names another
    audit/               records
    tls/                 the gateway's own certificate and private key
    administrator/       the first administrator's client key, made by `hsmux init`
    hsm/                 what the HSM layer keeps: PIN marks, copies of token files
    anchor               the store's anchor, where the root's token keeps no data objects

Files are written whole or not at all: to a temporary name, made durable, then renamed.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from .audit.layout import PUBLIC_KEY
from .errors import OperatorError
from .private_files import check_directory

__all__ = ["Instance", "sync_directory", "write_file"]


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file durably, whole or not at all.

    Args:
        path: Where; its directory must exist.
        data: Everything the file will hold.
        mode: Permissions, set before the file has its name.
    """
    temporary = path.with_name(f".{path.name}.new")
    # One that a crash left holds what nobody uses.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Instance:
    """A locked instance directory; use it as a context manager.

    Args:
        path: The directory; made with mode 0700 if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def __enter__(self) -> Self:
        """Lock the directory.

        Raises:
            OperatorError: Another gateway has it, or it cannot be used.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_directory("instance_dir", self.path)
            for name in ("audit", "tls", "administrator", "hsm"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
                check_directory("instance_dir", self.path / name)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = os.open(self.path / "lock", flags, 0o600)
        except OSError as error:
            raise OperatorError(
                f"instance_dir {self.path} cannot be used: {error.strerror}; "
                "make it writable for this user or name another"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(self._lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise OperatorError(
                f"instance_dir {self.path} belongs to a running gateway (process {owner}); "
                "stop it, or give this one an instance_dir of its own"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the directory free."""
        os.close(self._lock)

    @property
    def server_certificate(self) -> Path:
        """The gateway's own certificate."""
        return self.path / "tls" / "server.pem"

    @property
    def server_key(self) -> Path:
        """Its private key."""
        return self.path / "tls" / "server.key"

    @property
    def next_server_key(self) -> Path:
        """The private key of the certificate that is about to take its place."""
        return self.path / "tls" / "server.next.key"

    @property
    def audit_key(self) -> Path:
        """The public key that verifies the audit log."""
        return self.path / "audit" / PUBLIC_KEY

    @property
    def administrator(self) -> Path:
        """The directory of the first administrator's client key."""
        return self.path / "administrator"

    @property
    def hsm(self) -> Path:
        """The HSM layer's directory."""
        return self.path / "hsm"
