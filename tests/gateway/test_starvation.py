"""A thousand requests of one access point in flight, and a few of another: who is done when.

What came when is read from the audit log, which has every request in the order in which it was
done. So nothing here is measured in seconds: where requests were served as they come, those of the
second access point would stand behind the whole flood, and they stand near its beginning.
"""

import contextlib
import re
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hsmux_protocol.fields import write_fields
from hsmux_protocol.frames import Request, Result
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.references import format_key_id
from tests.gateway.certificates import stranger
from tests.gateway.hardware import write_hardware_config
from tests.gateway.journals import requests_in
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway

FLOOD_CONNECTIONS = 20
FLOOD_EACH = 50
POLITE = 20
QUEUED = 300
"""Requests of the flood that the gateway has taken and not done when the others are sent."""

HARDWARE_KEY: tuple[Any, ...] = ("RSA_2048", "SIGN_VERIFY", "hardware", "hsm", None, "", {})
SOFTWARE_KEY: tuple[Any, ...] = ("RSA_4096", "SIGN_VERIFY", "software", None, None, "", {})
STORED_KEY: tuple[Any, ...] = ("AES_256", "ENCRYPT_DECRYPT", "software", None, None, "", {})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway over a token, with two access points."""
    config = write_hardware_config(tmp_path_factory.mktemp("starvation"))
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            for name in ("flood", "polite"):
                client.call("create_access_point", name, "", ["administrator"], [], None)
                _, certificate, _, key = client.call("create_client_key", name, None, 30)
                pem = ssl.DER_cert_to_PEM_cert(certificate).encode() + key
                (running.directory / f"{name}.pem").write_bytes(pem)
        yield running
        assert "Traceback" not in running.log.read_text()


def _connect(running: Running, name: str) -> contextlib.AbstractContextManager[RawClient]:
    context = stranger(running.administrator / "ca.pem")
    context.load_cert_chain(running.directory / f"{name}.pem")
    return connect(running.address, context)


def _signs(key: tuple[Any, ...]) -> Callable[[RawClient], tuple[Any, ...]]:
    def request(client: RawClient) -> tuple[Any, ...]:
        name = format_key_id(client.call("create_key", *key)[0].key_id)
        return ("sign", name, "RSA_PSS_SHA_256", False, b"message")

    return request


REQUESTS: dict[str, Callable[[RawClient], tuple[Any, ...]]] = {
    "software": _signs(SOFTWARE_KEY),
    "hardware": _signs(HARDWARE_KEY),
    "store": lambda client: ("create_key", *STORED_KEY),
}
"""What is asked for, by what it waits for: a thread, a worker of the token, the store's writer."""


def _order(running: Running, operation: str) -> list[str]:
    """Whose requests were done, in their order."""
    return [
        record["access_point"]
        for record in requests_in(running.directory / "audit")
        if record["operation"] == operation and record["access_point"] in ("flood", "polite")
    ]


def _in_work(running: Running) -> int:
    with urllib.request.urlopen(f"http://{running.health}/metrics") as answer:
        found = re.search(rb"^hsmux_calls_in_work (\S+)$", answer.read(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def _send(client: RawClient, request: tuple[Any, ...], count: int) -> None:
    """Many equal requests at once."""
    name, *arguments = request
    operation = OPERATIONS[name]
    values = write_fields(operation.arguments, tuple(arguments))
    frames = [Request(n, operation.number, 60_000, values, {}) for n in range(100, 100 + count)]
    client.tls.sendall(b"".join(client.protocol.send(frame) for frame in frames))


def _receive(client: RawClient, count: int) -> None:
    for _ in range(count):
        answer = client.receive()
        assert isinstance(answer, Result), answer


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_thousand_requests_in_flight_delay_another_access_point_by_its_share(
    running: Running, kind: str
) -> None:
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(_connect(running, "flood")) for _ in range(FLOOD_CONNECTIONS)]
        polite = stack.enter_context(_connect(running, "polite"))
        request = REQUESTS[kind](flood[0])
        before = len(_order(running, request[0]))
        for client in flood:
            _send(client, request, FLOOD_EACH)
        readers = [threading.Thread(target=_receive, args=(c, FLOOD_EACH)) for c in flood]
        for reader in readers:
            reader.start()
        while (queued := _in_work(running)) < QUEUED:
            assert any(reader.is_alive() for reader in readers)
        begun = len(_order(running, request[0])) - before
        _send(polite, request, POLITE)
        _receive(polite, POLITE)
        for reader in readers:
            reader.join()
    order = _order(running, request[0])[before:]
    assert len(order) == FLOOD_CONNECTIONS * FLOOD_EACH + POLITE
    waited = [
        (order[:place].count("flood") - begun) / queued
        for place, name in enumerate(order)
        if name == "polite"
    ]
    # First come, first served would be 1 or more, for each of them. What the flood had done while
    # the others were on their way is in it too.
    assert max(waited) < 0.75
