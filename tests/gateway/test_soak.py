"""Clients of every manner at once, coming and going; at the end nothing of them is left."""

import contextlib
import random
import re
import socket
import ssl
import struct
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsmux_protocol import errors
from hsmux_protocol.columns import pack_column
from hsmux_protocol.fields import write_fields
from hsmux_protocol.frames import Cancel, Error, Ping, Request, Result
from hsmux_protocol.operations import OPERATIONS
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

LIMITS = """
[limits]
handshake_timeout_s = 2.0
frame_timeout_s = 1.0
send_timeout_s = 1.0
large_buffer_bytes_max = 16777216
connections_max = 64
"""
ROUNDS = [pytest.param(3, id="few"), pytest.param(200, id="many", marks=pytest.mark.long)]
TIMEOUT_S = 30.0
STORE_DESCRIPTORS_MAX = 9
"""Of the store's connections that are opened when they are needed first, and stay."""

LEFT = ("hsmux_connections", "hsmux_calls_in_work", "hsmux_large_buffer_bytes")
AES: tuple[Any, ...] = ("AES_256", "ENCRYPT_DECRYPT", "software", None)


def _frame(client: RawClient, name: str, *arguments: Any, budget_ms: int = 0) -> bytes:
    client._next_id += 1
    operation = OPERATIONS[name]
    values = write_fields(operation.arguments, arguments)
    return client.protocol.send(Request(client._next_id, operation.number, budget_ms, values, {}))


def _large(client: RawClient, chance: random.Random) -> bytes:
    items = pack_column([bytes(60_000)] * chance.randint(2, 14))
    return _frame(client, "encrypt_batch", "alias/soak", {}, None, items)


def _answers_everything(client: RawClient, chance: random.Random) -> None:
    wanted = set()
    for _ in range(chance.randint(1, 40)):
        kind = chance.random()
        if kind < 0.6:
            wanted.add(client.request("encrypt", "alias/soak", {}, chance.randbytes(100)))
        elif kind < 0.9:
            wanted.add(client.request("sign", "alias/signing", "ECDSA_SHA_256", False, b"m"))
        else:
            wanted.add(client.request("create_key", *AES, None, "", {}))
    while wanted:
        frame = client.receive()
        assert isinstance(frame, Result), frame
        wanted.remove(frame.id)


def _cancels(client: RawClient, chance: random.Random) -> None:
    slow: tuple[Any, ...] = ("RSA_2048", "SIGN_VERIFY", "software", None, None, "", {})
    numbers = [client.request("create_key", *slow) for _ in range(chance.randint(1, 8))]
    frames = [Cancel(number) for number in numbers if chance.random() < 0.7]
    client.tls.sendall(b"".join(client.protocol.send(frame) for frame in frames))
    for _ in numbers:
        frame = client.receive()
        assert isinstance(frame, Result | Error)
        if isinstance(frame, Error):
            assert frame.number in (errors.Cancelled.number, errors.Busy.number)


def _leaves_in_a_frame(client: RawClient, chance: random.Random) -> None:
    data = _large(client, chance)
    client.tls.sendall(data[: chance.randrange(1, len(data))])


def _resets(client: RawClient, chance: random.Random) -> None:
    client.tls.sendall(_large(client, chance))
    client.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.tls.close()


def _reads_nothing(client: RawClient, chance: random.Random) -> None:
    client.tls.settimeout(0.5)
    for _ in range(20):
        client.tls.sendall(_large(client, chance))


def _stalls_in_a_frame(client: RawClient, chance: random.Random) -> None:
    client.tls.sendall(_large(client, chance)[: chance.randrange(1, 1000)])
    while client.tls.recv(65536):
        pass


def _talks_nonsense(client: RawClient, chance: random.Random) -> None:
    client.tls.sendall(client.protocol.send(Ping(1)) + chance.randbytes(chance.randint(1, 5000)))
    while client.tls.recv(65536):
        pass


def _leaves_at_once(client: RawClient, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 60)):
        client.request("sign", "alias/signing", "ECDSA_SHA_256", False, b"m")


Manner = Callable[[RawClient, random.Random], None]
MANNERS: tuple[Manner, ...] = (
    *(_cancels, _leaves_in_a_frame, _resets, _reads_nothing, _stalls_in_a_frame),
    *(_talks_nonsense, _leaves_at_once),
)


def _misbehave(running: Running, context: ssl.SSLContext, seed: int, rounds: int) -> None:
    chance = random.Random(seed)
    for _ in range(rounds):
        manner = chance.choice(MANNERS)
        if manner is _cancels:
            with connect(running.address, context) as client:
                manner(client, chance)
            continue
        with contextlib.suppress(OSError, EOFError), connect(running.address, context) as client:
            manner(client, chance)


def _left(running: Running) -> list[float]:
    with urllib.request.urlopen(f"http://{running.health}/metrics", timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    found = [re.search(rf"^{name} (\S+)$", text, re.MULTILINE) for name in LEFT]
    return [float(match[1]) for match in found if match]


def _descriptors(running: Running) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_nothing_is_left_of_clients_of_any_manner(tmp_path: Path, rounds: int) -> None:
    with running_gateway(write_config(tmp_path, LIMITS)) as running:
        context = client_context(running.administrator)
        with connect(running.address, context) as good:
            good.call("create_key", *AES, "alias/soak", "", {})
            ec: tuple[Any, ...] = (
                "EC_P256",
                "SIGN_VERIFY",
                "software",
                None,
                "alias/signing",
                "",
                {},
            )
            good.call("create_key", *ec)
            most = _descriptors(running) + STORE_DESCRIPTORS_MAX
            failures: list[BaseException] = []

            def misbehave(seed: int) -> None:
                try:
                    _misbehave(running, context, seed, rounds)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=misbehave, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            chance = random.Random(99)
            while any(thread.is_alive() for thread in threads):
                _answers_everything(good, chance)
            assert not failures
            pause = threading.Event()
            for _ in range(500):
                if _left(running) == [1.0, 0.0, 0.0] and _descriptors(running) <= most:
                    break
                pause.wait(0.02)
            assert _left(running) == [1.0, 0.0, 0.0]
            assert _descriptors(running) <= most
        assert running.stop() == 0
        assert "Traceback" not in running.log.read_text()
