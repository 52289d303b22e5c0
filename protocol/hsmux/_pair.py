"""The files of a client key: read while others replace them, and replaced so that a crash at any
moment leaves a pair that works.

Theory of operation
-------------------
Certificate and private key are two files, and no system renames two at once. The new ones are
written beside the old ones under the suffix `.new`, made durable, and proven by a connection. Then
the private key is renamed, then the certificate:

    before            old certificate, old key; perhaps both `.new`
    between           old certificate, new key, new certificate as `.new`
    after             new certificate, new key

So whoever reads takes the certificate and, if it does not fit the key, the one with the suffix;
and if meanwhile that was renamed too, the certificate once more. Readers need no lock and write
nothing, and find a pair that fits in each of the three.

Who replaces holds a lock on `<private key>.lock`, which the system lets go when its process ends,
and begins with what another one may have left: `between` is finished by the second rename, a whole
new pair is used, and anything else with the suffix is removed. So is a whole new pair that is older
than what is in its place: it was to replace something that somebody has replaced already.

A file may hold both certificate and private key. Links are followed: what they point to is
replaced. What is written is for its owner only.
"""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # pragma: no cover - only where there is no such lock, nothing is replaced
    fcntl = None  # type: ignore[assignment]

__all__ = ["NEW", "LockHeld", "Pair", "load_pair"]

NEW: Final = ".new"
"""Suffix of what takes a file's place next."""

MODE: Final = 0o600


class LockHeld(Exception):
    """Another thread or process is replacing this pair. Never leaves the package."""


def load_pair(context: ssl.SSLContext, certificate: str, private_key: str) -> None:
    """Load a client key into a context, whole or while it is being replaced.

    Raises:
        OSError, ValueError: There is no pair; what is wrong with the files as they are named.
    """
    problem: OSError | ValueError | None = None
    for path in (certificate, os.path.realpath(certificate) + NEW, certificate):
        try:
            # An encrypted key would make OpenSSL ask on the terminal; an empty password refuses it.
            context.load_cert_chain(path, private_key, password="")
            return
        except (OSError, ValueError) as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _fit(certificate: Path, private_key: Path) -> bool:
    """Whether two files are a pair."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(certificate, private_key, password="")
    except (OSError, ValueError):
        return False
    return True


class Pair:
    """A client key's files, to replace.

    Args:
        certificate: PEM file; more certificates may follow the first.
        private_key: PEM file; may be the same.
    """

    def __init__(self, certificate: str, private_key: str) -> None:
        self.certificate = Path(os.path.realpath(certificate))
        self.private_key = Path(os.path.realpath(private_key))

    @property
    def new(self) -> "Pair":
        """What takes its place next."""
        return Pair(f"{self.certificate}{NEW}", f"{self.private_key}{NEW}")

    @property
    def fits(self) -> bool:
        """Whether both files are there and belong together."""
        return _fit(self.certificate, self.private_key)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, nobody else replaces it.

        Raises:
            LockHeld: Somebody else does.
            OSError: There can be no lock here.
        """
        if fcntl is None:
            raise OSError(0, "files cannot be locked on this system", str(self.private_key))
        path = f"{self.private_key}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockHeld from None
            try:
                yield
            finally:
                # A child that was forked meanwhile has the lock as well, and does not know.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def resume(self) -> bool:
        """Tidy up what was left in the middle; the lock is held.

        Returns:
            Whether a whole new pair is there that has not taken the place of this one.
        """
        new = self.new
        if new.fits and not (self.fits and self._changed_ns()[1] > new._changed_ns()[0]):
            return True
        if not self.fits and _fit(new.certificate, self.private_key):
            os.replace(new.certificate, self.certificate)
            self._sync()
        self.discard()
        return False

    def prepare(self) -> None:
        """Find out whether it can be replaced at all, before a new pair is asked for.

        Raises:
            OSError: It cannot.
        """
        for path in self._paths():
            os.close(_create(path.with_name(path.name + NEW)))

    def stage(self, certificate: bytes, private_key: bytes) -> None:
        """Write what takes its place next.

        Raises:
            OSError: It cannot be written.
        """
        if self.certificate == self.private_key:
            contents = {self.certificate: certificate + private_key}
        else:
            contents = {self.private_key: private_key, self.certificate: certificate}
        for path, content in contents.items():
            with open(_create(path.with_name(path.name + NEW)), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        self._sync()

    def install(self) -> None:
        """Let what is staged take its place."""
        for path in self._paths():
            os.replace(f"{path}{NEW}", path)
            self._sync()

    def discard(self) -> None:
        """Remove what is staged, if anything is."""
        for path in self._paths():
            with suppress(FileNotFoundError):
                os.unlink(f"{path}{NEW}")

    def _paths(self) -> list[Path]:
        """Its files, the private key first."""
        return list(dict.fromkeys((self.private_key, self.certificate)))

    def _changed_ns(self) -> tuple[int, int]:
        """When its files came to be what they are: the first, and the last.

        Not when they were written, which whoever copies a file can take along.
        """
        changed = [path.stat().st_ctime_ns for path in self._paths()]
        return min(changed), max(changed)

    def _sync(self) -> None:
        """Make names durable."""
        for directory in {path.parent for path in self._paths()}:
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _create(path: Path) -> int:
    """A new, empty file, in the place of one that may be there."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
