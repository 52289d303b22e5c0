"""Checkpoints: signed notes that say how far each chain went, and how they follow each other.

Theory of operation
-------------------
A checkpoint is a signed note (C2SP, https://c2sp.org/signed-note): a text, an empty line, and
signature lines. Anybody can read it, mail it, print it, and have it signed by a witness too; `cat`
shows it. The text is exactly

    hsmux.audit/<deployment, 32 hexadecimal digits>
    checkpoint <number, from 1>
    time <milliseconds since 1970 UTC>
    previous <base64 of SHA-256 over the previous note as stored; 32 zero bytes before the first>
    chain <chain, 32 hexadecimal digits> <last record> <base64 of the head after it>
    chain ...                                              (ascending, each chain once)

The first line is also the name of the key. A signature is ECDSA on P-256 over SHA-256 of the text
in DER, signature type 2 of the registry there, whose key ID is the beginning of SHA-256 over the
public key in SPKI form. The form "checkpoint" of transparency logs is another one: it has the root
of a Merkle tree in its third line, and hash chains have none.

Checkpoints are stored one behind the other in one file. Each holds the hash of the one before it,
signatures included, so that none can be taken out, doubled or exchanged. A stored checkpoint has
one signature; one that comes from outside may carry others, and these are not looked at.

A later checkpoint says all that an earlier one said, of longer chains. So the oldest are removed
when the file has grown to `FILE_SIZE_MAX`; a record in a chain says so (see `retention`).

Nothing here signs: `checkpoint_text` is what has to be signed, `sealed_note` puts the signature to
it, and whoever has the key does what lies between.
"""

import base64
import binascii
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..private_files import open_regular
from .layout import CHECKPOINTS_NEW
from .segments import ChainEnd, SyncFailed, sync_directory

__all__ = [
    "BEFORE_FIRST",
    "FILE_SIZE_MAX",
    "NOTE_SIZE_MAX",
    "BadCheckpoint",
    "Checkpoint",
    "CheckpointFile",
    "checkpoint_text",
    "key_name",
    "load_public_key",
    "read_note",
    "sealed_note",
    "split_notes",
]

BEFORE_FIRST: Final = bytes(32)
"""Stands for the hash of a checkpoint before the first."""

NOTE_SIZE_MAX: Final = 1 << 20
"""Bytes of a note: some 10,000 chains."""

FILE_SIZE_MAX: Final = 4 << 20
"""Bytes of the file of checkpoints, beyond which the older half of them goes: a day of records that
never stop, or as many months as records come in days.
"""

_SIGNATURES_MAX: Final = 16
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_DASH: Final = "— "
_NUMBER: Final = r"(0|[1-9][0-9]{0,18})"
_HASH: Final = r"([A-Za-z0-9+/]{43}=)"
_TEXT: Final = re.compile(
    rf"hsmux\.audit/([0-9a-f]{{32}})\ncheckpoint {_NUMBER}\ntime {_NUMBER}\nprevious {_HASH}\n"
    rf"((?:chain [0-9a-f]{{32}} {_NUMBER} {_HASH}\n)*)",
    re.ASCII,
)
_SIGNATURE: Final = re.compile(r"— (\S+) ([A-Za-z0-9+/]+={0,2})")


class BadCheckpoint(Exception):
    """A note that is not a checkpoint, or not signed by that key; the text is for people."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes:
        deployment: 16 bytes.
        number: From 1.
        at_ms: When it was made.
        previous: SHA-256 of the note before it, or `BEFORE_FIRST`.
        chains: How far each chain went.
        digest: SHA-256 of the note.
    """

    deployment: bytes
    number: int
    at_ms: int
    previous: bytes
    chains: Mapping[bytes, ChainEnd]
    digest: bytes


def key_name(deployment: bytes) -> str:
    """The first line of a deployment's checkpoints, and the name of its key."""
    return f"hsmux.audit/{deployment.hex()}"


def load_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key that verifies checkpoints.

    Raises:
        ValueError: It is not a P-256 public key in PEM.
    """
    key = serialization.load_pem_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not an elliptic-curve key on P-256")
    return key


def _key_id(key: ec.EllipticCurvePublicKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256(key.public_bytes(serialization.Encoding.DER, form)).digest()[:4]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes_of(text: str) -> bytes:
    """The bytes that base64 stands for, if it is the one spelling of them."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise BadCheckpoint("not base64") from None
    if _base64(data) != text:
        raise BadCheckpoint("not the one base64 of its bytes")
    return data


def checkpoint_text(
    deployment: bytes,
    number: int,
    at_ms: int,
    previous: bytes,
    chains: Mapping[bytes, ChainEnd],
) -> bytes:
    """What is signed: the text of a checkpoint.

    Args:
        deployment: 16 bytes.
        number: One more than the one before.
        at_ms: Now, milliseconds since 1970 UTC.
        previous: The digest of the one before, or `BEFORE_FIRST`.
        chains: The durable end of every chain that ever was in a checkpoint, and of new ones.
    """
    lines = [
        key_name(deployment),
        f"checkpoint {number}",
        f"time {at_ms}",
        f"previous {_base64(previous)}",
        *(
            f"chain {chain.hex()} {end.sequence} {_base64(end.head)}"
            for chain, end in sorted(chains.items())
        ),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def sealed_note(
    text: bytes, deployment: bytes, key: ec.EllipticCurvePublicKey, der: bytes
) -> bytes:
    """A text with its signature.

    Args:
        text: From `checkpoint_text`.
        deployment: 16 bytes.
        key: The public key.
        der: ECDSA signature over SHA-256 of the text, in DER.
    """
    line = f"{_DASH}{key_name(deployment)} {_base64(_key_id(key) + der)}\n"
    return text + b"\n" + line.encode()


def read_note(
    note: bytes, key: ec.EllipticCurvePublicKey, *, signatures_max: int = _SIGNATURES_MAX
) -> Checkpoint:
    """The checkpoint of a note that the key has signed.

    Args:
        note: All of it.
        key: Whose signature counts.
        signatures_max: Signature lines at most: 1 for a stored one.

    Raises:
        BadCheckpoint: It is malformed, or the key has not signed it.
    """
    if len(note) > NOTE_SIZE_MAX:
        raise BadCheckpoint("too large")
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise BadCheckpoint("not UTF-8") from None
    text, separator, rest = whole.partition("\n\n")
    signatures = rest.split("\n")
    if not separator or signatures.pop() or not 0 < len(signatures) <= signatures_max:
        raise BadCheckpoint("not a text and its signatures")
    text += "\n"
    checkpoint = _read_text(text, sha256(note).digest())
    if not _is_signed(text, signatures, key_name(checkpoint.deployment), key):
        raise BadCheckpoint("not signed by this key")
    return checkpoint


def _is_signed(text: str, signatures: list[str], name: str, key: ec.EllipticCurvePublicKey) -> bool:
    """Whether the key signed it; a signature in its name that is wrong spoils the note."""
    expected, found = _key_id(key), False
    for line in signatures:
        match = _SIGNATURE.fullmatch(line)
        if match is None:
            raise BadCheckpoint("a signature line that is none")
        data = _bytes_of(match[2])
        if match[1] != name or data[:4] != expected:
            continue
        try:
            key.verify(data[4:], text.encode(), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise BadCheckpoint("its signature is wrong") from None
        found = True
    return found


def _read_text(text: str, digest: bytes) -> Checkpoint:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise BadCheckpoint("not the text of a checkpoint")
    chains: dict[bytes, ChainEnd] = {}
    last = ""
    for line in match[5].split("\n")[:-1]:
        _, name, sequence, head = line.split(" ")
        if name <= last:
            raise BadCheckpoint("its chains are not in order")
        last = name
        chains[bytes.fromhex(name)] = ChainEnd(int(sequence), _bytes_of(head))
    return Checkpoint(
        deployment=bytes.fromhex(match[1]),
        number=int(match[2]),
        at_ms=int(match[3]),
        previous=_bytes_of(match[4]),
        chains=chains,
        digest=digest,
    )


def split_notes(path: Path) -> Iterator[tuple[int, bytes]]:
    """Where each note of a file begins, and the note, in order; not looked into any further.

    What a crash has left of a last one comes like a note.
    """
    with open_regular(path) as file:
        start, lines, size, is_signed = 0, list[bytes](), 0, False
        while line := file.readline(NOTE_SIZE_MAX):
            is_signature = line.startswith(_DASH.encode())
            if is_signed and not is_signature:
                yield start, b"".join(lines)
                start, lines, size = start + size, [], 0
            is_signed = is_signature
            lines.append(line)
            size += len(line)
            if size > NOTE_SIZE_MAX:
                break
        if lines:
            yield start, b"".join(lines)


def _is_whole(note: bytes) -> bool:
    """Whether a note was written to its end."""
    return b"\n\n" in note and note.endswith(b"\n") and not note.endswith(b"\n\n")


class CheckpointFile:
    """The file of one deployment's checkpoints; one process appends to it.

    Args:
        path: Made with mode 0600 if it is not there. A last note that a crash cut short is cut
            off: it was never told to anybody.
        key: Verifies the last one.

    Attributes:
        first: The oldest checkpoint that is there, or None.
        last: The newest checkpoint, or None.

    Raises:
        BadCheckpoint: The last whole note is not signed by the key.
        OSError: The file cannot be used.
    """

    def __init__(self, path: Path, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key
        self._failed = False
        self._path = path
        self.first: Checkpoint | None = None
        self.last: Checkpoint | None = None
        path.with_name(CHECKPOINTS_NEW).unlink(missing_ok=True)
        self._file = os.open(path, _FLAGS, 0o600)
        try:
            self._read(path)
        except BaseException:
            os.close(self._file)
            raise

    def __repr__(self) -> str:
        return f"CheckpointFile({self.last.number if self.last else 0} checkpoints)"

    def _read(self, path: Path) -> None:
        first = note = before = b""
        start = 0
        for start, one in split_notes(path):  # noqa: B007
            first = first or one
            before, note = note, one
        if note and not _is_whole(note):
            os.ftruncate(self._file, start)
            note = before
        if note:
            self.first = read_note(first, self._key, signatures_max=1)
            self.last = read_note(note, self._key, signatures_max=1)
        os.fsync(self._file)

    def text(self, deployment: bytes, at_ms: int, chains: Mapping[bytes, ChainEnd]) -> bytes:
        """What has to be signed next; chains that were in the last checkpoint stay in it."""
        last = self.last
        if last is None:
            return checkpoint_text(deployment, 1, at_ms, BEFORE_FIRST, chains)
        chains = {**last.chains, **chains}
        return checkpoint_text(deployment, last.number + 1, at_ms, last.digest, chains)

    def append(self, note: bytes) -> Checkpoint:
        """Store a checkpoint durably; call it in a thread.

        Raises:
            BadCheckpoint: It does not follow from the last one.
            OSError: There is no room; the file is as it was.
            SyncFailed: It may not be durable: this process must end.
        """
        checkpoint = read_note(note, self._key, signatures_max=1)
        number, previous = (self.last.number, self.last.digest) if self.last else (0, BEFORE_FIRST)
        if (checkpoint.number, checkpoint.previous) != (number + 1, previous):
            raise BadCheckpoint("it does not follow from the last one")
        if self._failed:
            raise SyncFailed("checkpoints could not be made durable: restart the gateway")
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, note) != len(note):
                raise OSError(0, "a short write")
        except OSError:
            os.ftruncate(self._file, size)
            raise
        try:
            os.fdatasync(self._file)
        except OSError as error:
            self._failed = True
            raise SyncFailed(f"a checkpoint is not durable: {error.strerror}") from None
        self.last = checkpoint
        self.first = self.first or checkpoint
        return checkpoint

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file).st_size

    def older_half(self) -> Checkpoint | None:
        """The last checkpoint of the older half of the file; None if there is no such half."""
        found = None
        for start, note in split_notes(self._path):
            if start + len(note) > self.size // 2:
                break
            found = note
        return None if found is None else read_note(found, self._key, signatures_max=1)

    def remove(self, number: int) -> None:
        """Remove the checkpoints up to one, after a record that says so is under a later one.

        Raises:
            OSError: They cannot be removed; the file is as it was.
            SyncFailed: It is not known what is durable: this process must end.
        """
        new = self._path.with_name(CHECKPOINTS_NEW)
        new.unlink(missing_ok=True)
        assert self.first is not None
        notes = itertools.islice(split_notes(self._path), number + 1 - self.first.number, None)
        kept = [note for _, note in notes]
        first = read_note(kept[0], self._key, signatures_max=1)
        file = os.open(new, _FLAGS, 0o600)
        try:
            with new.open("wb") as writing:
                writing.writelines(kept)
            os.fsync(file)
            os.rename(new, self._path)
        except BaseException:
            os.close(file)
            new.unlink(missing_ok=True)
            raise
        self._file, old = file, self._file
        os.close(old)
        self.first = first
        try:
            sync_directory(self._path.parent)
        except OSError as error:
            self._failed = True
            raise SyncFailed(f"checkpoints are not durable: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
