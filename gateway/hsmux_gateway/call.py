"""What a front hands to the engine: one request, whoever spoke it and over whatever protocol."""

from typing import Any, NamedTuple

from hsmux_protocol.errors import HsmuxError
from hsmux_protocol.operations import Operation

__all__ = ["Call", "Outcome", "Outside", "Principal"]

Outcome = list[Any] | HsmuxError
"""What became of a call: its result values in the table's order, or why there are none."""


class Outside(NamedTuple):
    """A certificate of an outside CA.

    Attributes:
        root: SHA-256 of the root's certificate that its chain ends in.
        names: All that an access point could be known by it, `uri:<URI>` and `spki:<SHA-256>`.
    """

    root: bytes
    names: tuple[str, ...]


class Principal(NamedTuple):
    """Who is asking: an access point, and the client key or certificate it proved.

    Attributes:
        access_point_id: 16 bytes.
        access_point: Its name.
        client_key_id: 16 bytes; of a certificate of another CA the begin of its key's SHA-256.
        valid_until_ms: When its certificate ends, milliseconds since 1970 UTC.
        outside: Of a certificate of another CA, what it is accepted for.
    """

    access_point_id: bytes
    access_point: str
    client_key_id: bytes
    valid_until_ms: int
    outside: Outside | None = None


class Call(NamedTuple):
    """One request.

    Attributes:
        principal: Who asks.
        peer_address: From where, for the record.
        operation: What is asked, a record of the operation table.
        arguments: Read by the operation's field types, in the table's order.
        options: Read by the option table.
        deadline: When the caller stops waiting, in seconds of `time.monotonic()`.
        reference: Joins answer, record and log line.
        size: Bytes of the request.
    """

    principal: Principal
    peer_address: str
    operation: Operation
    arguments: list[Any]
    options: dict[str, Any]
    deadline: float
    reference: str

    @property
    def peer_host(self) -> str:
        """The caller's IP address, without its port."""
        return self.peer_address.rpartition(":")[0].strip("[]")

    size: int = 0
