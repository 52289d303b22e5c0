"""Both clients against gateways that follow a script: what is sent again, where, what is told."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

import hsmux
from hsmux_protocol import errors
from hsmux_protocol.columns import column_count
from hsmux_protocol.frames import Cancel, Error, Goaway, Hello, Ping, Pong, Request, Result
from tests.client.conftest import connected
from tests.client.peer import (
    Certificates,
    Conversation,
    error_frame,
    greet_and_serve,
    scripted_gateway,
)

PATIENCE_S = 60


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Call from several threads at a time; what each returned or raised."""
    outcomes: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            outcomes[number] = work(number)
        except BaseException as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.parametrize("order", ["as they came", "reversed"])
def test_answers_in_any_order_find_their_callers(
    certificates: Certificates, kind: str, order: str
) -> None:
    count = 12

    def script(conversation: Conversation) -> None:
        conversation.greet()
        while True:
            requests = [conversation.request() for _ in range(count)]
            for request in reversed(requests) if order == "reversed" else requests:
                conversation.answer(request)

    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            for _ in range(5):
                answers = together(count, lambda n: client.generate_random(n + 1))
                assert [len(answer) for answer in answers] == list(range(1, count + 1))


def test_after_goaway_new_requests_go_elsewhere_and_open_ones_are_answered(
    certificates: Certificates, kind: str
) -> None:
    first_is_open = threading.Event()

    def script(conversation: Conversation) -> None:
        conversation.greet()
        if conversation.number:
            conversation.serve()
        request = conversation.request()
        conversation.send(Goaway(0, "going"), Ping(5))
        assert conversation.receive() == Pong(5)
        first_is_open.set()
        # Nothing new comes here before the other connection has answered.
        elsewhere.wait(PATIENCE_S)
        conversation.answer(request)
        with pytest.raises(EOFError):
            conversation.receive()

    elsewhere = threading.Event()
    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:

            def work(number: int) -> Any:
                if number == 0:
                    return client.generate_random(1, timeout_s=PATIENCE_S)
                first_is_open.wait(PATIENCE_S)
                answer = client.generate_random(2, timeout_s=PATIENCE_S)
                elsewhere.set()
                return answer

            assert together(2, work) == [b"r", b"rr"]
            assert client.generate_random(3) == b"rrr"


def test_a_gateway_that_leaves_for_a_while_is_passed_over(
    certificates: Certificates, kind: str
) -> None:
    served: list[str] = []

    def leaving(conversation: Conversation) -> None:
        served.append("leaving")
        conversation.greet()
        conversation.answer(conversation.request())
        conversation.send(Goaway(PATIENCE_S * 1000, "an hour off"))
        # A request that crosses the word is answered still.
        conversation.serve()

    def staying(conversation: Conversation) -> None:
        served.append("staying")
        greet_and_serve(conversation)

    with (
        scripted_gateway(certificates, leaving) as one,
        scripted_gateway(certificates, staying) as other,
    ):
        with connected(kind, **certificates.arguments(one, other)) as client:
            for _ in range(5):
                assert client.generate_random(1, timeout_s=PATIENCE_S) == b"r"
    assert served in (["leaving", "staying"], ["staying"])
    with scripted_gateway(certificates, leaving) as one:
        with connected(kind, **certificates.arguments(one)) as client:
            assert client.generate_random(1) == b"r"
            with pytest.raises(hsmux.Unavailable, match="stopping"):
                while True:
                    client.generate_random(1, timeout_s=5)


def test_a_gateway_that_stops_reading_until_its_answers_are_read(
    certificates: Certificates, kind: str
) -> None:
    """Both directions are full at the same time; whoever only sends would wait for ever."""
    count, size = 40, 60_000

    def script(conversation: Conversation) -> None:
        conversation.greet()
        requests = [conversation.request() for _ in range(count // 2)]
        for _ in range(count // 2):
            conversation.answer(requests.pop())
        conversation.serve()

    with scripted_gateway(certificates, script, buffer_size=8192) as address:
        with connected(kind, **certificates.arguments(address)) as client:

            def work(number: int) -> bytes:
                made = client.encrypt("alias/a", bytes([number]) * size, timeout_s=PATIENCE_S)
                ciphertext: bytes = made.ciphertext
                return ciphertext

            assert together(count, work) == [bytes([n]) * size for n in range(count)]


def test_no_more_requests_are_open_than_were_announced(
    certificates: Certificates, kind: str
) -> None:
    most = 0

    def script(conversation: Conversation) -> None:
        nonlocal most
        conversation.greet(pipeline_max=3)
        while True:
            request = conversation.request()
            # A fourth one would lie in the socket by the time this comes back.
            conversation.send(Ping(1))
            waiting = [request]
            while not isinstance(frame := conversation.receive(), Pong):
                assert isinstance(frame, Request)
                waiting.append(frame)
            most = max(most, len(conversation.peer.protocol.open_ids))
            for each in waiting:
                conversation.answer(each)

    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            answers = together(30, lambda n: client.generate_random(n + 1, timeout_s=PATIENCE_S))
            assert [len(answer) for answer in answers] == list(range(1, 31))
    assert 1 <= most <= 3


CUTS: dict[str, Callable[[Conversation, Request], None]] = {
    "no answer": lambda conversation, request: None,
    "half an answer": lambda conversation, request: half(conversation, request),
    "close_notify": lambda conversation, request: say_goodbye(conversation),
    "an error of the connection": lambda conversation, request: conversation.send(
        error_frame(0, errors.Unavailable("the store is away"))
    ),
    "nonsense": lambda conversation, request: nonsense(conversation),
    "an answer of another operation": lambda conversation, request: conversation.send(
        Result(request.id, ["what"])
    ),
}


def half(conversation: Conversation, request: Request) -> None:
    """The beginning of the TLS record of an answer."""
    conversation.peer.send(Result(request.id, [b"r"]))
    data = conversation.peer.take_outgoing()
    conversation.socket.sendall(data[: len(data) // 2])


def say_goodbye(conversation: Conversation) -> None:
    """The end of TLS without an answer."""
    conversation.peer.close_notify()
    conversation.flush()


def nonsense(conversation: Conversation) -> None:
    """Encrypted bytes that are no frame."""
    conversation.peer.write(b"\xff" * 100)
    conversation.flush()


@pytest.mark.parametrize("cut", CUTS)
def test_a_lost_request_is_done_again_and_a_change_only_under_its_token(
    certificates: Certificates, kind: str, cut: str
) -> None:
    requests: list[Request] = []

    def script(conversation: Conversation) -> None:
        conversation.greet()
        request = conversation.request()
        requests.append(request)
        if len(requests) % 3 == 0:
            conversation.answer(request)
            conversation.serve()
        CUTS[cut](conversation, request)

    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            assert client.generate_random(1, timeout_s=PATIENCE_S) == b"r"
        with connected(kind, **certificates.arguments(address)) as client:
            made = client.create_access_point("a", description="b", timeout_s=PATIENCE_S)
            assert (made.name, made.description) == ("a", "b")
    read, changed = requests[:3], requests[3:]
    assert [request.arguments for request in read] == [[1]] * 3
    assert [request.options for request in read] == [{}] * 3
    assert len({repr(request.options) for request in changed}) == 1
    assert [request.arguments for request in changed] == [["a", "b", [], [], None]] * 3
    assert len(changed[0].options["idempotency_token"]) == 16


def test_nothing_is_sent_after_the_deadline(certificates: Certificates, kind: str) -> None:
    requests: list[Request] = []
    cancelled: list[int] = []

    def script(conversation: Conversation) -> None:
        conversation.greet()
        requests.append(conversation.request())
        frame = conversation.receive()
        assert isinstance(frame, Cancel)
        cancelled.append(frame.id)
        conversation.send(error_frame(frame.id, errors.Cancelled("cancelled")))
        conversation.serve()

    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            with pytest.raises(hsmux.DeadlineExceeded, match="generate_random"):
                client.generate_random(1, timeout_s=0.2)
            assert requests[0].budget_ms <= 200
            # The connection goes on: the gateway has answered the cancelled request.
            assert client.generate_random(2, timeout_s=PATIENCE_S) == b"rr"
        with connected(kind, **certificates.arguments(address)) as client:
            with pytest.raises(hsmux.OutcomeUnknown, match="same idempotency_token"):
                client.create_access_point("a", timeout_s=0.2)
            assert client.generate_random(2, timeout_s=PATIENCE_S) == b"rr"
            with pytest.raises(hsmux.DeadlineExceeded):
                client.generate_random(1, timeout_s=0)
            with pytest.raises(hsmux.DeadlineExceeded):
                client.create_access_point("a", timeout_s=-1)
    assert len(requests) == len(cancelled) == 2


def test_what_is_refused_for_now_is_tried_again(certificates: Certificates, kind: str) -> None:
    refusals = iter([errors.Busy("full", retry_after_ms=1), errors.Unavailable("away")] * 2)

    def script(conversation: Conversation) -> None:
        conversation.greet()
        while True:
            request = conversation.request()
            refusal = next(refusals, None)
            if refusal is None:
                conversation.answer(request)
            else:
                conversation.send(error_frame(request.id, refusal))

    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            assert client.generate_random(1, timeout_s=PATIENCE_S) == b"r"
            assert next(refusals, None) is None


def test_a_change_that_was_lost_and_then_refused_for_now_is_unknown(
    certificates: Certificates, kind: str
) -> None:
    def script(conversation: Conversation) -> None:
        conversation.greet()
        request = conversation.request()
        if conversation.number:
            refusal = errors.Busy("full", retry_after_ms=PATIENCE_S * 1000)
            conversation.send(error_frame(request.id, refusal))
            conversation.wait_for_end()

    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            with pytest.raises(hsmux.OutcomeUnknown):
                client.create_access_point("a", timeout_s=10)


@pytest.mark.parametrize(
    "kind_of_error",
    [errors.Busy, errors.Unavailable, errors.Unauthenticated, errors.ProtocolError],
)
def test_a_gateway_that_refuses_the_connection_is_passed_over_or_told(
    certificates: Certificates, kind: str, kind_of_error: type[errors.HsmuxError]
) -> None:
    def refusing(conversation: Conversation) -> None:
        assert isinstance(conversation.receive(), Hello)
        refusal = error_frame(0, kind_of_error("not here", reference="r-9"))
        conversation.peer.write(conversation.peer.protocol.farewell(refusal))
        conversation.flush()

    with (
        scripted_gateway(certificates, refusing) as one,
        scripted_gateway(certificates, greet_and_serve) as other,
    ):
        for _ in range(3):
            with connected(kind, **certificates.arguments(one, other)) as client:
                assert client.generate_random(1) == b"r"
        with pytest.raises(kind_of_error, match="not here") as caught:
            with connected(kind, **certificates.arguments(one)):
                pass
        assert caught.value.reference == "r-9"


def test_a_refused_connection_of_a_client_is_tried_again_if_it_may_be(
    certificates: Certificates, kind: str
) -> None:
    def script(conversation: Conversation) -> None:
        if conversation.number in (1, 2):
            assert isinstance(conversation.receive(), Hello)
            refusal = error_frame(0, errors.Busy("too many connections", retry_after_ms=1))
            conversation.peer.write(conversation.peer.protocol.farewell(refusal))
            conversation.flush()
            return
        conversation.greet()
        conversation.answer(conversation.request())

    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            assert client.generate_random(1) == b"r"
            assert client.generate_random(2, timeout_s=PATIENCE_S) == b"rr"


def test_no_answer_to_hello_is_told_in_time(certificates: Certificates, kind: str) -> None:
    def script(conversation: Conversation) -> None:
        assert isinstance(conversation.receive(), Hello)
        conversation.wait_for_end()

    with scripted_gateway(certificates, script) as address:
        with pytest.raises(hsmux.Unavailable, match="did not answer in time; check that"):
            with connected(kind, **certificates.arguments(address, timeout_s=0.3)):
                pass


def test_errors_of_a_later_version_have_a_type(certificates: Certificates, kind: str) -> None:
    def script(conversation: Conversation) -> None:
        conversation.greet()
        request = conversation.request()
        conversation.send(Error(request.id, 4711, "new", True, None, "later news", "r-1"))
        conversation.serve()

    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            with pytest.raises(hsmux.InternalError, match="4711: later news"):
                client.generate_random(1)
            assert client.generate_random(1) == b"r"


def test_a_batch_that_is_lost_is_done_again_alone(certificates: Certificates, kind: str) -> None:
    """Of five batches in the window the connection takes two away."""
    asked: list[int] = []

    def script(conversation: Conversation) -> None:
        conversation.greet()
        while True:
            request = conversation.request()
            asked.append(column_count(request.arguments[3]))
            if conversation.number == 0 and len(asked) == 3:
                return
            conversation.answer(request)

    items = [bytes([n]) * 60_000 for n in range(20)]
    with scripted_gateway(certificates, script) as address:
        with connected(kind, **certificates.arguments(address)) as client:
            sealed = client.encrypt_many("alias/a", items, timeout_s=PATIENCE_S)
    assert [one.ciphertext for one in sealed] == items
    assert set(asked) == {4} and 6 <= len(asked) <= 9
