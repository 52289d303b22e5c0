"""TLS of a client connection, without a socket: received bytes in, plaintext out, and back.

Theory of operation
-------------------
An `ssl.SSLSocket` may not be read by one thread while another writes to it, and knows no other
event loop than blocking calls. So OpenSSL works on two memory BIOs here: whoever owns the socket
puts received bytes in with `receive` and sends what `take_outgoing` returns. Every call is short
and waits for nothing; the owner serialises calls (a lock, or a single-threaded event loop).

`receive` never raises. Plaintext and the end of the connection can come in one piece (the last
answers, then close_notify), so it returns the plaintext and leaves the end in `ended`. There are
two ends:

* `Unauthenticated`: one side refused the other, which trying again does not change. Either the
  gateway's certificate was refused here, or an alert about this client's certificate came. In TLS
  1.3 such an alert comes after the client thinks the handshake is done, with the first read. The
  text says what to mend.
* `ConnectionLost`: everything else, from a cable pulled out to close_notify. Another connection
  may well work.

After an end there may still be an alert of ours in `take_outgoing`; the owner sends it before it
closes the socket.
"""

import os
import shlex
import ssl
import stat
from typing import Final

from hsmux_protocol.connection import ALPN
from hsmux_protocol.errors import InvalidArgument, Unauthenticated

from ._pair import load_pair
from .profiles import Profile

__all__ = ["ClientClosed", "ConnectionLost", "TlsChannel", "make_client_context"]

RECORD_SIZE: Final = 16 * 1024
"""Bytes of the largest TLS record, the most that one SSLObject.read returns."""

_ISSUE: Final = "ask the gateway's administrator for a new one (hsmux client-key create)"
_ANOTHER_CA: Final = "check that certificate and address belong to the same gateway, or " + _ISSUE

_ALERTS: Final[dict[str, str]] = {
    "ACCESS_DENIED": f"the gateway refuses this client certificate; {_ISSUE}",
    "BAD_CERTIFICATE": f"the gateway refuses this client certificate as malformed; {_ISSUE}",
    "CERTIFICATE_EXPIRED": f"the client certificate has expired or is not valid yet; {_ISSUE}",
    "CERTIFICATE_REQUIRED": "the gateway requires a client certificate; name one in the profile",
    "CERTIFICATE_REVOKED": f"the client certificate is revoked; {_ISSUE}",
    "CERTIFICATE_UNKNOWN": f"the gateway refuses this client certificate; {_ISSUE}",
    "DECRYPT_ERROR": f"the gateway cannot verify this client certificate; {_ANOTHER_CA}",
    "HANDSHAKE_FAILURE": "the peer shares no TLS parameters with us; check the address",
    "NO_APPLICATION_PROTOCOL": f"the peer does not speak {ALPN}; check the address",
    "PROTOCOL_VERSION": "the peer does not speak TLS 1.3; check the address",
    "UNKNOWN_CA": f"the gateway does not know this client certificate's CA; {_ANOTHER_CA}",
    "UNSUPPORTED_CERTIFICATE": f"the certificate is not one for a client; {_ISSUE}",
}
"""What to do about an alert of the peer, by its name in RFC 8446 section 6."""

_REFUSALS: Final[dict[str, str]] = {
    "TLSV1_UNRECOGNIZED_NAME": "the gateway does not know that server name; check server_name",
    "UNSUPPORTED_PROTOCOL": "the peer does not speak TLS 1.3; check the address",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS; check the address",
}
"""What to do about what OpenSSL finds wrong by itself in a handshake, by OpenSSL's reason. After
it the same bytes only mean that the connection was spoiled on its way.
"""


class ConnectionLost(Exception):
    """The connection ended before an answer came; another one may work. Never leaves the
    package.
    """


class ClientClosed(ConnectionLost):
    """The connection ended because the client was closed: there will be no other one."""

    def __init__(self) -> None:
        super().__init__("the client was closed; make a new one")


def make_client_context(profile: Profile) -> ssl.SSLContext:
    """A context for TLS 1.3 with the client certificate of a profile.

    Files are read each time, so that a renewed client certificate is taken up by the next
    connection.

    Raises:
        InvalidArgument: A file cannot be read or is not what it should be, or others can use the
            private key; the text names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    try:
        context.load_verify_locations(cafile=profile.ca)
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"ca: {profile.ca}: {_file_problem(error)}; it is the PEM file of the CA that signs "
            "the gateway's certificate"
        ) from None
    _check_private_key(profile.private_key)
    try:
        load_pair(context, profile.certificate, profile.private_key)
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"certificate, private_key: {profile.certificate}, {profile.private_key}: "
            f"{_file_problem(error)}; they are PEM files of the client certificate and its "
            "unencrypted private key"
        ) from None
    return context


def _check_private_key(path: str) -> None:
    """Refuse a private key that others can use, as ssh does.

    A file of another owner may be for a group that this user is in. What cannot be looked at is
    left to whoever opens it.

    Raises:
        InvalidArgument: Others can use it; says what to run.
    """
    if os.name != "posix":
        return
    try:
        status = os.stat(path)
    except OSError:
        return
    mask = 0o077 if status.st_uid == os.geteuid() else 0o007
    if status.st_mode & mask:
        raise InvalidArgument(
            f"private_key: {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): "
            f"chmod 600 {shlex.quote(path)}"
        )


def _file_problem(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"cannot be used ({error.reason or 'not PEM'})"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


class TlsChannel:
    """One TLS connection, client side.

    Args:
        context: From `make_client_context`.
        server_name: What the gateway's certificate must name.

    Raises:
        InvalidArgument: That is no name and no IP address.

    Attributes:
        handshaken: Whether the handshake is done on this side.
        ended: Why nothing more will be received, once that is so.
    """

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            self._tls = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=server_name
            )
        except ValueError as error:
            raise InvalidArgument(
                f"server_name: {server_name!r} is no host name and no IP address: {error}"
            ) from None
        self.handshaken = False
        self.ended: Unauthenticated | ConnectionLost | None = None
        self._handshake()

    def __repr__(self) -> str:
        state = "open" if self.handshaken else "handshake"
        return f"TlsChannel({'ended' if self.ended else state}, {self.outgoing_size} bytes to send)"

    @property
    def outgoing_size(self) -> int:
        """Bytes that wait to be sent."""
        return self._outgoing.pending

    def take_outgoing(self) -> bytes:
        """The bytes to send now; they are sent in the order they were taken, all of them."""
        return self._outgoing.read()

    def receive(self, data: bytes | memoryview) -> bytes:
        """Take received bytes, empty for the peer's end; returns all plaintext they complete."""
        if self.ended is not None:
            return b""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        self._handshake()
        return self._decrypt() if self.handshaken else b""

    def write(self, plaintext: bytes) -> None:
        """Encrypt into the outgoing bytes; nothing is sent once the connection has ended."""
        view = memoryview(plaintext)
        try:
            while view and self.ended is None:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as error:
            self._end(error)

    def close(self) -> None:
        """Say close_notify, if that can still be said."""
        if self.ended is None and self.handshaken:
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                # Nobody waits for the peer's close_notify; ours is among the outgoing bytes.
                pass
        self.ended = self.ended or ConnectionLost("closed")

    def _handshake(self) -> None:
        if self.handshaken or self.ended is not None:
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            self._end(error)
            return
        if self._tls.selected_alpn_protocol() != ALPN:
            self.ended = Unauthenticated(_ALERTS["NO_APPLICATION_PROTOCOL"])
        else:
            self.handshaken = True

    def _decrypt(self) -> bytes:
        pieces = []
        try:
            while piece := self._tls.read(RECORD_SIZE):
                pieces.append(piece)
            self.ended = ConnectionLost("the gateway closed the connection")
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._end(error)
        return b"".join(pieces)

    def _end(self, error: ssl.SSLError) -> None:
        reason = error.reason or ""
        alert = reason.partition("_ALERT_")[2]
        if isinstance(error, ssl.SSLCertVerificationError):
            self.ended = Unauthenticated(
                f"the gateway's certificate is refused: {error.verify_message.rstrip('.')}; check "
                "the profile's ca and server_name"
            )
        elif alert in _ALERTS or (reason in _REFUSALS and not self.handshaken):
            self.ended = Unauthenticated(_ALERTS.get(alert) or _REFUSALS[reason])
        elif isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            self.ended = ConnectionLost("the gateway closed the connection")
        else:
            self.ended = ConnectionLost(f"TLS failed: {reason or type(error).__name__}")
