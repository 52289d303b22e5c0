"""The blocking client under threads: turns at the socket, closing, interruptions."""

import dis
import gc
import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import hsmux
from hsmux import Client
from hsmux_protocol import errors
from hsmux_protocol.frames import Goaway, Request
from tests.client.peer import (
    Certificates,
    Conversation,
    chaos,
    error_frame,
    greet_and_serve,
    scripted_gateway,
    serve_few,
    serve_one,
)
from tests.client.test_scripts import together

PATIENCE_S = 60
PACKAGE = str(Path(hsmux.__file__).parent)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for another thread; fails rather than hangs."""
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


class Asking(threading.Thread):
    """A thread that asks for so many random bytes."""

    def __init__(self, client: Client, length: int, timeout_s: float = PATIENCE_S) -> None:
        super().__init__()
        self._work = partial(client.generate_random, length, timeout_s=timeout_s)
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._work()
        except hsmux.HsmuxError as error:
            self.outcome = error


class Answers:
    """A script that answers what it is told to, by the length that was asked for."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._told = threading.Semaphore(0)
        self._order: list[int] = []

    def tell(self, length: int) -> None:
        """Answer this one now."""
        self._order.append(length)
        self._told.release()

    def __call__(self, conversation: Conversation) -> None:
        conversation.greet()
        requests: dict[int, Request] = {}
        while len(requests) < self._count:
            request = conversation.request()
            requests[request.arguments[0]] = request
        while requests:
            assert self._told.acquire(timeout=PATIENCE_S)
            conversation.answer(requests.pop(self._order.pop(0)))
        conversation.serve()


def start_in_line(client: Client, count: int) -> list[Asking]:
    """Threads that wait for 1, 2, ... bytes: the first is the pump, the others stand behind it."""
    threads = [Asking(client, 1)]
    assert client._link is not None
    link = client._link
    wait_until(lambda: link._has_pump)
    for length in range(2, count + 1):
        threads.append(Asking(client, length))
        wait_until(lambda length=length: len(link._waiting) == length - 1)  # type: ignore[misc]
    return threads


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_whoever_is_answered_hands_the_socket_on(
    certificates: Certificates, order: tuple[int, ...]
) -> None:
    answers = Answers(3)
    with scripted_gateway(certificates, answers) as address:
        with Client.connect(**certificates.arguments(address)) as client:
            threads = start_in_line(client, 3)
            for place, length in enumerate(order):
                answers.tell(length)
                threads[length - 1].join()
                assert threads[length - 1].outcome == b"r" * length
                waiting = [t for t in threads if t.is_alive()]
                assert len(waiting) == 2 - place
            assert client.generate_random(4) == b"rrrr"


def test_a_pump_whose_time_is_up_hands_the_socket_on(certificates: Certificates) -> None:
    answers = Answers(3)
    with scripted_gateway(certificates, answers) as address:
        with Client.connect(**certificates.arguments(address)) as client:
            assert client._link is not None
            link = client._link
            late = Asking(client, 1, timeout_s=0.3)
            wait_until(lambda: link._has_pump)
            others = [Asking(client, 2), Asking(client, 3)]
            late.join()
            assert isinstance(late.outcome, hsmux.DeadlineExceeded)
            assert all(thread.is_alive() for thread in others)
            for length in (3, 1, 2):
                answers.tell(length)
            for thread in others:
                thread.join()
            assert [thread.outcome for thread in others] == [b"rr", b"rrr"]
            # The late answer came, and nobody minded.
            assert client.generate_random(4) == b"rrrr" and client._link is link


def test_one_that_gives_up_on_a_silent_gateway_wakes_the_others(
    certificates: Certificates,
) -> None:
    """The one with little time finds out; the pump, with much time, asks the next connection."""

    def script(conversation: Conversation) -> None:
        conversation.greet()
        if conversation.number:
            conversation.serve()
        conversation.wait_for_end()

    with scripted_gateway(certificates, script) as address:
        with Client.connect(**certificates.arguments(address)) as client:
            assert client._link is not None
            link = client._link
            pump = Asking(client, 2)
            wait_until(lambda: link._has_pump)
            with pytest.raises(hsmux.DeadlineExceeded):
                client.generate_random(1, timeout_s=0.8)
            pump.join()
            assert pump.outcome == b"rr" and link.is_closed


@pytest.mark.parametrize("pipeline_max", [1, 5, 1024])
def test_chaos_loses_no_answer(certificates: Certificates, pipeline_max: int) -> None:
    """Answers in random order and bursts, cancelled requests, GOAWAY and connections that end."""

    def work(number: int) -> int:
        chance, done = random.Random(1000 + number), 0
        for _ in range(60):
            length = chance.randint(1, 200)
            try:
                timeout_s = 0.001 if chance.random() < 0.02 else PATIENCE_S
                assert len(client.generate_random(length, timeout_s=timeout_s)) == length
                done += 1
            except (hsmux.DeadlineExceeded, hsmux.Unavailable):
                assert timeout_s < 1
        return done

    with scripted_gateway(certificates, chaos(pipeline_max)) as address:
        with Client.connect(**certificates.arguments(address)) as client:
            outcomes = together(24, work)
            assert [o for o in outcomes if not isinstance(o, int) or o <= 40] == []
            assert client._link is not None and client._link.link.is_idle
            assert not client._link._waiting and not client._link._wanting_room


def test_closing_does_not_wait_for_one_who_connects(certificates: Certificates) -> None:
    def script(conversation: Conversation) -> None:
        if conversation.number == 0:
            conversation.greet()
            return
        conversation.wait_for_end()

    with scripted_gateway(certificates, script) as address:
        client = Client.connect(**certificates.arguments(address, timeout_s=PATIENCE_S))
        threads = [Asking(client, 1) for _ in range(3)]
        wait_until(lambda: client._opening is not None and len(client._waiting) == 2)
        client.close()
        for thread in threads:
            thread.join(PATIENCE_S / 4)
            assert isinstance(thread.outcome, hsmux.Unavailable)
            assert "was closed; make a new one" in str(thread.outcome)
        assert client._opening is None and repr(client).endswith("closed)")


def test_closing_wakes_one_who_pauses(certificates: Certificates) -> None:
    def script(conversation: Conversation) -> None:
        conversation.greet()
        busy = errors.Busy("full", retry_after_ms=PATIENCE_S * 500)
        conversation.send(error_frame(conversation.request().id, busy))
        conversation.wait_for_end()

    with scripted_gateway(certificates, script) as address:
        client = Client.connect(**certificates.arguments(address))
        thread = Asking(client, 1)
        wait_until(lambda: bool(client._pausing))
        client.close()
        thread.join(PATIENCE_S / 4)
        assert isinstance(thread.outcome, hsmux.Unavailable)


def test_closing_ends_connections_that_are_leaving(certificates: Certificates) -> None:
    def script(conversation: Conversation) -> None:
        conversation.greet()
        if conversation.number:
            conversation.serve()
        conversation.request()
        conversation.send(Goaway(0, "going"))
        conversation.wait_for_end()

    with scripted_gateway(certificates, script) as address:
        client = Client.connect(**certificates.arguments(address))
        assert client._link is not None
        first = client._link
        thread = Asking(client, 1)
        wait_until(lambda: first.link.goaway is not None)
        assert client.generate_random(2) == b"rr"
        assert client._link is not first and not first.is_closed
        client.close()
        thread.join(PATIENCE_S / 4)
        assert isinstance(thread.outcome, hsmux.Unavailable)
        assert first.is_closed and client._link is not None and client._link.is_closed


@cache
def places(code: CodeType) -> frozenset[int]:
    """Instructions of a function before which a signal can be seen: those that follow a call.

    The interpreter raises in the call itself, so the two must have the same handler.
    """
    bytecode = dis.Bytecode(code)

    entries = bytecode.exception_entries  # type: ignore[attr-defined]

    def handler(offset: int) -> int | None:
        found = [each.target for each in entries if each.start <= offset < each.end]
        return found[0] if found else None

    pairs = itertools.pairwise(bytecode)
    calls = [pair for pair in pairs if pair[0].opname in ("CALL", "CALL_FUNCTION_EX")]
    return frozenset(
        following.offset
        for call, following in calls
        if handler(call.offset) == handler(following.offset)
    )


class Interruption:
    """A KeyboardInterrupt at the n-th place of our package that this thread comes to.

    Attributes:
        where: The place, once it was there.
    """

    def __init__(self, number: int) -> None:
        self._left = number
        self.where = ""

    def __enter__(self) -> "Interruption":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *details: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE) or self.where:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "call" or (event == "opcode" and frame.f_lasti in places(frame.f_code)):
            self._left -= 1
            if self._left == 0:
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._trace


# What is interrupted in a destructor is told nobody; what has no owner yet is closed by one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("script", "beside", "stride"),
    [
        pytest.param(greet_and_serve, 0, 4, id="request"),
        pytest.param(greet_and_serve, 2, 4, id="request-beside-others"),
        pytest.param(serve_one, 0, 17, id="connecting"),
        pytest.param(serve_few, 2, 17, id="connecting-beside-others"),
        *(
            pytest.param(script, beside, 1, marks=pytest.mark.long)
            for script, beside in (
                (greet_and_serve, 0),
                (greet_and_serve, 2),
                (serve_one, 0),
                (serve_few, 2),
            )
        ),
    ],
)
def test_an_interruption_anywhere_leaves_a_usable_client(
    certificates: Certificates, script: Callable[[Conversation], None], beside: int, stride: int
) -> None:
    """KeyboardInterrupt at every place of a request in turn, alone and beside other threads."""
    interrupted: list[str] = []
    stop = threading.Event()

    def keep_asking(number: int) -> int:
        done = 0
        while not stop.is_set():
            assert len(client.generate_random(7, timeout_s=PATIENCE_S)) == 7
            done += 1
        return done

    def interrupt_everywhere() -> None:
        for number in itertools.count(1, stride):
            interruption = Interruption(number)
            try:
                with interruption:
                    assert client.generate_random(3, timeout_s=PATIENCE_S) == b"rrr"
            except KeyboardInterrupt:
                interrupted.append(interruption.where)
            if not interruption.where:
                return
            assert client.generate_random(5, timeout_s=PATIENCE_S) == b"rrrrr"

    def work(number: int) -> Any:
        if number:
            return keep_asking(number)
        try:
            return interrupt_everywhere()
        finally:
            stop.set()

    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    with scripted_gateway(certificates, script) as address:
        with Client.connect(**certificates.arguments(address)) as client:
            outcomes = together(1 + beside, work)
        assert outcomes[0] is None and all(isinstance(done, int) for done in outcomes[1:])
    hit = {where.partition(":")[0] for where in interrupted}
    assert len(hit) > 10
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
