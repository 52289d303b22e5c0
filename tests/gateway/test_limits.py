"""Limits of access points over the wire: what a gateway that runs refuses, counts and admits."""

import itertools
import re
import ssl
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trio

import hsmux
from hsmux.trio_client import TrioClient
from hsmux_protocol import errors
from hsmux_protocol.frames import Error, Request, Result
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.records import LimitsRecord
from tests.gateway.journals import records_in
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

TIMEOUT_S = 20.0
LISTS: tuple[list[str], ...] = ([], [], [], [], [], [])
_numbers = itertools.count(1)


class Application:
    """An access point with a limit, and its client key."""

    def __init__(self, running: Running, admin: RawClient, limits: LimitsRecord | None) -> None:
        self.name = f"limited-{next(_numbers)}"
        self.address = running.address
        self.directory = running.directory.parent / self.name
        self.directory.mkdir()
        (self.record,) = admin.call(
            "create_access_point", self.name, "", ["administrator"], [], limits
        )
        _, certificate, ca, key = admin.call("create_client_key", self.name, None, 30)
        # Under the names that `client_context` looks for.
        self.certificate = self.directory / "administrator.pem"
        self.private_key = self.directory / "administrator.key"
        self.ca = self.directory / "ca.pem"
        self.certificate.write_text(ssl.DER_cert_to_PEM_cert(certificate))
        self.ca.write_text(ssl.DER_cert_to_PEM_cert(ca))
        self.private_key.write_bytes(key)
        self.private_key.chmod(0o600)

    @property
    def arguments(self) -> dict[str, Any]:
        """What a client of the library connects with."""
        return {
            "addresses": [self.address],
            "certificate": self.certificate,
            "private_key": self.private_key,
            "ca": self.ca,
            "server_name": "localhost",
        }


def update(admin: RawClient, application: Application, limits: LimitsRecord) -> Any:
    """Other limits; the access point as it is then."""
    return admin.call("update_access_point", application.name, None, None, *LISTS, limits)[0]


def limited(running: Running, limit: str) -> float:
    """How many calls were refused for a limit."""
    with urllib.request.urlopen(f"http://{running.health}/metrics", timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    found = re.search(rf'^hsmux_calls_limited_total{{limit="{limit}"}} (\S+)$', text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def burst(client: RawClient, count: int) -> tuple[int, list[Error]]:
    """Send many requests at once; how many were done, and the refusals."""
    operation = OPERATIONS["generate_random"].number
    requests = [Request(n, operation, 0, [8], {}) for n in range(5000, 5000 + count)]
    client.tls.sendall(b"".join(client.protocol.send(request) for request in requests))
    answers = [client.receive() for _ in range(count)]
    refused = [answer for answer in answers if isinstance(answer, Error)]
    return sum(isinstance(answer, Result) for answer in answers), refused


def test_a_burst_gets_what_the_bucket_holds_and_the_rest_is_counted(
    running: Running, admin: RawClient
) -> None:
    application = Application(running, admin, LimitsRecord(20, None, None))
    assert application.record.limits == (20, 0, 0)
    before = limited(running, "requests_per_s")
    with connect(running.address, client_context(application.directory)) as client:
        began = time.monotonic()
        done, refused = burst(client, 1000)
        elapsed_s = time.monotonic() - began
        assert 20 <= done <= 20 * (1 + elapsed_s) + 1
        assert {error.number for error in refused} == {errors.Busy.number}
        assert all(0 < (error.retry_after_ms or 0) <= 1000 for error in refused)
        assert refused[0].text == "over this access point's limit of 20 requests a second"
        # Nobody else is held back.
        assert burst(admin, 100) == (100, [])
    assert limited(running, "requests_per_s") == before + len(refused)


def test_another_limit_holds_on_open_connections_from_the_next_request_on(
    running: Running, admin: RawClient
) -> None:
    application = Application(running, admin, None)
    assert application.record.limits == (0, 0, 0)
    with connect(running.address, client_context(application.directory)) as client:
        assert burst(client, 200) == (200, [])
        changed = update(admin, application, LimitsRecord(None, 1, None))
        assert changed.limits == (0, 1, 0)
        done, refused = burst(client, 10)
        # The first one owes more than a second, so the others wait.
        assert (done, len(refused)) == (1, 9)
        assert refused[0].text.endswith("1 bytes a second")
        update(admin, application, LimitsRecord(5, 0, None))
        shown = admin.call("show_access_point", application.name)[0]
        assert shown.limits == (5, 0, 0)
        listed = admin.call("list_access_points", b"", 100)[0]
        assert shown in listed
        assert burst(client, 5)[0] == 5
        update(admin, application, LimitsRecord(0, None, None))
        assert burst(client, 200) == (200, [])


def test_requests_that_wait_are_bounded(running: Running, admin: RawClient) -> None:
    application = Application(running, admin, LimitsRecord(None, None, 2))
    key: tuple[Any, ...] = ("RSA_3072", "SIGN_VERIFY", "software", None, None, "", {})
    with connect(running.address, client_context(application.directory)) as client:
        for _ in range(20):
            client.request("create_key", *key, budget_ms=60_000)
        answers = [client.receive() for _ in range(20)]
    refused = [answer for answer in answers if isinstance(answer, Error)]
    assert 2 <= 20 - len(refused) < 20
    assert {error.text for error in refused} == {
        "over this access point's limit of 2 requests at a time"
    }


def test_an_access_point_does_not_change_its_own_limits(running: Running, admin: RawClient) -> None:
    application = Application(running, admin, LimitsRecord(100, None, None))
    with connect(running.address, client_context(application.directory)) as client:
        with pytest.raises(errors.Denied):
            update(client, application, LimitsRecord(0, None, None))


def test_refusals_over_a_limit_take_no_room_in_the_audit_log(tmp_path: Path) -> None:
    with running_gateway(write_config(tmp_path)) as running:
        log = running.directory / "audit"
        with connect(running.address, client_context(running.administrator)) as admin:
            application = Application(running, admin, LimitsRecord(None, 1, None))
        with connect(running.address, client_context(application.directory)) as client:
            assert burst(client, 1)[0] == 1
            before = len(records_in(log))
            for _ in range(5):
                assert len(burst(client, 1000)[1]) == 1000
        assert running.stop() == 0
        records = records_in(log)[before:]
    told = [record for record in records if record["kind"] == "limited"]
    assert sum(record["count"] for record in told) == 5000
    assert {(record["access_point"], record["limit"]) for record in told} == {
        (application.name, "bytes_per_s")
    }
    # One in ten seconds, and the end.
    assert len(records) <= 4


def _ask_blocking(application: Application, count: int, timeout_s: float) -> list[bytes]:
    with hsmux.Client.connect(**application.arguments) as client:
        return [client.generate_random(8, timeout_s=timeout_s) for _ in range(count)]


def _ask_trio(application: Application, count: int, timeout_s: float) -> list[bytes]:
    async def ask() -> list[bytes]:
        async with TrioClient.connect(**application.arguments) as client:
            return [await client.generate_random(8, timeout_s=timeout_s) for _ in range(count)]

    return trio.run(ask)


@pytest.mark.parametrize("ask", [_ask_blocking, _ask_trio], ids=["blocking", "trio"])
def test_clients_wait_as_long_as_they_are_told_inside_their_deadline(
    running: Running, admin: RawClient, ask: Any
) -> None:
    application = Application(running, admin, LimitsRecord(10, None, None))
    before = limited(running, "requests_per_s")
    began = time.monotonic()
    assert len(ask(application, 14, TIMEOUT_S)) == 14
    # Four more than the bucket holds: no earlier than the rate brings them.
    assert time.monotonic() - began >= 4 / 10
    # And hardly any of them was asked for twice.
    assert 1 <= limited(running, "requests_per_s") - before <= 8
    update(admin, application, LimitsRecord(0, 1, None))
    with connect(running.address, client_context(application.directory)) as client:
        assert burst(client, 1)[0] == 1
    with pytest.raises(hsmux.Busy, match="limit of 1 bytes") as refused:
        ask(application, 1, 1.0)
    assert (refused.value.retry_after_ms or 0) > 1000
