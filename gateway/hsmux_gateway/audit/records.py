"""The kinds of audit record: what is kept of each, its bytes and its JSON form.

A record is one msgpack array: the number of its kind, then the fields of the kind in the order of
the class below. The classes are the table: their numbers, names, fields and limits are read here by
the writer, the strict reader, the export and the documentation. Numbers and the order of fields are
never changed; a kind that needs more gets a new number.

Records are written by the gateway alone, so the writer does not check what the types say; it
cuts texts that a caller chose (`cut`). The reader does: a body is read by the types and limits
below, then written again and compared, so that exactly one sequence of bytes stands for a record.

A record holds no secret: no plaintext, ciphertext, message, signature, PIN or context value. A
context is there as `context`, 16 bytes under a key of the deployment: equal contexts are seen to
be equal, and nobody without the key can try values.

The JSON form has stable names: `kind` first, times as RFC 3339 in UTC with milliseconds,
identifiers as everywhere else in the product, operations and outcomes by name.
"""

import datetime
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import astuple

from hsmux_protocol.errors import ERROR_BY_NUMBER
from hsmux_protocol.operations import OPERATION_BY_NUMBER
from hsmux_protocol.references import format_key_id

__all__ = [
    "DONE",
    "KINDS",
    "KIND_NAMES",
    "RECORD_SIZE_MAX",
    "TEXT_MAX",
    "AdministratorRestored",
    "AnyRecord",
    "CheckpointsRetired",
    "ClockJump",
    "Flood",
    "Limited",
    "MalformedRecord",
    "Recovered",
    "Request",
    "Retired",
    "RollbackAccepted",
    "Run",
    "Start",
    "Stop",
    "Torn",
    "cut",
    "export_record",
    "read_record",
    "write_record",
]

RECORD_SIZE_MAX: Final = 8 * 1024
"""Bytes of a record's body: every field at its limit, four bytes a character."""

TEXT_MAX: Final = 256
"""Characters of any text in a record."""

DONE: Final = 0
"""The outcome of a request that was done; others are numbers of the error table."""

_LAST_MS: Final = 253_402_300_799_999
"""The last millisecond that a four-digit year can name."""

_Text = Annotated[str, Meta(max_length=TEXT_MAX)]
_Moment = Annotated[int, Meta(ge=0, le=_LAST_MS)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Number = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_Short = Annotated[int, Meta(ge=0, le=2**16 - 1)]
_Signed = Annotated[int, Meta(ge=-(2**53), le=2**53)]
_Identifier = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Known = Annotated[bytes, Meta(max_length=16)]


class MalformedRecord(Exception):
    """Bytes that are not exactly what `write_record` writes for a record of a known kind."""


class _Record(
    msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=0
):
    """What every record has.

    Attributes:
        at_ms: When it was made, milliseconds since 1970 UTC by the wall clock.
    """

    kind: ClassVar[str] = ""

    at_ms: _Moment


class Start(_Record, frozen=True, array_like=True, tag=1):
    """A process began to record.

    Attributes:
        software: Its version.
        libraries: Versions of the native libraries it uses.
    """

    kind = "start"

    software: _Text
    libraries: _Text


class Stop(_Record, frozen=True, array_like=True, tag=2):
    """A process stopped in order.

    Attributes:
        records: How many it has recorded since its start, this one included.
    """

    kind = "stop"

    records: _Count


class Request(_Record, frozen=True, array_like=True, tag=3):
    """One request, whatever became of it.

    Attributes:
        reference: Joins answer, record and log line.
        access_point: The caller's access point, by name.
        access_point_id: The same, 16 bytes.
        client_key: The client key it proved, 16 bytes; of a certificate of an outside CA the begin
            of the SHA-256 of its public key.
        peer: From where.
        operation: Number in the operation table; 0 if the gateway does not know it.
        statement: What decided that it may or may not be done.
        resource: What it was about, as the caller named it; cut to `TEXT_MAX`.
        key_id: The key that was used, 16 bytes, or empty.
        key_version: Its version, or 0.
        outcome: `DONE`, or the number of the error the caller got.
        context: Keyed hash of the context, 16 bytes, or empty where there is none.
        items: Items of a batch, or 1.
        items_failed: Of these, how many got an error of their own.
        bytes_in: Bytes of the request.
        bytes_out: Bytes of the data in its answer.
        elapsed_us: From decode to record, in microseconds.
    """

    kind = "request"

    reference: _Text
    access_point: _Text
    access_point_id: _Identifier
    client_key: _Identifier
    peer: _Text
    operation: _Short
    statement: _Text
    resource: _Text
    key_id: _Known
    key_version: _Number
    outcome: _Short
    context: _Known
    items: _Number
    items_failed: _Number
    bytes_in: _Count
    bytes_out: _Count
    elapsed_us: _Count


class Run(_Record, frozen=True, array_like=True, tag=4):
    """Requests of one connection that came together, differ in their data only and were all done.

    Their references are `first` to `last`, without a gap, so that each is found by its own.

    Attributes:
        first: Reference of the first request.
        last: Reference of the last.
        count: How many requests.
        elapsed_us: For all together.
    """

    kind = "run"

    first: _Text
    last: _Text
    count: _Number
    access_point: _Text
    access_point_id: _Identifier
    client_key: _Identifier
    peer: _Text
    operation: _Short
    statement: _Text
    resource: _Text
    key_id: _Known
    key_version: _Number
    context: _Known
    bytes_in: _Count
    bytes_out: _Count
    elapsed_us: _Count


class Torn(_Record, frozen=True, array_like=True, tag=5):
    """The end of a segment was no whole record, as a crash leaves it, and was cut off.

    Attributes:
        segment: Number of the segment.
        offset: Where the cut is, bytes from its beginning.
        size: Bytes that were cut off.
        digest: SHA-256 of these bytes.
    """

    kind = "torn"

    segment: _Number
    offset: _Count
    size: _Count
    digest: _Hash


class Flood(_Record, frozen=True, array_like=True, tag=6):
    """Connections that were refused before anybody was known, counted together.

    Attributes:
        first_ms: When the first of them came.
        last_ms: When the last of them came.
        source: The peer's address, or "others" where too many sources came at once.
        reason: Why they were refused.
        count: How many.
    """

    kind = "flood"

    first_ms: _Moment
    last_ms: _Moment
    source: _Text
    reason: _Text
    count: _Count


class Retired(_Record, frozen=True, array_like=True, tag=7):
    """The oldest segments of this chain are past their time and are being removed.

    Attributes:
        segment: The last segment that goes.
        last_sequence: The last record in it.
        head: The head of the chain after that record.
    """

    kind = "retired"

    segment: _Number
    last_sequence: _Count
    head: _Hash


class ClockJump(_Record, frozen=True, array_like=True, tag=8):
    """The wall clock moved by itself against the monotonic clock.

    Attributes:
        by_ms: By how much: positive is forward.
    """

    kind = "clock_jump"

    by_ms: _Signed


class RollbackAccepted(_Record, frozen=True, array_like=True, tag=9):
    """An operator let the gateway go on with a store that is older than its anchor.

    Attributes:
        revision: Of the store as it was found.
        anchored_revision: Of the store when the anchor was written.
        anchored_ms: When that was.
    """

    kind = "rollback_accepted"

    revision: _Count
    anchored_revision: _Count
    anchored_ms: _Moment


class Recovered(Request, frozen=True, array_like=True, tag=10):
    """The record of a change that was made, and whose process did not live to append it.

    What it took is not known, so `elapsed_us` is 0.

    Attributes:
        made_ms: When the change was made; `at_ms` is when this record was.
        chain: The chain that it was meant for, 16 bytes.
    """

    kind = "recovered"

    made_ms: _Moment
    chain: _Identifier


class CheckpointsRetired(_Record, frozen=True, array_like=True, tag=11):
    """The oldest checkpoints are being removed: later ones hold what they held.

    Attributes:
        number: The last checkpoint that goes.
        digest: SHA-256 of it.
    """

    kind = "checkpoints_retired"

    number: _Count
    digest: _Hash


class AdministratorRestored(_Record, frozen=True, array_like=True, tag=12):
    """An operator gave the first administrator its state and its policy again, past all policies.

    Attributes:
        restored_ms: When that was; `at_ms` is when the next gateway started.
        approvals: How many approvals were wanted until then; since then none are.
    """

    kind = "administrator_restored"

    restored_ms: _Moment
    approvals: _Number


class Limited(_Record, frozen=True, array_like=True, tag=13):
    """Requests that were over a limit of their access point and were refused, counted together.

    They have no records of their own.

    Attributes:
        first_ms: When the first of them came.
        last_ms: When the last of them came.
        access_point: By name, or "others" where too many were over theirs at once.
        limit: Which limit, as a field of an access point.
        count: How many.
    """

    kind = "limited"

    first_ms: _Moment
    last_ms: _Moment
    access_point: _Text
    limit: _Text
    count: _Count


AnyRecord = (
    Start
    | Stop
    | Request
    | Run
    | Torn
    | Flood
    | Retired
    | ClockJump
    | RollbackAccepted
    | Recovered
    | CheckpointsRetired
    | AdministratorRestored
    | Limited
)

KINDS: Final[Mapping[int, type[AnyRecord]]] = {
    1: Start,
    2: Stop,
    3: Request,
    4: Run,
    5: Torn,
    6: Flood,
    7: Retired,
    8: ClockJump,
    9: RollbackAccepted,
    10: Recovered,
    11: CheckpointsRetired,
    12: AdministratorRestored,
    13: Limited,
}
"""Every kind by its number."""

KIND_NAMES: Final = tuple(kind.kind for kind in KINDS.values())
"""The names of the JSON form, in the order of the numbers."""

write_record: Final = msgspec.msgpack.Encoder().encode
"""The bytes of a record."""

_decode: Final = msgspec.msgpack.Decoder(AnyRecord).decode


def read_record(body: bytes) -> AnyRecord:
    """The record of a body.

    Raises:
        MalformedRecord: The body is not exactly what `write_record` writes for any record.
    """
    try:
        record: AnyRecord = _decode(body)
    except msgspec.DecodeError as error:
        raise MalformedRecord(str(error)) from None
    except UnicodeDecodeError:
        raise MalformedRecord("a text is not UTF-8") from None
    if write_record(record) != body:
        raise MalformedRecord("not in its shortest form")
    return record


def cut(text: str) -> str:
    """A caller's text as a record can hold it."""
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def _moment(at_ms: int) -> str:
    at = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=at_ms)
    return at.isoformat(timespec="milliseconds") + "Z"


def _operation(number: int) -> str:
    found = OPERATION_BY_NUMBER.get(number)
    return "unknown" if found is None else found.name


def _outcome(number: int) -> str:
    found = ERROR_BY_NUMBER.get(number)
    return "done" if number == DONE else str(number) if found is None else found.__name__


def _key_id(key_id: bytes) -> str:
    return format_key_id(key_id) if len(key_id) == 16 else key_id.hex()


_EXPORTED: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "at_ms": ("at", _moment),
    "made_ms": ("made_at", _moment),
    "restored_ms": ("restored_at", _moment),
    "first_ms": ("first_at", _moment),
    "last_ms": ("last_at", _moment),
    "anchored_ms": ("anchored_at", _moment),
    "operation": ("operation", _operation),
    "outcome": ("outcome", _outcome),
    "key_id": ("key_id", _key_id),
    "access_point_id": ("access_point_id", bytes.hex),
    "client_key": ("client_key", bytes.hex),
    "context": ("context", bytes.hex),
    "digest": ("digest", bytes.hex),
    "head": ("head", bytes.hex),
    "chain": ("meant_for", bytes.hex),
}
"""Fields whose name or value is another one in JSON."""


class _Form(NamedTuple):
    """The JSON form of a kind of record: the names, and what changes some of the values."""

    names: tuple[str, ...]
    converted: tuple[tuple[str, Callable[[Any], Any]], ...]


@cache
def _form_of(kind: type[AnyRecord]) -> _Form:
    fields = kind.__struct_fields__
    names = tuple(_EXPORTED[field][0] if field in _EXPORTED else field for field in fields)
    return _Form(names, tuple(_EXPORTED[field] for field in fields if field in _EXPORTED))


def export_record(record: AnyRecord) -> dict[str, Any]:
    """The JSON form of a record, in the order of its fields."""
    names, converted = _form_of(type(record))
    exported = {"kind": record.kind, **dict(zip(names, astuple(record), strict=True))}
    for name, convert in converted:
        exported[name] = convert(exported[name])
    return exported
