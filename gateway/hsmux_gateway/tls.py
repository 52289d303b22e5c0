"""TLS 1.3 on a Trio socket, driven through `ssl.MemoryBIO`.

Theory of operation
-------------------
OpenSSL never sees the socket: received bytes are written into one memory BIO, bytes to send are
taken from another, and all OpenSSL calls are synchronous and in one task step. That gives three
things `trio.SSLStream` does not: large reads into a buffer that is used again, so that one system
call brings many requests; alerts that are really sent when a handshake or a record is refused; and
no locks around OpenSSL, because nothing awaits inside it. All connections read into the same
buffer, because what came is taken out of it before anything awaits: a connection costs no read
buffer of its own.

Order on the wire: whoever wants to send takes `_send_lock`, empties the outgoing BIO and sends it
to the end. Reading can produce bytes too (a key update's answer), and goes the same way. A send
that is cancelled half-way has left a torn record, so the stream is marked broken and refuses
everything after.

What OpenSSL decides ends in an alert on the wire: a chain that does not lead to the CA, a
certificate that is expired, not for clients, self-signed or missing. In TLS 1.3 the client may
believe the handshake is done before the server has seen its certificate, so it learns of the alert
at its first read. Who the certificate's key belongs to is not TLS's business: see `access`.

A socket that is closed with unread bytes resets the connection, and the reset can overtake the
last alert or error. So closing sends what is left, ends the sending side, and reads and forgets
what still comes, for `CLOSE_TIMEOUT_S` and `LINGER_SIZE_MAX` at most.
"""

import os
import ssl
from pathlib import Path
from typing import Final

import trio

from hsmux_protocol.connection import ALPN

from .errors import OperatorError

__all__ = [
    "RECEIVE_SIZE",
    "TlsClosed",
    "TlsStream",
    "load_identity",
    "make_server_context",
    "new_server_context",
]

RECEIVE_SIZE: Final = 256 * 1024
"""Bytes of the buffer for one socket read: about the most a loopback or 10 GbE socket holds."""

HANDSHAKE_RECEIVE_SIZE: Final = 16 * 1024
"""Bytes read at once from a peer that has not said who it is."""

RECORD_SIZE: Final = 16 * 1024
"""Bytes of the largest TLS record, which is what one SSLObject.read returns at most."""

CLOSE_TIMEOUT_S: Final = 1.0
"""Seconds for the last alert or close_notify to leave and the peer to end; nobody waits longer for
a peer that is going.
"""

LINGER_SIZE_MAX: Final = 4 << 20
"""Bytes forgotten of a peer that is going and goes on sending."""


class TlsClosed(Exception):
    """The connection ended or broke; the text says how, for the log."""


def new_server_context() -> ssl.SSLContext:
    """A context for TLS 1.3 with client certificates required, no tickets and no early data."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([ALPN])
    return context


def load_identity(context: ssl.SSLContext, certificate: Path, private_key: Path) -> None:
    """Give a context the server's certificate and chain, and its private key, as PEM files.

    Raises:
        OperatorError: A file cannot be read or the key does not belong to the certificate.
    """
    try:
        # An encrypted key would ask for its password on the terminal.
        context.load_cert_chain(certificate, private_key, password=b"")
    except (OSError, ssl.SSLError) as error:
        raise OperatorError(
            f"tls: {certificate} and {private_key} cannot be loaded ({error}); "
            "run `hsmux init` again or set tls.certificate and tls.private_key"
        ) from None


def make_server_context(certificate: Path, private_key: Path, client_ca: bytes) -> ssl.SSLContext:
    """A context for the listener.

    Args:
        certificate: PEM file of the server's certificate and chain.
        private_key: PEM file of its private key.
        client_ca: DER certificate of the CA that issues client keys.

    Raises:
        OperatorError: A file cannot be read or the key does not belong to the certificate.
    """
    context = new_server_context()
    load_identity(context, certificate, private_key)
    context.load_verify_locations(cadata=client_ca)
    return context


class TlsStream:
    """One TLS connection, server side.

    Args:
        socket: Accepted.
        context: Of the gateway.
        buffer: Where it reads; all connections of an event loop share one of `RECEIVE_SIZE`. None:
            one of its own.

    Attributes:
        broken: Whether a send was torn; such a stream only closes.
    """

    def __init__(
        self,
        socket: trio.socket.SocketType,
        context: ssl.SSLContext,
        buffer: memoryview | None = None,
    ) -> None:
        self._socket = socket
        self._stream = trio.SocketStream(socket)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._buffer = memoryview(bytearray(RECEIVE_SIZE)) if buffer is None else buffer
        self._send_lock = trio.Lock()
        self._ended = False
        self.broken = False

    async def handshake(self) -> None:
        """Shake hands; a refused peer gets its alert when the stream is closed.

        Raises:
            TlsClosed: The peer was refused or went away.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill(HANDSHAKE_RECEIVE_SIZE):
                    raise TlsClosed("the peer left during the handshake") from None
            except ssl.SSLError as error:
                raise TlsClosed(f"handshake refused: {error.reason or error}") from None
            else:
                await self._flush()
                break
        if self._tls.selected_alpn_protocol() != ALPN:
            raise TlsClosed(f"the peer does not speak {ALPN}")

    @property
    def peer_certificate(self) -> bytes:
        """The client's certificate as DER; the handshake does not succeed without one."""
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None:
            raise TlsClosed("no client certificate")
        return certificate

    async def receive(self, size: int = HANDSHAKE_RECEIVE_SIZE) -> bytes:
        """What can be decrypted now, at least one byte; empty at the peer's end.

        Args:
            size: The most bytes to read from the socket; what was read of a record before comes
                on top.

        Raises:
            TlsClosed: The connection broke, or the peer sent something TLS refuses.
        """
        while True:
            data = self._read_decrypted()
            if data is None:
                return b""
            if self._outgoing.pending:
                await self._flush()
            if data:
                return data
            if self._ended:
                return b""
            if not await self._fill(size):
                return b""

    def _read_decrypted(self) -> bytes | None:
        """Decrypted bytes, empty when more must be received, None at close_notify."""
        pieces = []
        try:
            while True:
                piece = self._tls.read(RECORD_SIZE)
                if not piece:
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            raise TlsClosed(f"record refused: {error.reason or error}") from None
        return b"".join(pieces) if pieces else None

    async def send_all(self, data: bytes | memoryview) -> None:
        """Encrypt and send all of `data`.

        Raises:
            TlsClosed: The connection broke.
        """
        if self.broken:
            raise TlsClosed("an earlier send was cut off")
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise TlsClosed(f"cannot send: {error.reason or error}") from None
        await self._flush()

    async def close(self) -> None:
        """Send the alert or close_notify if that is still possible, then close the socket.

        Cancelled, it closes the socket at once.
        """
        try:
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                if not self.broken:
                    self._end()
                    await self._flush()
                    await self._linger()
        except (TlsClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            # It is gone already, which is what is wanted.
            return
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    def _end(self) -> None:
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            # The peer has not sent its close_notify yet, which nobody waits for, or there was no
            # handshake.
            pass

    async def _linger(self) -> None:
        """End the sending side, and forget what the peer sends until it ends too."""
        await self._stream.send_eof()
        left = LINGER_SIZE_MAX
        while left > 0 and not self._ended:
            came = self._try_read(RECEIVE_SIZE)
            if came is None:
                await self._wait_readable()
            else:
                left -= len(came)

    async def _fill(self, size: int) -> bool:
        """Receive once into the incoming BIO; False at the end of the stream."""
        came, waited = self._try_read(size), False
        while came is None:
            await self._wait_readable()
            came, waited = self._try_read(size), True
        if came:
            self._incoming.write(came)
        else:
            self._incoming.write_eof()
        if not waited:
            # Bytes that are there already must not let one connection keep the event loop.
            await trio.lowlevel.checkpoint()
        return not self._ended

    def _try_read(self, size: int) -> memoryview | None:
        """A part of the shared buffer with what came, good until the next await; None: nothing."""
        try:
            received = os.readv(self._socket.fileno(), [self._buffer[:size]])
        except BlockingIOError:
            return None
        except OSError as error:
            raise TlsClosed(f"connection lost: {type(error).__name__}") from None
        self._ended = received == 0
        return self._buffer[:received]

    async def _wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._socket)
        except trio.ClosedResourceError:
            raise TlsClosed("connection lost: closed") from None

    async def _flush(self) -> None:
        """Send what OpenSSL has made; comes back at once when the socket takes all of it."""
        try:
            self._send_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._send_lock.acquire()
        try:
            data = self._outgoing.read()
            if data:
                await self._send(memoryview(data))
        finally:
            self._send_lock.release()

    async def _send(self, data: memoryview) -> None:
        whole = False
        try:
            while data:
                sent = self._try_write(data)
                if sent:
                    data = data[sent:]
                else:
                    await trio.lowlevel.wait_writable(self._socket)
            whole = True
        except trio.ClosedResourceError:
            raise TlsClosed("connection lost while sending") from None
        finally:
            if not whole:
                self.broken = True

    def _try_write(self, data: memoryview) -> int:
        """How many bytes the socket took; 0 when it has no room."""
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError:
            raise TlsClosed("connection lost while sending") from None
