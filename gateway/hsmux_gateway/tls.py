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

What a peer sends costs time before anybody has looked at it, and some records cost much more than
their bytes and carry nothing (see `tls_records`). So OpenSSL is given at most `RECORDS_MAX` records
at once; decrypting and handshakes are done in turns of the tenant (see `fairness`), where all peers
that have not said who they are are one tenant; and a peer whose records carry nothing too often is
closed (`TlsWaste`), as is one whose handshake is longer than any certificate makes it.

Order on the wire: what OpenSSL has made leaves at once as far as the socket takes it, which is
usually all of it. Whoever has to wait for the rest takes `_send_lock`; while somebody has it or
something is left (`_unsent`), nobody else sends. Reading can produce bytes too (the answers to key
updates), and goes the same way; nothing more is read until they have left, and a peer that does not
take them for `send_timeout_s` is too slow. A send that is cancelled half-way has left a torn
record, so the stream is marked broken and refuses everything after.

What OpenSSL decides ends in an alert on the wire: a chain that does not lead to the CA, a
certificate that is expired, not for clients, self-signed or missing. In TLS 1.3 the client may
believe the handshake is done before the server has seen its certificate, so it learns of the alert
at its first read. Who the certificate's key belongs to is not TLS's business: see `access`.

A socket that is closed with unread bytes resets the connection, and the reset can overtake the
last alert or error. So closing sends what is left, ends the sending side, and reads and forgets
what still comes, for `CLOSE_TIMEOUT_S` and `LINGER_SIZE_MAX` at most.
"""

import _ssl
import math
import os
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio

from hsmux_protocol.connection import ALPN

from .errors import OperatorError
from .fairness import Turns
from .tls_records import RecordBorders

__all__ = [
    "NOBODY",
    "RECEIVE_SIZE",
    "RECORDS_EMPTY_MAX",
    "RECORDS_MAX",
    "TlsClosed",
    "TlsStream",
    "TlsWaste",
    "load_identity",
    "make_server_context",
    "new_server_context",
]

RECEIVE_SIZE: Final = 256 * 1024
"""Bytes of the buffer for one socket read: about the most a loopback or 10 GbE socket holds."""

HANDSHAKE_RECEIVE_SIZE: Final = 16 * 1024
"""Bytes read at once from a peer that has not said who it is."""

HANDSHAKE_SIZE_MAX: Final = 32 * 1024
"""Bytes of a whole handshake, and of what came with its end: a stranger's chain of certificates
costs about half a millisecond for each KiB before it is refused.
"""

RECORDS_MAX: Final = 128
"""Records given to OpenSSL at once: about 2 ms if each of them asks for a change of keys."""

RECORDS_EMPTY_MAX: Final = 1024
"""Records that carry nothing beyond those that carry something: nobody changes keys so often."""

NOBODY: Final = b""
"""The tenant of all peers that have not said who they are."""

RECORD_SIZE: Final = 16 * 1024
"""Bytes of the largest TLS record, which is what one SSLObject.read returns at most."""

CLOSE_TIMEOUT_S: Final = 1.0
"""Seconds for the last alert or close_notify to leave and the peer to end; nobody waits longer for
a peer that is going.
"""

LINGER_SIZE_MAX: Final = 4 << 20
"""Bytes forgotten of a peer that is going and goes on sending."""


T = TypeVar("T")


class TlsClosed(Exception):
    """The connection ended or broke; the text says how, for the log."""


class TlsWaste(TlsClosed):
    """The peer sends what costs time and carries nothing."""


def new_server_context() -> ssl.SSLContext:
    """A context for TLS 1.3 with client certificates required, no tickets and no early data."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Whatever the system's configuration says: no RSA below 2,048 bits and no SHA-1 in a chain.
    context.set_ciphers("DEFAULT:@SECLEVEL=2")
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


def make_server_context(
    certificate: Path, private_key: Path, client_cas: Sequence[bytes]
) -> ssl.SSLContext:
    """A context for the listener.

    Args:
        certificate: PEM file of the server's certificate and chain.
        private_key: PEM file of its private key.
        client_cas: DER certificates of the CAs whose certificates clients may show.

    Raises:
        OperatorError: A file cannot be read or the key does not belong to the certificate.
    """
    context = new_server_context()
    load_identity(context, certificate, private_key)
    for client_ca in client_cas:
        context.load_verify_locations(cadata=client_ca)
    return context


class TlsStream:
    """One TLS connection, server side.

    Args:
        socket: Accepted.
        context: Of the gateway.
        buffer: Where it reads; all connections of an event loop share one of `RECEIVE_SIZE`. None:
            one of its own.
        turns: Shares the event loop. None: it has the loop for itself.
        send_timeout_s: Seconds the peer has to take what reading it made necessary.

    Attributes:
        tenant: Whose time is used.
        is_over: Whether the peer said that nothing follows, or nothing does.
        broken: Whether a send was torn; such a stream only closes.
    """

    def __init__(
        self,
        socket: trio.socket.SocketType,
        context: ssl.SSLContext,
        buffer: memoryview | None = None,
        *,
        turns: Turns | None = None,
        send_timeout_s: float = math.inf,
    ) -> None:
        self._socket = socket
        self._stream = trio.SocketStream(socket)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._buffer = memoryview(bytearray(RECEIVE_SIZE)) if buffer is None else buffer
        self._turns = turns
        self._send_timeout_s = send_timeout_s
        self._send_lock = trio.Lock()
        self._unsent = memoryview(b"")
        self._borders = RecordBorders()
        self._encrypted = memoryview(b"")
        self._decrypted: list[bytes] = []
        self._records = 0
        self._records_empty = 0
        self._ended = False
        self.tenant = NOBODY
        self.is_over = False
        self.broken = False

    async def handshake(self) -> None:
        """Shake hands; a refused peer gets its alert when the stream is closed.

        Raises:
            TlsClosed: The peer was refused or went away.
        """
        size = 0
        while not await self._in_turn(self._shake):
            await self.flush()
            if self._encrypted:
                self._feed(self._encrypted)
                await trio.lowlevel.checkpoint()
                continue
            size += await self._fill(HANDSHAKE_RECEIVE_SIZE)
            if self._ended:
                raise TlsClosed("the peer left during the handshake")
            if size > HANDSHAKE_SIZE_MAX:
                raise TlsWaste("a handshake longer than any")
        self._records = 0
        await self.flush()
        if self._tls.selected_alpn_protocol() != ALPN:
            raise TlsClosed(f"the peer does not speak {ALPN}")

    def _shake(self) -> bool:
        """Go on with the handshake; whether it is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsClosed(f"handshake refused: {error.reason or error}") from None
        return True

    @property
    def peer_chain(self) -> list[bytes]:
        """The chain that OpenSSL verified as DER, from the client's certificate to a root; the
        handshake does not succeed without one.
        """
        # Public from Python 3.13 on; before, only the object behind it has the method.
        chain = self._tls._sslobj.get_verified_chain()  # type: ignore[attr-defined]
        if not chain:
            raise TlsClosed("no client certificate")
        return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in chain]

    async def receive(self, size: int = HANDSHAKE_RECEIVE_SIZE) -> bytes:
        """What can be decrypted now, at least one byte; empty at the peer's end.

        Args:
            size: The most bytes to read from the socket; what was read of a record before comes
                on top.

        Raises:
            TlsClosed: The connection broke, or the peer sent something TLS refuses.
            trio.TooSlowError: The peer does not take what it made necessary to send.
        """
        while True:
            data = await self.decrypt()
            if data or self.is_over:
                return data
            await self.wait(size)

    async def wait(self, size: int) -> None:
        """Receive something to decrypt, at most `size` bytes, or the end of the stream.

        Raises:
            TlsClosed: The connection broke.
        """
        if not (self._encrypted or self._decrypted):
            await self._fill(size)

    def try_fill(self, size: int) -> bool:
        """Receive what is there already, as `wait`; whether there is something, or the end.

        Raises:
            TlsClosed: The connection broke.
        """
        if not (self._encrypted or self._decrypted):
            came = self._try_read(size)
            if came is None:
                return False
            self._keep(came)
        return True

    async def decrypt(self) -> bytes:
        """What was received and not decrypted, as far as records are whole; often nothing.

        Takes turns with others, so it can take a while. Cancelled, it goes on the next time.

        Raises:
            TlsClosed: The peer sent something TLS refuses.
            trio.TooSlowError: The peer does not take what it made necessary to send.
        """
        is_more = True
        while is_more:
            is_more = await self._in_turn(self._decrypt_slice)
            if self._outgoing.pending:
                with trio.fail_after(self._send_timeout_s):
                    await self.flush()
            if is_more:
                await trio.lowlevel.checkpoint()
        return self._take_decrypted()

    def try_decrypt(self) -> bytes | None:
        """As `decrypt`, where nothing has to be waited for, as usual; None: `decrypt` goes on.

        Raises:
            TlsClosed: The peer sent something TLS refuses.
        """
        if self._turns is not None and not self._turns.is_turn(self.tenant):
            return None
        is_more = self._spend(self._decrypt_slice)
        return None if is_more or self._outgoing.pending else self._take_decrypted()

    def _take_decrypted(self) -> bytes:
        data = b"".join(self._decrypted)
        self._decrypted.clear()
        return data

    async def _in_turn(self, do: Callable[[], T]) -> T:
        """Do something that waits for nothing, when it is the tenant's turn."""
        if self._turns is not None:
            await self._turns.take(self.tenant)
        return self._spend(do)

    def _spend(self, do: Callable[[], T]) -> T:
        """Do something that waits for nothing, on the tenant's time."""
        if self._turns is None:
            return do()
        began = time.perf_counter_ns()
        try:
            return do()
        finally:
            self._turns.spend(self.tenant, time.perf_counter_ns() - began)

    def _decrypt_slice(self) -> bool:
        """Decrypt what OpenSSL was given, and give it more; whether there is more."""
        self._count(self._read_decrypted())
        if not self._encrypted:
            return False
        self._feed(self._encrypted)
        return True

    def _read_decrypted(self) -> int:
        """Keep what OpenSSL has decrypted; of how many records."""
        before = len(self._decrypted)
        try:
            while piece := self._tls.read(RECORD_SIZE):
                self._decrypted.append(piece)
            self._end_reading()
        except ssl.SSLWantReadError:
            if self._ended:
                self._end_reading()
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._end_reading()
        except ssl.SSLError as error:
            raise TlsClosed(f"record refused: {error.reason or error}") from None
        return len(self._decrypted) - before

    def _end_reading(self) -> None:
        """The peer said that nothing follows, or nothing does."""
        self.is_over = True
        self._encrypted = memoryview(b"")

    def _count(self, carried: int) -> None:
        """Of the records given to OpenSSL, so many carried something."""
        # Each of them makes up for one that did not.
        empty = self._records_empty + self._records - 2 * carried
        self._records, self._records_empty = 0, max(0, empty)
        if self._records_empty > RECORDS_EMPTY_MAX:
            raise TlsWaste("too many records that carry nothing")

    def _feed(self, data: memoryview) -> None:
        """Give OpenSSL as many records as it may have at once, and keep the rest."""
        end, records = self._borders.advance(data, RECORDS_MAX)
        self._incoming.write(data[:end])
        self._records += records
        self._encrypted = data[end:]

    async def send_all(self, data: bytes | memoryview) -> None:
        """Encrypt and send all of `data`.

        Raises:
            TlsClosed: The connection broke.
        """
        if not self.try_send(data):
            await self.flush()

    def try_send(self, data: bytes | memoryview) -> bool:
        """Encrypt `data` and send what the socket takes now; whether all of it has left.

        If not, `flush` sends the rest.

        Raises:
            TlsClosed: The connection broke.
        """
        if self.broken:
            raise TlsClosed("an earlier send was cut off")
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise TlsClosed(f"cannot send: {error.reason or error}") from None
        return self._try_flush()

    async def close(self) -> None:
        """Send the alert or close_notify if that is still possible, then close the socket.

        Cancelled, it closes the socket at once.
        """
        try:
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                if not self.broken:
                    self._end()
                    await self.flush()
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
                await trio.lowlevel.checkpoint()

    async def _fill(self, size: int) -> int:
        """Receive once, and give OpenSSL the first of it; how many bytes, 0 at the end."""
        came, waited = self._try_read(size), False
        while came is None:
            await self._wait_readable()
            came, waited = self._try_read(size), True
        received = len(came)
        self._keep(came)
        if not waited:
            # Bytes that are there already must not let one connection keep the event loop.
            await trio.lowlevel.checkpoint()
        return received

    def _keep(self, came: memoryview) -> None:
        """Give OpenSSL the first of what came, and keep the rest."""
        if came:
            self._feed(came)
            # The buffer is everybody's.
            self._encrypted = memoryview(bytes(self._encrypted))
        else:
            self._incoming.write_eof()

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

    def _try_flush(self) -> bool:
        """Send what the socket takes now, unless others are before it; whether nothing is left."""
        if self._unsent or self._send_lock.locked():
            return False
        data = memoryview(self._outgoing.read())
        self._unsent = data[self._try_write(data) :] if data else data
        return not self._unsent

    async def flush(self) -> None:
        """Send what OpenSSL has made; comes back at once when the socket takes all of it.

        Raises:
            TlsClosed: The connection broke, or an earlier send was cut off.
        """
        if self.broken:
            raise TlsClosed("an earlier send was cut off")
        if self._try_flush():
            return
        async with self._send_lock:
            if self.broken:
                raise TlsClosed("an earlier send was cut off")
            await self._send_rest()

    async def _send_rest(self) -> None:
        is_whole = False
        try:
            while self._unsent or self._outgoing.pending:
                self._unsent = self._unsent or memoryview(self._outgoing.read())
                sent = self._try_write(self._unsent)
                self._unsent = self._unsent[sent:]
                if not sent:
                    await trio.lowlevel.wait_writable(self._socket)
            is_whole = True
        except trio.ClosedResourceError:
            raise TlsClosed("connection lost while sending") from None
        finally:
            if not is_whole:
                self.broken = True

    def _try_write(self, data: memoryview) -> int:
        """How many bytes the socket took; 0 when it has no room."""
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError:
            raise TlsClosed("connection lost while sending") from None
