"""Audit logs to test with: records of every kind, chains of them, checkpoints by a test's key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway.audit.chain import HEADER_SIZE, Place, parse_header, walk
from hsmux_gateway.audit.checkpoints import CheckpointFile, sealed_note
from hsmux_gateway.audit.layout import CHECKPOINTS, chain_directories, segment_paths
from hsmux_gateway.audit.records import (
    AdministratorRestored,
    AnyRecord,
    CheckpointsRetired,
    ClockJump,
    Flood,
    Limited,
    Recovered,
    Request,
    Retired,
    RollbackAccepted,
    Run,
    Start,
    Stop,
    Torn,
    read_record,
    write_record,
)
from hsmux_gateway.audit.segments import SEGMENT_SIZE_MIN, ChainEnd, ChainWriter, open_chain
from hsmux_gateway.audit.verify import Report, verify
from hsmux_protocol.errors import Denied

__all__ = [
    "AT_MS",
    "DEPLOYMENT",
    "KEY",
    "PUBLIC_KEY",
    "add_checkpoint",
    "appended",
    "every_kind",
    "make_log",
    "records_of",
    "request",
    "signed",
    "verified",
]

DEPLOYMENT: Final = bytes(range(16))
AT_MS: Final = 1_700_000_000_000
KEY: Final = ec.derive_private_key(0x1234567890ABCDEF, ec.SECP256R1())
PUBLIC_KEY: Final = KEY.public_key()


def request(number: int, at_ms: int = AT_MS) -> Request:
    """A request that differs from others."""
    return Request(
        at_ms + number,
        f"r5f3a91c07b2e-{number:x}",
        "billing",
        b"a" * 16,
        b"k" * 16,
        "192.0.2.7",
        3 + number % 5,
        "rule: an enabled client key may do everything",
        f"alias/key-{number}",
        b"K" * 16 if number % 3 else b"",
        number % 3,
        0 if number % 7 else Denied.number,
        b"c" * 16 if number % 2 else b"",
        1,
        0,
        64 + number,
        180,
        number * 11,
    )


def every_kind() -> list[AnyRecord]:
    """One record of each kind, in the order of the numbers."""
    who = ("billing", b"a" * 16, b"k" * 16, "192.0.2.7")
    return [
        Start(AT_MS, "0.1.0", "OpenSSL 3.0.22"),
        Stop(AT_MS, 17),
        request(1),
        Run(AT_MS, "r0-1", "r0-a", 10, *who, 4, "rule", "alias/a", b"K" * 16, 1, b"", 640, 1800, 9),
        Torn(AT_MS, 1, 4711, 99, bytes(32)),
        Flood(AT_MS, AT_MS - 9000, AT_MS - 1, "198.51.100.9", "certificate expired", 412),
        Retired(AT_MS, 1, 1000, b"h" * 32),
        ClockJump(AT_MS, -3_600_000),
        RollbackAccepted(AT_MS, 90, 100, AT_MS - 60_000),
        Recovered(**msgspec.structs.asdict(request(2)), made_ms=AT_MS - 5000, chain=b"C" * 16),
        CheckpointsRetired(AT_MS, 12, b"d" * 32),
        AdministratorRestored(AT_MS, AT_MS - 60_000, 2),
        Limited(AT_MS, AT_MS - 9000, AT_MS - 1, "billing", "requests_per_s", 9000),
    ]


def appended(writer: ChainWriter, first: int, count: int, at_ms: int = AT_MS) -> None:
    """Append requests by their numbers, in groups as a recorder does, and make them durable."""
    numbers = range(first, first + count)
    for start in range(0, count, 50):
        writer.append([write_record(request(n, at_ms)) for n in numbers[start : start + 50]])
    writer.sync()


def signed(text: bytes, key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    """A checkpoint's text signed by the key of the tests, or another."""
    der = key.sign(text, ec.ECDSA(hashes.SHA256()))
    return sealed_note(text, DEPLOYMENT, key.public_key(), der)


def add_checkpoint(root: Path, chains: Mapping[bytes, ChainEnd], at_ms: int = AT_MS) -> bytes:
    """Sign and store how far chains are; the note."""
    file = CheckpointFile(root / CHECKPOINTS, PUBLIC_KEY)
    try:
        note = signed(file.text(DEPLOYMENT, at_ms, chains))
        file.append(note)
    finally:
        file.close()
    return note


def records_of(root: Path) -> list[AnyRecord]:
    """Every record of a log of one chain, as far as they follow from each other."""
    records = []
    for path in segment_paths(chain_directories(root)[0]).values():
        data = path.read_bytes()
        header = parse_header(data)
        place = Place(header.sequence, header.head, HEADER_SIZE)
        records += [read_record(body) for _, _, body, _ in walk(data, place)]
    return records


def verified(root: Path) -> Report:
    """A whole verification of a log that nobody writes, under a checkpoint over everything."""
    writer = open_chain(root, DEPLOYMENT)
    (root / CHECKPOINTS).unlink(missing_ok=True)
    add_checkpoint(root, {writer.chain: writer.end})
    writer.close()
    report = verify(root, PUBLIC_KEY)
    assert report.ok, report.problems
    return report


def make_log(
    root: Path,
    records: int = 1000,
    chains: int = 1,
    checkpoints: int = 4,
    segment_size: int = SEGMENT_SIZE_MIN,
) -> None:
    """A log whose last checkpoint holds every record."""
    writers = [open_chain(root, DEPLOYMENT, segment_size=segment_size) for _ in range(chains)]
    for number in range(checkpoints):
        for writer in writers:
            appended(writer, number * records // checkpoints, records // checkpoints)
        add_checkpoint(root, {writer.chain: writer.end for writer in writers}, AT_MS + number)
    for writer in writers:
        writer.close()
