"""One connection: its answers, its time, its cancellation, its end."""

import selectors
import signal
import socket
import ssl
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from hsmux_protocol import errors
from hsmux_protocol.frames import Cancel, Error, Frame, Goaway, Ping, Pong, Request, Result
from hsmux_protocol.limits import REQUESTS_IN_FLIGHT_MAX
from tests.gateway.journals import requests_in
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

TIMEOUT_S = 20.0
ROUNDS = [pytest.param(2, id="few"), pytest.param(50, id="many", marks=pytest.mark.long)]


def slow_key(alias: str) -> tuple[Any, ...]:
    """Arguments of a `create_key` that takes a while."""
    return ("RSA_4096", "SIGN_VERIFY", "software", None, alias, "", {})


def quick_key(client: RawClient, alias: str, spec: str = "AES_256") -> None:
    """A software key."""
    usage = "ENCRYPT_DECRYPT" if spec == "AES_256" else "SIGN_VERIFY"
    client.call("create_key", spec, usage, "software", None, alias, "", {})


def send(client: RawClient, *frames: Frame) -> None:
    """Send frames in one write."""
    client.tls.sendall(b"".join(client.protocol.send(frame) for frame in frames))


def barrier(client: RawClient, number: int) -> list[Frame]:
    """What comes before the PONG of a PING sent now."""
    send(client, Ping(number))
    frames = []
    while (frame := client.receive()) != Pong(number):
        frames.append(frame)
    return frames


def test_a_cancelled_request_has_one_answer_and_no_effect(client: RawClient) -> None:
    number = client.request("create_key", *slow_key("alias/cancelled"))
    send(client, Cancel(number), Cancel(number), Cancel(number + 7))
    answer = client.receive()
    assert isinstance(answer, Error)
    assert (answer.id, answer.number) == (number, errors.Cancelled.number)
    assert answer.reference
    send(client, Cancel(number))
    assert barrier(client, 1) == []
    with pytest.raises(errors.NotFound):
        client.call("show_key", "alias/cancelled")


def test_cancellations_are_read_while_everything_is_in_flight(client: RawClient) -> None:
    quick_key(client, "alias/inline")
    slow = [
        client.request("create_key", *slow_key(f"alias/full-{number}"), budget_ms=60_000)
        for number in range(REQUESTS_IN_FLIGHT_MAX)
    ]
    held = [
        client.request("create_key", *slow_key(f"alias/held-{number}"), budget_ms=60_000)
        for number in range(100)
    ]
    # What waits for nothing passes them.
    inline = client.request("encrypt", "alias/inline", {}, b"x")
    send(client, *(Cancel(number) for number in held))
    answers = {frame.id: frame for frame in barrier(client, 1)}  # type: ignore[union-attr]
    assert isinstance(answers[inline], Result)
    for number in held:
        answer = answers[number]
        assert isinstance(answer, Error) and answer.number == errors.Cancelled.number
        assert answer.reference
    left = set(slow) - answers.keys()
    send(client, *(Cancel(number) for number in left))
    while left:
        answer = client.receive()
        assert isinstance(answer, Error) and answer.number == errors.Cancelled.number
        left.remove(answer.id)
    with pytest.raises(errors.NotFound):
        client.call("show_key", "alias/held-0")


def test_requests_that_fit_nowhere_are_left_unread_and_answered_in_the_end(
    client: RawClient,
) -> None:
    quick_key(client, "alias/held-sign", "EC_P256")
    message = bytes(8000)
    numbers = {
        client.request("sign", "alias/held-sign", "ECDSA_SHA_256", False, message)
        for _ in range(300)
    }
    while numbers:
        answer = client.receive()
        assert isinstance(answer, Result)
        numbers.remove(answer.id)


def test_an_id_is_free_after_its_answer_and_its_cancellation_forgotten(client: RawClient) -> None:
    for _ in range(3):
        client._next_id = 4000
        number = client.request("create_key", *slow_key("alias/again"))
        send(client, Cancel(number))
        answer = client.receive()
        assert isinstance(answer, Error) and answer.number == errors.Cancelled.number
        client._next_id = 4000
        client.request("create_key", *slow_key("alias/again"), budget_ms=1)
        answer = client.receive()
        assert isinstance(answer, Error) and answer.number == errors.DeadlineExceeded.number


def test_a_cancellation_that_comes_too_late_changes_nothing(client: RawClient) -> None:
    quick_key(client, "alias/late")
    operation, arguments = 1, ["alias/late", {}, b"x"]
    send(client, Request(5000, operation, 0, arguments, {}), Cancel(5000))
    answer = client.receive()
    assert isinstance(answer, Result) and answer.id == 5000
    assert barrier(client, 2) == []


def test_time_that_runs_out_is_an_answer_and_no_effect(client: RawClient) -> None:
    with pytest.raises(errors.DeadlineExceeded) as late:
        client.call("create_key", *slow_key("alias/late-key"), budget_ms=1)
    assert late.value.reference
    with pytest.raises(errors.NotFound):
        client.call("show_key", "alias/late-key")


def test_the_time_of_a_request_runs_while_it_waits_for_its_turn(client: RawClient) -> None:
    quick_key(client, "alias/waiting", "EC_P256")
    signing = ("sign", "alias/waiting", "ECDSA_SHA_256", False, b"x")
    for number in range(REQUESTS_IN_FLIGHT_MAX):
        client.request("create_key", *slow_key(f"alias/slow-{number}"), budget_ms=200)
    # Neither is begun before one of these has its answer; the work itself would take no time.
    late = client.request(*signing, budget_ms=1)
    in_time = client.request(*signing)
    answers = {frame.id: frame for frame in barrier(client, 3) if not isinstance(frame, Pong)}  # type: ignore[union-attr]
    while len(answers) < REQUESTS_IN_FLIGHT_MAX + 2:
        frame = client.receive()
        assert isinstance(frame, Result | Error)
        answers[frame.id] = frame
    refused = answers[late]
    assert isinstance(refused, Error) and refused.number == errors.DeadlineExceeded.number
    assert "before it was begun" in refused.text
    assert isinstance(answers[in_time], Result)


def test_malformed_requests_are_on_record(gateway: Running, client: RawClient) -> None:
    send(client, Request(1, 60000, 0, [], {}), Request(2, 1, 0, ["alias/x"], {}))
    references = []
    for _ in range(2):
        frame = client.receive()
        assert isinstance(frame, Error)
        references.append(frame.reference)
    records = requests_in(gateway.directory / "audit")
    found = [record for record in records if record["reference"] in references]
    assert [(record["operation"], record["outcome"]) for record in found] == [
        ("unknown", "ProtocolError"),
        ("encrypt", "InvalidArgument"),
    ]


def test_a_peer_that_resets_in_the_middle_is_forgotten(
    gateway: Running, context: ssl.SSLContext, client: RawClient
) -> None:
    for _ in range(10):
        with connect(gateway.address, context) as gone:
            gone.request("create_key", *slow_key("alias/reset"))
            gone.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.tls.shutdown(socket.SHUT_WR)
    assert client.call("generate_random", 8)


class Talker(threading.Thread):
    """Sends requests without waiting until GOAWAY comes, and then until everything is answered."""

    def __init__(self, running: Running, *, answers_pings: bool) -> None:
        super().__init__()
        self._running, self._answers_pings = running, answers_pings
        self.sent: set[int] = set()
        self.answered: list[int] = []
        self.busy = threading.Event()
        self.saw_goaway = False

    def run(self) -> None:
        with connect(self._running.address, client_context(self._running.administrator)) as client:
            try:
                while True:
                    if not self.saw_goaway and len(client.protocol.open_ids) < 200:
                        self.sent.add(
                            client.request("sign", "alias/talk", "ECDSA_SHA_256", False, b"m")
                        )
                    if len(self.answered) > 20:
                        self.busy.set()
                    while self.saw_goaway or _is_readable(client):
                        self._take(client, client.receive())
            except EOFError:
                return

    def _take(self, client: RawClient, frame: Frame) -> None:
        if isinstance(frame, Goaway):
            self.saw_goaway = True
        elif isinstance(frame, Ping):
            if self._answers_pings:
                send(client, Pong(frame.number))
        else:
            assert isinstance(frame, Result), frame
            self.answered.append(frame.id)


def _is_readable(client: RawClient) -> bool:
    if client.protocol.buffered_size or client.tls.pending():
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(client.tls, selectors.EVENT_READ)
        return bool(selector.select(0))


@pytest.mark.parametrize("rounds", ROUNDS)
def test_every_request_that_crosses_a_goaway_is_answered(own_config: Path, rounds: int) -> None:
    for number in range(rounds):
        with running_gateway(own_config) as running:
            if number == 0:
                with connect(running.address, client_context(running.administrator)) as client:
                    quick_key(client, "alias/talk", "EC_P256")
            talkers = [Talker(running, answers_pings=answers) for answers in (True, True, False)]
            for talker in talkers:
                talker.start()
            for talker in talkers:
                assert talker.busy.wait(TIMEOUT_S)
            assert running.stop() == 0
            for talker in talkers:
                talker.join(TIMEOUT_S)
                assert talker.saw_goaway
                assert sorted(talker.answered) == sorted(talker.sent)


def test_an_idle_connection_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("[server]\n", "[server]\ndrain_s = 300\n"))
    with running_gateway(config) as running:
        context = client_context(running.administrator)
        host, port = running.address.rsplit(":", 1)
        with (
            connect(running.address, context) as idle,
            socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as opening,
        ):
            running.process.send_signal(signal.SIGTERM)
            assert isinstance(idle.receive(), Goaway)
            assert isinstance(idle.receive(), Ping)
            with pytest.raises(EOFError):
                idle.receive()
            assert opening.recv(1) == b""
        assert running.process.wait(TIMEOUT_S) == 0


def test_a_second_signal_cuts_what_is_open(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("[server]\n", "[server]\ndrain_s = 300\n"))
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            for number in range(40):
                client.request("create_key", *slow_key(f"alias/cut-{number}"), budget_ms=60_000)
            running.process.send_signal(signal.SIGTERM)
            while not isinstance(client.receive(), Goaway):
                pass
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(TIMEOUT_S) == 0


def test_a_stop_cuts_what_takes_longer_than_it_may(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("[server]\n", "[server]\ndrain_s = 0.2\n"))
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            for number in range(40):
                client.request("create_key", *slow_key(f"alias/cut-{number}"), budget_ms=60_000)
            assert running.stop() == 0
