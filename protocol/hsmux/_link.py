"""One connection to a gateway, sans-IO: TLS, frames and who waits for which answer.

Whoever owns the socket puts received bytes in with `receive` and sends what `take_outgoing` gives;
a `Slot` is filled when its answer comes or when it can no longer come. Calls are short and wait for
nothing; the owner serialises them.

A link begins (TLS handshake, HELLO, WELCOME: `is_open`), may be told to go away (`goaway`: open
requests are still answered, new ones go to another link) and ends once (`ended` says why). A
request that is given up stays open in the protocol until its answer comes, so that its id is not
used again, and the gateway owes that answer still (`is_owed`).
"""

import ssl
from collections.abc import Callable
from typing import Any, Final

from hsmux_protocol import __version__
from hsmux_protocol.connection import VERSION, ClientConnection, State
from hsmux_protocol.errors import (
    HsmuxError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    TooLarge,
    Unauthenticated,
    error_from_wire,
)
from hsmux_protocol.fields import read_fields
from hsmux_protocol.frames import (
    Cancel,
    Error,
    Frame,
    Goaway,
    Hello,
    Ping,
    Pong,
    Request,
    Result,
    Welcome,
)
from hsmux_protocol.operations import Operation

from ._tls import ClientClosed, ConnectionLost, TlsChannel

__all__ = ["Link", "Slot"]

PONGS_SIZE_MAX: Final = 64 * 1024
"""Bytes that wait to be sent at which a PING gets no answer: a peer that asks and never reads must
not fill our memory.
"""


class Slot:
    """One request from its sending to its answer.

    Args:
        operation: Of the request; reads the answer.
        wake: Called when the slot is filled.
    """

    __slots__ = ("_wake", "error", "id", "operation", "values")

    def __init__(self, operation: Operation, wake: Callable[[], None]) -> None:
        self.operation = operation
        self.id = 0
        self.values: list[Any] | None = None
        self.error: HsmuxError | ConnectionLost | None = None
        self._wake = wake

    @property
    def is_filled(self) -> bool:
        """Whether there is an answer, or there can be none any more."""
        return self.values is not None or self.error is not None

    def fill(self, outcome: "list[Any] | HsmuxError | ConnectionLost") -> None:
        """Note the outcome and wake whoever waits."""
        if isinstance(outcome, list):
            self.values = outcome
        else:
            self.error = outcome
        self._wake()

    def take(self) -> list[Any]:
        """The read result values.

        Raises:
            HsmuxError: The gateway's answer, or why the connection ended.
            ConnectionLost: The connection ended without an answer.
        """
        if self.error is not None:
            raise self.error
        assert self.values is not None
        return self.values


class Link:
    """A connection, from the TLS handshake to its end.

    Args:
        context: From `make_client_context`.
        server_name: What the gateway's certificate must name.

    Raises:
        InvalidArgument: `server_name` is no name.

    Attributes:
        ended: Why nothing more will come, once that is so.
        goaway: What the gateway said when it wanted to go, once it has.
    """

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._tls = TlsChannel(context, server_name)
        self._protocol = ClientConnection()
        self._slots: dict[int, Slot] = {}
        self._last_id = 0
        self._has_greeted = False
        self.ended: HsmuxError | ConnectionLost | None = None
        self.goaway: Goaway | None = None

    def __repr__(self) -> str:
        state = "ended" if self.ended else self._protocol.state.value
        return f"Link({state}, {len(self._slots)} waiting)"

    @property
    def welcome(self) -> Welcome | None:
        """What the gateway announced, once it has."""
        return self._protocol.welcome

    @property
    def is_open(self) -> bool:
        """Whether requests may be sent."""
        return self.ended is None and self._protocol.state is State.OPEN

    @property
    def has_room(self) -> bool:
        """Whether one more request may be open."""
        return len(self._protocol.open_ids) < self._protocol.pipeline_max

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not self._slots

    @property
    def is_owed(self) -> bool:
        """Whether the gateway owes an answer, be it to somebody who has given up."""
        return bool(self._protocol.open_ids)

    def take_outgoing(self) -> bytes:
        """The bytes to send now, in the order they are taken."""
        return self._tls.take_outgoing()

    def receive(self, data: bytes | memoryview) -> None:
        """Take received bytes, empty for the peer's end, and fill the slots they answer."""
        if self.ended is not None:
            return
        plaintext = self._tls.receive(data)
        try:
            if self._tls.handshaken and not self._has_greeted:
                self._has_greeted = True
                self._send(Hello([VERSION], [], f"hsmux-python/{__version__}"))
            if plaintext:
                self._protocol.receive_data(plaintext)
                while self.ended is None and (frame := self._protocol.next_frame()) is not None:
                    self._take(frame)
        except (RemoteProtocolError, ValueError) as error:
            self._fail(ProtocolError(f"the peer does not speak hsmux/{VERSION}: {error}"))
        if self._tls.ended is not None:
            self._fail(self._tls.ended)

    def submit(
        self, slot: Slot, arguments: list[Any], budget_ms: int, options: dict[str, Any]
    ) -> None:
        """Send a request; its answer fills the slot.

        Args:
            slot: Of this request alone.
            arguments: Encodable, in the order of the operation table.
            budget_ms: Milliseconds the gateway has.
            options: Of the option table.

        Raises:
            ConnectionLost: The link is not open: the request was not sent.
            TooLarge: The request is larger than the gateway accepts.
        """
        if not self.is_open:
            raise self.why_not_open()
        slot.id = self._last_id + 1
        request = Request(slot.id, slot.operation.number, budget_ms, arguments, options)
        self._slots[slot.id] = slot
        try:
            self._send(request)
        except LocalProtocolError as error:
            del self._slots[slot.id]
            raise TooLarge(f"{slot.operation.name}: {error}") from None
        self._last_id = slot.id

    def why_not_open(self) -> ConnectionLost:
        """What to raise where an open link is needed; another link may be, unless the client was
        closed.
        """
        if isinstance(self.ended, ClientClosed):
            return ClientClosed()
        return ConnectionLost(str(self.ended or "the gateway closes the connection"))

    def give_up(self, slot: Slot) -> None:
        """Nobody waits for a slot any more: cancel the request if it is still open."""
        if self._slots.pop(slot.id, None) is not None and self.ended is None:
            self._send(Cancel(slot.id))

    def lose(self, reason: str) -> None:
        """The socket failed, or is given up."""
        self._fail(ConnectionLost(reason))

    def close(self, reason: ConnectionLost) -> None:
        """Say close_notify, and tell whoever still waits the reason."""
        self._tls.close()
        self._fail(reason)

    def _send(self, frame: Frame) -> None:
        self._tls.write(self._protocol.send(frame))
        if self._tls.ended is not None:
            self._fail(self._tls.ended)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Result | Error) and frame.id in self._slots:
            # The slot stays here until it is filled: if the answer is malformed, or we are
            # interrupted, the link ends and tells this slot as all others.
            slot = self._slots[frame.id]
            if isinstance(frame, Error):
                slot.fill(_error_of(frame))
            else:
                slot.fill(read_fields(slot.operation.results, frame.values))
            del self._slots[frame.id]
        elif isinstance(frame, Error) and frame.id == 0:
            self._fail(_error_of(frame))
        elif isinstance(frame, Ping):
            if self._tls.outgoing_size < PONGS_SIZE_MAX:
                self._send(Pong(frame.number))
        elif isinstance(frame, Goaway):
            self.goaway = frame

    def _fail(self, reason: HsmuxError | ConnectionLost) -> None:
        """End, for the first reason there is, and tell everybody who waits.

        A refused client key is the answer to what is open; for any other reason nobody knows what
        became of it.
        """
        if self.ended is None:
            self.ended = reason
        self._protocol.close()
        while self._slots:
            # As above: a slot stays here until it is told, or an interruption would lose it.
            number = next(iter(self._slots))
            self._slots[number].fill(_told(self.ended))
            del self._slots[number]


def _error_of(frame: Error) -> HsmuxError:
    return error_from_wire(
        frame.number,
        frame.text,
        reference=frame.reference,
        retry_after_ms=frame.retry_after_ms,
    )


def _told(reason: HsmuxError | ConnectionLost) -> HsmuxError | ConnectionLost:
    """Why a link ended, as one who waits is told: an exception of its own, because they are raised
    in several threads.
    """
    if isinstance(reason, Unauthenticated):
        return Unauthenticated(reason.text, reference=reason.reference)
    if isinstance(reason, ClientClosed):
        return ClientClosed()
    return ConnectionLost(str(reason))
