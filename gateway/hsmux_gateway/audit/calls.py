"""From a call that is over to its record: what is kept of it, and in which form.

A record names things as the caller did, and what was really used where the answer says so. Nothing
of the data is kept but its size. Of a context there is a keyed hash, 16 bytes: equal contexts are
seen to be equal, and nobody without the key can try values. A batch whose items have contexts of
their own has none.

Calls of a run that were all done with one key version become one record if their references follow
each other without a gap, so that each is still found by its own; otherwise each has its record.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from hsmux_protocol.columns import column_count, unpack_u16_column
from hsmux_protocol.context import EMPTY_CONTEXT
from hsmux_protocol.operations import OPERATION_BY_NUMBER, Operation
from hsmux_protocol.references import KeyReference

from ..access.asked import name_of
from ..call import Call
from ..clock import now_ms
from .records import DONE, AnyRecord, Request, Run, cut

__all__ = ["CONTEXT_HASH_SIZE", "CallRecords"]

CONTEXT_HASH_SIZE: Final = 16
"""Bytes of the hash of a context."""

STATUS_SIZE: Final = 2
"""Bytes of the status of an item."""


class _Places(NamedTuple):
    """Where an operation's arguments and results have what is kept; -1: nowhere."""

    context: int
    contexts: int
    statuses: int
    key_id: int
    key_version: int
    key: int


def _places_of(operation: Operation) -> _Places:
    arguments = [field.name for field in operation.arguments]
    results = [field.name for field in operation.results]

    def place(names: list[str], name: str) -> int:
        return names.index(name) if name in names else -1

    return _Places(
        place(arguments, "context"),
        place(arguments, "contexts"),
        place(results, "statuses"),
        place(results, "key_id"),
        place(results, "key_version"),
        place(results, "key"),
    )


_PLACES: Final = {number: _places_of(one) for number, one in OPERATION_BY_NUMBER.items()}
_NOWHERE: Final = _Places(-1, -1, -1, -1, -1, -1)
"""For operations this gateway does not know."""


def _places(call: Call) -> _Places:
    return _PLACES.get(call.operation.number, _NOWHERE)


_SUBJECTS: Final = ("access_point", "name", "client_key_id", "request")
"""First arguments that name what is managed."""


def _resource(call: Call) -> str:
    """What a call is about, as the caller named it."""
    fields = call.operation.arguments
    if fields and call.arguments and fields[0].name in _SUBJECTS:
        # The one subject that may be left out is the caller's own client key.
        subject: str | bytes = call.arguments[0] or call.principal.client_key_id
        return subject.hex() if isinstance(subject, bytes) else subject
    return name_of(call)


def _used(call: Call, values: Sequence[Any]) -> tuple[bytes, int]:
    """The key and version that an answer names; else the key that the caller named by its ID."""
    places = _places(call)
    if values and places.key_id >= 0:
        version = values[places.key_version] if places.key_version >= 0 else 0
        return values[places.key_id], version
    if values and places.key >= 0:
        return getattr(values[places.key], "key_id", b""), 0
    reference = call.arguments[0] if call.arguments else None
    if isinstance(reference, KeyReference):
        return reference.key_id or b"", reference.version or 0
    return b"", 0


def _items(call: Call, values: Sequence[Any]) -> tuple[int, int]:
    """How many items a call has, and how many of them failed."""
    place = _places(call).statuses
    if place < 0 or not call.arguments:
        return 1, 0
    count = column_count(call.arguments[-1])
    # Mostly all are done, and then nothing but zeroes stands behind the count.
    if not values or values[place].endswith(bytes(STATUS_SIZE * count)):
        return count, 0
    return count, sum(status != 0 for status in unpack_u16_column(values[place]))


def _size(values: Sequence[Any]) -> int:
    """Bytes of the data in an answer."""
    return sum(len(value) for value in values if value.__class__ is bytes)


def _number(reference: str) -> int:
    """What a reference counts with."""
    digits = reference.rpartition("-")[2]
    try:
        return int(digits, 16)
    except ValueError:
        return -1


class CallRecords:
    """Makes the records of calls.

    Args:
        mac: A keyed hash for contexts.
    """

    def __init__(self, mac: Callable[[bytes], bytes]) -> None:
        self._mac = mac

    def request(
        self,
        call: Call,
        *,
        statement: str,
        outcome: int,
        values: Sequence[Any],
        elapsed_us: int,
    ) -> Request:
        """The record of one call.

        Args:
            call: The call.
            statement: What decided it; empty: it was refused before.
            outcome: `DONE`, or the number of the error the caller gets.
            values: The answer; empty if there is none.
            elapsed_us: From decode to record.
        """
        principal = call.principal
        items, items_failed = _items(call, values)
        return Request(
            now_ms(),
            call.reference,
            cut(principal.access_point),
            principal.access_point_id,
            principal.client_key_id,
            cut(call.peer_address),
            call.operation.number,
            cut(statement),
            cut(_resource(call)),
            *_used(call, values),
            outcome,
            self._context(call),
            items,
            items_failed,
            call.size,
            _size(values),
            elapsed_us,
        )

    def run(
        self,
        calls: Sequence[Call],
        *,
        statement: str,
        answers: Sequence[Sequence[Any]],
        elapsed_us: int,
    ) -> list[AnyRecord]:
        """The records of calls that were done together, all of them: one if they are alike."""
        first, last = calls[0], calls[-1]
        used = {_used(call, values) for call, values in zip(calls, answers, strict=True)}
        follow = _number(last.reference) - _number(first.reference) == len(calls) - 1
        if len(used) > 1 or not follow:
            return [
                self.request(
                    call,
                    statement=statement,
                    outcome=DONE,
                    values=values,
                    elapsed_us=elapsed_us // len(calls),
                )
                for call, values in zip(calls, answers, strict=True)
            ]
        principal = first.principal
        record = Run(
            now_ms(),
            first.reference,
            last.reference,
            len(calls),
            cut(principal.access_point),
            principal.access_point_id,
            principal.client_key_id,
            cut(first.peer_address),
            first.operation.number,
            cut(statement),
            cut(_resource(first)),
            *used.pop(),
            self._context(first),
            sum(call.size for call in calls),
            sum(map(_size, answers)),
            elapsed_us,
        )
        return [record]

    def _context(self, call: Call) -> bytes:
        places = _places(call)
        if places.context < 0 or not call.arguments:
            return b""
        if places.contexts >= 0 and call.arguments[places.contexts] is not None:
            return b""
        context: bytes = call.arguments[places.context]
        return b"" if context == EMPTY_CONTEXT else self._mac(context)[:CONTEXT_HASH_SIZE]
