"""What the gateway's speed is compared with: two servers and two bare loops, a process each.

    python -m hsmux_gateway.yardstick echo CONFIG
    python -m hsmux_gateway.yardstick sealer CONFIG
    python -m hsmux_gateway.yardstick software COLUMN
    python -m hsmux_gateway.yardstick hardware COLUMN CONFIG

`echo` is the gateway's own TLS stream, protocol machine and argument reading, with an answer as
large as an envelope and nothing behind it: no call, no decision, no key, no record. `sealer` is the
C module's batch loop behind the same TLS stream and without any protocol: `u32 length | 0 | column`
is answered by `u32 length | column` of envelopes, and 1 instead of 0 opens them again. Both say on
which port of 127.0.0.1 they listen.

`software` seals a column with the same batch loop and no stream; `hardware` encrypts it with one
bare PKCS#11 session. They read a number of seconds a line, repeat their batch for that long, and
print how many batches that were, the time of the clock and of the processor they took, and whether
the last one opens again.

Each yardstick prints one JSON line when it is ready, and ends when its standard input does.
"""

import json
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from hsmux_native import Arena
from hsmux_protocol.columns import pack_column
from hsmux_protocol.connection import ANNOUNCED_LIMITS, VERSION, ServerConnection
from hsmux_protocol.context import EMPTY_CONTEXT
from hsmux_protocol.envelope import HEADER_SIZE, SUITE_XAES_256_GCM, make_header
from hsmux_protocol.frames import Request, Result, Welcome

from .call import Principal
from .config import load_config
from .foundation import token_settings
from .heap import fix_heap_sizes
from .instance import Instance
from .listener import open_sockets
from .requests import read_request
from .tls import RECEIVE_SIZE, TlsClosed, TlsStream, make_server_context

__all__ = ["main"]

FRAMES_MAX: Final = 64
"""Answers sent at a time and frames taken before others get their turn, as in the gateway."""

KEY_ID: Final = bytes(16)
PADDING: Final = bytes(SUITE_XAES_256_GCM.overhead_size)
HEADER: Final = make_header(SUITE_XAES_256_GCM, KEY_ID, 1)
ADDRESS: Final = "127.0.0.1:0"
_LENGTH_SIZE: Final = 4
NOBODY: Final = Principal(KEY_ID, "echo", KEY_ID, 0)

_Server = Callable[[TlsStream], Awaitable[None]]


def _say(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


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


class _Sealer:
    """The C module's batch loop with a key of its own."""

    def __init__(self) -> None:
        self._arena = Arena()
        self._slot = self._arena.generate()
        self._contexts = pack_column([EMPTY_CONTEXT])

    def seal(self, column: bytes) -> bytes:
        """A column of envelopes."""
        return self._arena.seal_batch(self._slot, HEADER, self._contexts, column)[0]

    def open(self, column: bytes) -> bytes:
        """The way back."""
        return self._arena.open_batch(self._slot, HEADER, self._contexts, column)[0]


async def _serve_sealer(tls: TlsStream) -> None:
    """A column for a column."""
    sealer = _Sealer()
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
        _say({"port": listening.getsockname()[1]})
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


def _repeat(batch: Callable[[], bytes], is_right: Callable[[bytes], bool]) -> None:
    """Repeat a batch for as long as each line of standard input says."""
    _say({})
    for line in sys.stdin:
        calls, output = 0, b""
        cpu, began = time.process_time_ns(), time.perf_counter_ns()
        end = began + int(float(line) * 1e9)
        while calls == 0 or time.perf_counter_ns() < end:
            output = batch()
            calls += 1
        wall_ns, cpu_ns = time.perf_counter_ns() - began, time.process_time_ns() - cpu
        right = is_right(output)
        _say({"calls": calls, "wall_ns": wall_ns, "cpu_ns": cpu_ns, "right": right})


def _run_software(column_path: str) -> None:
    column, sealer = Path(column_path).read_bytes(), _Sealer()
    _repeat(lambda: sealer.seal(column), lambda output: sealer.open(output) == column)


def _run_hardware(column_path: str, config_path: str) -> None:
    # PKCS#11 is loaded only here.
    from .hsm.raw_session import RawSession

    config = load_config(Path(config_path))
    ((name, hsm),) = config.hsm.items()
    session = RawSession(token_settings(name, hsm))
    column = Path(column_path).read_bytes()
    data = pack_column([bytes(HEADER_SIZE) + EMPTY_CONTEXT])
    _repeat(
        lambda: session.encrypt(column, data)[0],
        lambda output: session.decrypt(output, data)[0] == column,
    )


_PROGRAMS: Final[dict[str, Callable[..., None]]] = {
    "echo": partial(_run_server, serve=_serve_echo),
    "sealer": partial(_run_server, serve=_serve_sealer),
    "software": _run_software,
    "hardware": _run_hardware,
}


def main() -> None:
    """Run the yardstick that the command line names."""
    _PROGRAMS[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
