"""From a REQUEST frame to a call: what is asked, until when, and how large it can get.

A request that cannot be read still becomes a call, with the refusal it deserves: the engine decides
and records it like every other.
"""

from typing import Any, Final, NamedTuple

from hsmux_protocol.columns import column_count
from hsmux_protocol.envelope import SUITE_AES_GCM, SUITE_XAES_256_GCM
from hsmux_protocol.errors import HsmuxError, InvalidArgument, ProtocolError
from hsmux_protocol.fields import read_fields
from hsmux_protocol.frames import Error, Request
from hsmux_protocol.limits import BATCH_ITEMS_MAX, FRAME_SIZE_MAX, RANDOM_SIZE_MAX
from hsmux_protocol.operations import OPERATION_BY_NUMBER, OPTIONS, Operation

from .call import Call, Principal

__all__ = ["UNKNOWN_OPERATION", "Asked", "error_frame", "read_request"]

ERROR_TEXT_MAX: Final = 500
"""Characters of an error's text: what a caller sent may be quoted in it, and that has no bound."""

UNKNOWN_OPERATION: Final = Operation(
    0, "unknown", "An operation this gateway does not have.", (), (), permission=""
)
"""Stands in records and metrics for every number that is not in the table."""

ANSWER_SIZE: Final = 1024
"""Bytes an answer may have beside what the request brought: identifiers, a signature, a status."""

_ENVELOPE_SIZE: Final = max(SUITE_AES_GCM.overhead_size, SUITE_XAES_256_GCM.overhead_size)

ITEM_GROWTH: Final[dict[str, int]] = {"encrypt_batch": 10 + _ENVELOPE_SIZE, "decrypt_batch": 10}
"""Bytes an item of a batch can grow by: its envelope, and its place in the columns."""

LARGE_ANSWERS: Final[dict[str, int]] = {
    "list_keys": FRAME_SIZE_MAX,
    "list_access_points": FRAME_SIZE_MAX,
    "list_client_keys": FRAME_SIZE_MAX,
    "show_key": 64 * 1024,
    "show_status": 64 * 1024,
    "create_client_key": 16 * 1024,
    "renew_client_key": 16 * 1024,
    "generate_random": RANDOM_SIZE_MAX + ANSWER_SIZE,
}
"""Bytes of the answers that do not depend on the size of the request."""


class Asked(NamedTuple):
    """A request as it goes to the engine.

    Attributes:
        call: The call; without arguments if it is refused.
        refusal: Why it cannot be done, or None.
        size: Bytes of memory it takes at most, its answer included.
    """

    call: Call
    refusal: HsmuxError | None
    size: int


def read_request(
    request: Request,
    principal: Principal,
    peer_address: str,
    size: int,
    received_at: float,
    reference: str,
) -> Asked:
    """What a request asks for.

    Args:
        request: The frame.
        principal: Who asks.
        peer_address: From where.
        size: Bytes of the frame.
        received_at: When its last byte came, seconds of `time.monotonic()`: its budget runs from
            then, however long it waited to be looked at.
        reference: Its name in answer, record and log.
    """
    operation = OPERATION_BY_NUMBER.get(request.operation, UNKNOWN_OPERATION)
    arguments: list[Any] = []
    refusal: HsmuxError | None = None
    try:
        arguments = _read_arguments(operation, request)
    except HsmuxError as error:
        refusal = error
    budget_ms = min(request.budget_ms or operation.deadline_default_ms, operation.deadline_max_ms)
    call = Call(
        principal,
        peer_address,
        operation,
        arguments,
        request.options,
        received_at + budget_ms / 1000,
        reference,
        size,
    )
    return Asked(call, refusal, size + _answer_size(call, size))


def _read_arguments(operation: Operation, request: Request) -> list[Any]:
    if operation is UNKNOWN_OPERATION:
        raise ProtocolError(f"operation {request.operation} is unknown to this gateway")
    try:
        arguments = read_fields(operation.arguments, request.arguments)
        for name, value in request.options.items():
            if name not in OPTIONS or not operation.changes:
                raise ValueError(f"option {name!r} is not known for {operation.name}")
            OPTIONS[name].read(value)
        if operation.changes:
            for field, argument in zip(operation.arguments, arguments, strict=True):
                _check_storable(field.name, argument)
    except ValueError as error:
        raise InvalidArgument(f"{operation.name}: {error}") from None
    return arguments


def _check_storable(name: str, argument: Any) -> None:
    """Refuse the one character that a database cannot hold."""
    texts = (*argument, *argument.values()) if isinstance(argument, dict) else (argument,)
    if any(isinstance(text, str) and "\0" in text for text in texts):
        raise ValueError(f"{name}: must be without the character U+0000")


def _answer_size(call: Call, size: int) -> int:
    """Bytes of the largest answer a call can get."""
    name = call.operation.name
    if name in ITEM_GROWTH and call.arguments:
        count = min(column_count(call.arguments[-1]), BATCH_ITEMS_MAX)
        return min(FRAME_SIZE_MAX, size + ANSWER_SIZE + count * ITEM_GROWTH[name])
    return LARGE_ANSWERS.get(name, size + ANSWER_SIZE)


def error_frame(request_id: int, error: HsmuxError) -> Error:
    """The frame that tells a caller of an error."""
    return Error(
        request_id,
        error.number,
        error.family,
        error.retryable,
        error.retry_after_ms,
        error.text[:ERROR_TEXT_MAX],
        error.reference,
    )
