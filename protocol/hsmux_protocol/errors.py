"""Everything that can go wrong, as one table of typed errors.

Two kinds of failure live here.

A request that cannot be done raises a subclass of `HsmuxError`. The same classes are raised by
the gateway's engine, carried by an ERROR frame as a number, and raised again by the client, so an
error keeps its type from the place it arose to the caller. Each class has a number (on the wire
and in status columns), a class name (which family it is), an exit code (for the command) and says
whether the same request may succeed later.

A peer that breaks the wire format raises `RemoteProtocolError`; code of our own that would break
it raises `LocalProtocolError`. Whose fault it was is in the type, and a connection does not
outlive either.

Numbers are never reused. Texts are for people: they say what to do and may change.
"""

from typing import ClassVar, Final

__all__ = [
    "ERRORS",
    "ERROR_BY_NUMBER",
    "ApprovalsMissing",
    "Busy",
    "Cancelled",
    "ChecksumMismatch",
    "Conflict",
    "DeadlineExceeded",
    "Denied",
    "HsmuxError",
    "InternalError",
    "InvalidArgument",
    "InvalidCiphertext",
    "InvalidMac",
    "InvalidSignature",
    "LocalProtocolError",
    "NotFound",
    "OutcomeUnknown",
    "ProtocolError",
    "RemoteProtocolError",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "WrongState",
    "error_from_wire",
]


class RemoteProtocolError(Exception):
    """The peer sent something the protocol does not allow; the connection ends."""


class LocalProtocolError(Exception):
    """This side was about to send something the protocol does not allow: a programming error."""


class HsmuxError(Exception):
    """A request was refused or failed; the base of every typed error.

    Attributes:
        text: What happened and what to do, for a person.
        reference: Joins the answer, the gateway's log line and its audit record; empty when the
            request never arrived.
        retry_after_ms: How long to wait before the next try in milliseconds, or None.
        number: The error's number on the wire.
        family: The family of errors it belongs to ("argument", "busy", ...).
        exit_code: The exit code of the command.
        retryable: Whether the same request may succeed later without change.
    """

    number: ClassVar[int] = 0
    family: ClassVar[str] = ""
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self, text: str, *, reference: str = "", retry_after_ms: int | None = None
    ) -> None:
        super().__init__(text)
        self.text = text
        self.reference = reference
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return f"{self.text} (reference {self.reference})" if self.reference else self.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r}, reference={self.reference!r})"


class InvalidArgument(HsmuxError):
    """An argument is malformed, out of range or does not fit the others."""

    number, family, exit_code = 100, "argument", 2


class TooLarge(InvalidArgument):
    """An argument, or the answer it would cause, is larger than a limit; the text names the
    limit.
    """

    number = 101


class Unsupported(InvalidArgument):
    """This gateway or the key's token cannot do this; the text names what it can do."""

    number = 102


class NotFound(HsmuxError):
    """Nothing has that name or identifier."""

    number, family, exit_code = 200, "not-found", 3


class Denied(HsmuxError):
    """No policy allows this to the caller, or the thing does not exist and the caller may not
    know.
    """

    number, family, exit_code = 300, "denied", 4


class Unauthenticated(Denied):
    """The client key is unknown, revoked, expired or its access point is disabled."""

    number, family = 301, "unauthenticated"


class ApprovalsMissing(Denied):
    """Others have to approve this first; the text names the request to approve. When they have, the
    same request is done.
    """

    number = 302


class Busy(HsmuxError):
    """A queue is full or a limit of the access point is reached; retry after `retry_after_ms`."""

    number, family, exit_code, retryable = 400, "busy", 5, True


class DeadlineExceeded(HsmuxError):
    """The time the caller gave ran out first."""

    number, family, exit_code = 410, "deadline", 5


class Cancelled(HsmuxError):
    """The caller cancelled the request before it was done."""

    number, family, exit_code = 411, "deadline", 5


class Unavailable(HsmuxError):
    """The token, the store or the gateway itself is away for now."""

    number, family, exit_code, retryable = 420, "unavailable", 5, True


class Conflict(HsmuxError):
    """The name is taken, the object changed meanwhile, or an idempotency token was used for
    another request.
    """

    number, family, exit_code = 500, "conflict", 6


class WrongState(HsmuxError):
    """The object's state does not allow this operation."""

    number, family, exit_code = 510, "state", 6


class InvalidCiphertext(HsmuxError):
    """The ciphertext does not open: changed, under another key, or with another context. Never
    says which.
    """

    number, family, exit_code = 600, "integrity", 7


class InvalidSignature(HsmuxError):
    """The signature does not belong to this message and key."""

    number, family, exit_code = 601, "integrity", 7


class InvalidMac(HsmuxError):
    """The MAC does not belong to this message and key."""

    number, family, exit_code = 602, "integrity", 7


class ChecksumMismatch(HsmuxError):
    """Data changed on its way: its checksum does not fit."""

    number, family, exit_code = 603, "integrity", 7


class ProtocolError(HsmuxError):
    """The connection broke the wire format, or an operation is unknown to the peer."""

    number, family = 700, "protocol"


class OutcomeUnknown(HsmuxError):
    """The connection or a worker was lost after a change was sent: it may or may not have been
    done.
    """

    number, family = 710, "outcome-unknown"


class InternalError(HsmuxError):
    """A fault inside the gateway; its log has the whole story under the reference."""

    number, family = 720, "internal"


ERRORS: Final[tuple[type[HsmuxError], ...]] = (
    InvalidArgument,
    TooLarge,
    Unsupported,
    NotFound,
    Denied,
    Unauthenticated,
    ApprovalsMissing,
    Busy,
    DeadlineExceeded,
    Cancelled,
    Unavailable,
    Conflict,
    WrongState,
    InvalidCiphertext,
    InvalidSignature,
    InvalidMac,
    ChecksumMismatch,
    ProtocolError,
    OutcomeUnknown,
    InternalError,
)

ERROR_BY_NUMBER: Final[dict[int, type[HsmuxError]]] = {error.number: error for error in ERRORS}


def error_from_wire(
    number: int, text: str, *, reference: str = "", retry_after_ms: int | None = None
) -> HsmuxError:
    """The typed error for a number; a number unknown to this version is an InternalError that
    names it.
    """
    error_type = ERROR_BY_NUMBER.get(number)
    if error_type is None:
        error_type, text = InternalError, f"error {number}: {text}"
    return error_type(text, reference=reference, retry_after_ms=retry_after_ms)
