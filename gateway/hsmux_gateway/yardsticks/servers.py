"""Two servers: what the gateway's stream and protocol cost without the gateway behind them.

`echo` is the gateway's own TLS stream, protocol machine and argument reading, with an answer as
large as an envelope and nothing behind it: no call, no decision, no key, no record. `sealer` is the
C module's batch loop behind the same TLS stream and without any protocol: `u32 length | 0 | column`
is answered by `u32 length | column` of envelopes, and 1 instead of 0 opens them again. Both say on
which port of 127.0.0.1 they listen.
"""

import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from hsmux_protocol.connection import ANNOUNCED_LIMITS, VERSION, ServerConnection
from hsmux_protocol.envelope import SUITE_XAES_256_GCM
from hsmux_protocol.frames import Request, Result, Welcome

from ..call import Principal
from ..config import load_config
from ..heap import fix_heap_sizes
from ..instance import Instance
from ..listener import open_sockets
from ..requests import read_request
from ..tls import RECEIVE_SIZE, TlsClosed, TlsStream, make_server_context
from .lines import say
from .loops import Sealer

__all__ = ["run_echo", "run_sealer"]

FRAMES_MAX: Final = 64
"""Answers sent at a time and frames taken before others get their turn, as in the gateway."""

KEY_ID: Final = bytes(16)
PADDING: Final = bytes(SUITE_XAES_256_GCM.overhead_size)
ADDRESS: Final = "127.0.0.1:0"
_LENGTH_SIZE: Final = 4
NOBODY: Final = Principal(KEY_ID, "echo", KEY_ID, 0)

_Server = Callable[[TlsStream], Awaitable[None]]


def _echoed(request: Request) -> Result:
    """An answer as large as that to the request of one encryption: the plaintext and padding."""
    asked = read_request(request, NOBODY, ADDRESS, 0, 0.0, "")
    return Result(request.id, [asked.call.arguments[-1] + PADDING, KEY_ID, 1])


async def _serve_echo(tls: TlsStream) -> None:
    """HELLO, WELCOME, then an answer for each request."""
    protocol = ServerConnection()
    while data := await tls.receive(RECEIVE_SIZE):
        protocol.receive_data(data)
        answers: list[bytes] = []
        while (frame := protocol.next_frame()) is not None:
            if isinstance(frame, Request):
                answers.append(protocol.send(_echoed(frame)))
                if len(answers) == FRAMES_MAX:
                    await tls.send_all(b"".join(answers))
                    answers.clear()
                    await trio.lowlevel.checkpoint()
            else:
                welcome = Welcome(VERSION, [], ANNOUNCED_LIMITS, KEY_ID, "echo")
                answers.append(protocol.send(welcome))
        if answers:
            await tls.send_all(b"".join(answers))


async def _serve_sealer(tls: TlsStream) -> None:
    """A column for a column."""
    sealer = Sealer()
    do = (sealer.seal, sealer.open)
    received = bytearray()
    while data := await tls.receive(RECEIVE_SIZE):
        received += data
        while len(received) >= _LENGTH_SIZE:
            end = _LENGTH_SIZE + int.from_bytes(received[:_LENGTH_SIZE], "big")
            if len(received) < end:
                break
            answer = do[received[_LENGTH_SIZE]](bytes(received[_LENGTH_SIZE + 1 : end]))
            del received[:end]
            await tls.send_all(len(answer).to_bytes(_LENGTH_SIZE, "big") + answer)


async def _listen(context: ssl.SSLContext, serve: _Server) -> None:
    (listening,) = open_sockets([ADDRESS])
    with listening:
        say({"port": listening.getsockname()[1]})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, listening, context, serve)
            while await trio.to_thread.run_sync(sys.stdin.readline):
                pass
            nursery.cancel_scope.cancel()


async def _accept(
    listening: trio.socket.SocketType, context: ssl.SSLContext, serve: _Server
) -> None:
    """One connection after the other."""
    while True:
        accepted, _ = await listening.accept()
        accepted.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        tls = TlsStream(accepted, context)
        try:
            await tls.handshake()
            await serve(tls)
        except TlsClosed:
            continue
        finally:
            await tls.close()


def _run_server(config_path: str, serve: _Server) -> None:
    fix_heap_sizes()
    config = load_config(Path(config_path))
    instance = Instance(Path(config.instance_dir))
    ca = ssl.PEM_cert_to_DER_cert((instance.administrator / "ca.pem").read_text())
    context = make_server_context(instance.server_certificate, instance.server_key, [ca])
    trio.run(_listen, context, serve)


def run_echo(config_path: str) -> None:
    """Echo, with the certificate of a configuration."""
    _run_server(config_path, _serve_echo)


def run_sealer(config_path: str) -> None:
    """Seal and open, with the certificate of a configuration."""
    _run_server(config_path, _serve_sealer)
