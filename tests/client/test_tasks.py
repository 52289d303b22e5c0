"""The Trio client under tasks: turns at the socket, cancellation at every await, closing."""

import gc
import itertools
import os
import random
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import hsmux
from hsmux.trio_client import TrioClient
from hsmux_protocol import errors
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
from tests.client.test_threads import Answers

PATIENCE_S = 60


class Asking:
    """A task that asks for so many random bytes."""

    def __init__(
        self,
        nursery: trio.Nursery,
        client: TrioClient,
        length: int,
        timeout_s: float = PATIENCE_S,
    ) -> None:
        self.outcome: Any = None
        self.scope = trio.CancelScope()
        self._done = trio.Event()
        nursery.start_soon(self._run, client, length, timeout_s)

    async def _run(self, client: TrioClient, length: int, timeout_s: float) -> None:
        try:
            with self.scope:
                self.outcome = await client.generate_random(length, timeout_s=timeout_s)
        except hsmux.HsmuxError as error:
            self.outcome = error
        self._done.set()

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    async def join(self) -> Any:
        """Its outcome; fails rather than hangs."""
        with trio.fail_after(PATIENCE_S / 2):
            await self._done.wait()
        return self.outcome


async def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for others; fails rather than hangs."""
    with trio.fail_after(PATIENCE_S / 2):
        # What is waited for happens in a thread or in the client, which tell nobody.
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(0.002)


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
async def test_whoever_is_answered_hands_the_socket_on(
    certificates: Certificates, order: tuple[int, ...]
) -> None:
    answers = Answers(3)
    with scripted_gateway(certificates, answers) as address:
        async with (
            TrioClient.connect(**certificates.arguments(address)) as client,
            trio.open_nursery() as nursery,
        ):
            tasks = []
            for length in (1, 2, 3):
                tasks.append(Asking(nursery, client, length))
                await trio.testing.wait_all_tasks_blocked()
            for place, length in enumerate(order):
                answers.tell(length)
                assert await tasks[length - 1].join() == b"r" * length
                assert sum(not task.is_done for task in tasks) == 2 - place
            assert await client.generate_random(4) == b"rrrr"


@pytest.mark.parametrize("end", ["cancelled", "late"])
async def test_a_pump_that_gives_up_hands_the_socket_on(
    certificates: Certificates, end: str
) -> None:
    answers = Answers(3)
    with scripted_gateway(certificates, answers) as address:
        async with (
            TrioClient.connect(**certificates.arguments(address)) as client,
            trio.open_nursery() as nursery,
        ):
            link = client._link
            pump = Asking(nursery, client, 1, timeout_s=0.3 if end == "late" else PATIENCE_S)
            await trio.testing.wait_all_tasks_blocked()
            others = [Asking(nursery, client, length) for length in (2, 3)]
            await trio.testing.wait_all_tasks_blocked()
            if end == "cancelled":
                pump.scope.cancel()
                assert await pump.join() is None
            else:
                assert isinstance(await pump.join(), hsmux.DeadlineExceeded)
            assert not any(task.is_done for task in others)
            for length in (3, 1, 2):
                answers.tell(length)
            assert [await task.join() for task in others] == [b"rr", b"rrr"]
            assert await client.generate_random(4) == b"rrrr" and client._link is link


async def test_one_that_gives_up_on_a_silent_gateway_wakes_the_others(
    certificates: Certificates,
) -> None:
    def script(conversation: Conversation) -> None:
        conversation.greet()
        if conversation.number:
            conversation.serve()
        conversation.wait_for_end()

    with scripted_gateway(certificates, script) as address:
        async with (
            TrioClient.connect(**certificates.arguments(address)) as client,
            trio.open_nursery() as nursery,
        ):
            first = client._link
            pump = Asking(nursery, client, 2)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(hsmux.DeadlineExceeded):
                await client.generate_random(1, timeout_s=0.8)
            assert await pump.join() == b"rr"
            assert first is not None and first.is_closed


async def test_a_cancelled_request_of_a_slow_gateway_costs_nobody_the_connection(
    certificates: Certificates,
) -> None:
    """Silence is suspicious only when a request has had its time."""
    answers = Answers(2)
    with scripted_gateway(certificates, answers) as address:
        async with (
            TrioClient.connect(**certificates.arguments(address)) as client,
            trio.open_nursery() as nursery,
        ):
            first = client._link
            slow = Asking(nursery, client, 1)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(1.2):
                await client.generate_random(2, timeout_s=PATIENCE_S)
            answers.tell(2)
            answers.tell(1)
            assert await slow.join() == b"r" and client._link is first


@pytest.mark.parametrize("pipeline_max", [1, 5, 1024])
async def test_chaos_loses_no_answer(certificates: Certificates, pipeline_max: int) -> None:
    done = 0

    async def work(number: int) -> None:
        nonlocal done
        chance = random.Random(1000 + number)
        for _ in range(60):
            length = chance.randint(1, 200)
            with trio.CancelScope() as scope:
                if chance.random() < 0.1:
                    scope.deadline = trio.current_time() + chance.random() * 0.01
                answer = await client.generate_random(length, timeout_s=PATIENCE_S)
                assert len(answer) == length
                done += 1

    with scripted_gateway(certificates, chaos(pipeline_max)) as address:
        async with TrioClient.connect(**certificates.arguments(address)) as client:
            async with trio.open_nursery() as nursery:
                for number in range(24):
                    nursery.start_soon(work, number)
            assert done > 24 * 40
            assert client._link is not None and client._link.link.is_idle
            assert not client._link._waiting and not client._link._wanting_room


class CancelAfterStep(trio.abc.Instrument):
    """Cancels a scope when its task has made so many steps and waits for something.

    Attributes:
        left: Steps until then; positive if the task ended before.
    """

    def __init__(self, scope: trio.CancelScope, left: int) -> None:
        self._scope, self._task = scope, trio.lowlevel.current_task()
        self.left = left

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.left -= 1
            if self.left == 0:
                self._scope.cancel()


async def is_cancelled_after(steps: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Do some work and cancel it behind its n-th await; False when it was done before."""
    with trio.CancelScope() as scope:
        instrument = CancelAfterStep(scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            await work()
        except BaseException as error:
            # Never in a group: a caller who cleans up looks for the plain exception.
            assert type(error) is trio.Cancelled
            raise
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.left <= 0


@pytest.mark.parametrize(
    ("script", "beside"),
    [(greet_and_serve, 0), (greet_and_serve, 3), (serve_one, 0), (serve_few, 3)],
)
async def test_a_cancellation_at_any_await_leaves_a_usable_client(
    certificates: Certificates, script: Callable[[Conversation], None], beside: int
) -> None:
    stop = trio.Event()

    async def keep_asking() -> None:
        while not stop.is_set():
            assert len(await client.generate_random(7, timeout_s=PATIENCE_S)) == 7

    async def ask() -> None:
        assert await client.generate_random(3, timeout_s=PATIENCE_S) == b"rrr"

    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    rounds = 0
    with scripted_gateway(certificates, script) as address:
        async with TrioClient.connect(**certificates.arguments(address)) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(beside):
                    nursery.start_soon(keep_asking)
                for steps in itertools.count(1):
                    if not await is_cancelled_after(steps, ask):
                        break
                    rounds += 1
                    await ask()
                stop.set()
            assert client._link is not None and client._link.link.is_idle
            if script is greet_and_serve:
                await ask()
                # Answers come in order here: that to the last cancelled request has come, too.
                assert not client._link.link.is_owed
    assert rounds >= (4 if script is serve_one else 1)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("size", [1, 60_000])
async def test_batches_are_cancelled_whole(certificates: Certificates, size: int) -> None:
    """At every await of `encrypt_many`, while the socket is full too; nothing stays open."""
    may_read = threading.Event()

    def script(conversation: Conversation) -> None:
        conversation.greet()
        may_read.wait(PATIENCE_S)
        conversation.serve()

    items = [bytes(size)] * 20

    with scripted_gateway(certificates, script, buffer_size=8192) as address:
        async with TrioClient.connect(**certificates.arguments(address)) as client:
            assert client._link is not None
            link, wire = client._link.link, client._link._wire
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)

            async def encrypt() -> None:
                sealed = await client.encrypt_many("alias/a", items, timeout_s=PATIENCE_S)
                made = [each.ciphertext for each in sealed if isinstance(each, hsmux.Encrypted)]
                assert made == items

            for steps in (1, 2, 2):
                assert await is_cancelled_after(steps, encrypt)
                assert link.is_idle
            assert wire.has_unsent == (size > 1) and link.is_owed
            may_read.set()
            await encrypt()
            assert client._link.link is link and not link.is_owed


async def test_closing_ends_whoever_waits_connects_or_pauses(certificates: Certificates) -> None:
    def script(conversation: Conversation) -> None:
        if conversation.number:
            conversation.wait_for_end()
        conversation.greet()
        busy = errors.Busy("full", retry_after_ms=PATIENCE_S * 500)
        conversation.send(error_frame(conversation.request().id, busy))

    with scripted_gateway(certificates, script) as address:
        client = TrioClient.connect(**certificates.arguments(address, timeout_s=PATIENCE_S))
        async with client, trio.open_nursery() as nursery:
            pausing = Asking(nursery, client, 1)
            assert client._link is not None
            link = client._link.link
            await wait_until(lambda: link.is_idle and not link.is_owed)
            connecting = [Asking(nursery, client, 2), Asking(nursery, client, 3)]
            await wait_until(lambda: client._opening is not None)
            client.close()
            for task in (pausing, *connecting):
                outcome = await task.join()
                assert isinstance(outcome, hsmux.Unavailable)
        assert "was closed" in str(connecting[0].outcome)
        assert client._opening is None and client._link is None and repr(client).endswith("closed)")
        with pytest.raises(hsmux.Unavailable, match="was closed"):
            await client.status()
        with pytest.raises(hsmux.Unavailable, match="was closed"):
            async with client:
                pass


async def test_closing_tells_whoever_waits(certificates: Certificates) -> None:
    with scripted_gateway(certificates, Answers(9)) as address:
        async with TrioClient.connect(**certificates.arguments(address)) as client:
            async with trio.open_nursery() as nursery:
                tasks = [Asking(nursery, client, length) for length in range(1, 5)]
                await trio.testing.wait_all_tasks_blocked()
                client.close()
                outcomes = [await task.join() for task in tasks]
            assert {type(outcome) for outcome in outcomes} == {hsmux.Unavailable}


def test_an_interrupt_comes_as_it_is_and_leaves_a_usable_client(
    certificates: Certificates,
) -> None:
    """Ctrl-C while a request waits, alone, beside others, and with a full socket."""
    assert threading.current_thread() is threading.main_thread()
    interrupted = 0

    def script(conversation: Conversation) -> None:
        conversation.greet()
        while True:
            request = conversation.request()
            if request.arguments in ([1], ["alias/a", {}, b"x"]):
                identifier = threading.main_thread().ident
                assert identifier is not None
                signal.pthread_kill(identifier, signal.SIGINT)
            else:
                conversation.answer(request)

    async def main(address: str) -> None:
        nonlocal interrupted
        async with TrioClient.connect(**certificates.arguments(address)) as client:
            for work in (
                lambda: client.generate_random(1, timeout_s=PATIENCE_S),
                lambda: client.encrypt("alias/a", b"x", timeout_s=PATIENCE_S),
            ):
                try:
                    await work()
                except KeyboardInterrupt:
                    interrupted += 1
                assert await client.generate_random(2, timeout_s=PATIENCE_S) == b"rr"

    with scripted_gateway(certificates, script) as address:
        trio.run(main, address)
    assert interrupted == 2


def test_a_client_is_made_outside_of_a_loop(certificates: Certificates) -> None:
    async def use(client: TrioClient) -> bytes:
        async with client:
            return await client.generate_random(2)

    with scripted_gateway(certificates, greet_and_serve) as address:
        client = TrioClient.connect(**certificates.arguments(address))
        assert "127.0.0.1" in repr(client)
        assert trio.run(use, client) == b"rr"
