"""The supervisor: performs what `pool_state` decides, with real processes and sockets.

Every worker has one task here. It starts the process, asks `pin` whether anybody may log in, tells
the worker to, and then turns its messages into events. All decisions come from `PoolState`; this
module only acts on them, in one thread and without awaiting in between, so no lock is needed.

What goes wrong with one worker, be it that it says nonsense or that its process cannot be started,
is the end of that worker and an event like any other.
"""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from hsmux_native import NativeError
from hsmux_protocol.columns import unpack_column
from hsmux_protocol.errors import RemoteProtocolError

from ..errors import in_words
from ..logs import structlog
from .decisions import Decision, Deliver, Finish, HangUp, Kill, Send
from .errors import PinRefused, TokenError, TokenMisconfigured, TokenUnavailable
from .jobs import Column, Job, Message, Request
from .messages import Answer, MessageError
from .pin import PinMarks
from .pool_state import START_TIMEOUT_S, PoolState
from .requests import PageRequest, PoolRequest
from .sessions import plan_sessions
from .settings import TokenSettings
from .token import TokenStatistics
from .worker_process import WorkerProcess, end_in_words

__all__ = ["Supervisor"]

log = structlog.get_logger("hsmux.hsm")

END_PATIENCE_S: Final = 0.5
"""Seconds a worker has to end by itself before it is killed."""

_START_ERRORS: Final[dict[str, type[TokenError]]] = {"operator": TokenMisconfigured}
"""By the kind of a failure to start that somebody has to mend; all others may be over later."""

_FACTS: Final = ("manufacturer", "model", "serial", "flags", "sessions_max")


class Supervisor:
    """The workers of one token.

    Args:
        settings: How to reach it.
        directory: Where PIN marks and copies of token files are kept.
        nursery: Where the workers' tasks run.

    Attributes:
        name: The token's.
        facts: What the token says of itself; filled by the first worker.
    """

    def __init__(self, settings: TokenSettings, directory: Path, nursery: trio.Nursery) -> None:
        self.name = settings.name
        self.facts: dict[str, Any] = {}
        self._settings = settings
        self._directory = directory
        self._nursery = nursery
        self._marks = PinMarks(directory, settings.name)
        self._state = PoolState(
            settings.workers,
            settings.queue_items_max,
            keep_alive_s=settings.keep_alive_s,
            age_s=settings.age_s,
        )
        self._processes: dict[int, WorkerProcess] = {}
        self._wake = trio.Event()
        self._wake_at = 0.0
        self._first_outcome = trio.Event()
        self._worker_ended = trio.Event()
        self._start_error: TokenError | None = None
        self._logins = 0
        self._failed_logins = 0

    def __repr__(self) -> str:
        return f"Supervisor({self.name}, {self._state!r}, epoch {self._logins})"

    def statistics(self) -> TokenStatistics:
        """How it fares now."""
        state = self._state
        return TokenStatistics(
            name=self.name,
            workers=state.ready,
            workers_max=state.limit,
            busy=state.busy,
            starting=state.starting,
            waiting=state.waiting,
            login_epoch=self._logins,
            breaker=state.breaker,
            restarts=state.restarts,
            failed_logins=self._failed_logins,
            quarantined=state.quarantined,
        )

    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes.values()]

    # Callers

    def submit(self, job: Job) -> None:
        """A caller wants a job done."""
        self._perform(self._state.submit(job, time.monotonic()))

    def cancel(self, request: Request) -> None:
        """Nobody waits for a request any more."""
        self._perform(self._state.cancel(request, time.monotonic()))

    def broadcast(self, make: Callable[[], Job]) -> None:
        """Send a job of its own to every worker that is logged in."""
        self._perform(self._state.broadcast(make, time.monotonic()))

    def silence(self, request: Request) -> None:
        """Kill every worker that still owes an answer to a request."""
        self._perform(self._state.silence(request))

    # Life

    async def start(self) -> TokenError | None:
        """Start workers; returns when the first is ready, or why it did not get ready."""
        self._nursery.start_soon(self._tick)
        self._perform(self._state.begin(time.monotonic()))
        await self._first_outcome.wait()
        return self._start_error

    async def stop(self) -> None:
        """End the workers: close their sockets, and kill what does not go."""
        self._perform(self._state.close())
        for process in self._processes.values():
            process.hang_up()
        while self._processes:
            self._worker_ended = trio.Event()
            await self._worker_ended.wait()

    async def _tick(self) -> None:
        """Let the state know of time passing, when it has something to do then."""
        while True:
            with trio.move_on_after(max(0.0, self._wake_at - time.monotonic())):
                await self._wake.wait()
            self._wake = trio.Event()
            now = time.monotonic()
            if now < self._wake_at:
                continue
            for worker, process in self._processes.items():
                self._state.progressed(worker, *process.progress.read(), now)
            self._wake_at = float("inf")
            self._perform(self._state.tick(now))

    def _perform(
        self,
        decisions: list[Decision],
        answer: Answer | None = None,
        process: WorkerProcess | None = None,
    ) -> None:
        """Do what was decided; `Deliver` hands out parts of `answer`, which `process` gave."""
        for decision in decisions:
            if isinstance(decision, Send):
                self._send(self._processes[decision.worker], decision.message)
            elif isinstance(decision, Deliver | Finish):
                self._end_job(decision, answer, process)
            elif isinstance(decision, Kill):
                log.error(
                    "killing a worker", token=self.name, worker=decision.worker, why=decision.reason
                )
                self._processes[decision.worker].kill()
            elif isinstance(decision, HangUp):
                self._processes[decision.worker].hang_up()
            else:
                self._nursery.start_soon(self._run_worker, decision.worker)
        next_at = self._state.next_event_at()
        if next_at is not None and next_at < self._wake_at:
            self._wake_at = next_at
            self._wake.set()

    @staticmethod
    def _end_job(
        decision: Deliver | Finish, answer: Answer | None, process: WorkerProcess | None
    ) -> None:
        request = decision.job.request
        if not isinstance(request, PoolRequest) or request.abandoned:
            return
        if isinstance(decision, Finish):
            request.finish(decision.job, decision.outcome)
        else:
            assert answer is not None and process is not None
            request.deliver(decision.job, answer, decision.start, decision.stop)
            if isinstance(request, PageRequest):
                request.take(process.page)
        request.settle()

    @staticmethod
    def _send(process: WorkerProcess, message: Message) -> None:
        job = message.jobs[0]
        if isinstance(job.request, PageRequest):
            job.request.before(process.page)
        process.post([message.number, job.operation, *message.arguments()])

    # Workers

    async def _run_worker(self, worker: int) -> None:
        """One worker from its process' start to its end."""
        if self._state.closed:
            return
        try:
            process = WorkerProcess.start(self._settings, self._directory)
        except (OSError, NativeError) as error:
            self._start_failed(f"its worker cannot be started: {in_words(error)}")
            self._perform(self._state.died(worker, time.monotonic()))
            return
        self._processes[worker] = process
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.send_posted)
                while messages := await process.receive():
                    for message in messages:
                        await self._on_message(worker, process, message)
                nursery.cancel_scope.cancel()
        except* MessageError as group:
            log.error("a worker is not understood", token=self.name, error=str(group.exceptions[0]))
        finally:
            process.hang_up()
            with trio.CancelScope(shield=True):
                is_in_login = process.login_began and not process.login_ended
                code = await process.reap(START_TIMEOUT_S if is_in_login else END_PATIENCE_S)
            del self._processes[worker]
            self._worker_ended.set()
        say = log.info if self._state.closed or code == 0 else log.warning
        how = end_in_words(code)
        say("a worker ended", token=self.name, worker=worker, pid=process.pid, how=how)
        running, item = process.last_progress
        self._perform(self._state.died(worker, time.monotonic(), running, item))
        self._start_failed("its worker ended before it was ready")

    def _start_failed(self, text: str) -> None:
        """If nobody was ready yet, that was why: whoever waits for the start hears of it."""
        if not self._first_outcome.is_set():
            log.error("no worker starts", token=self.name, error=text)
            self._start_error = self._start_error or TokenUnavailable(text)
            self._first_outcome.set()

    async def _on_message(self, worker: int, process: WorkerProcess, message: list[Any]) -> None:
        answer = Answer.parse(message)
        if answer is not None:
            self._on_answer(worker, process, answer)
            return
        kind, *rest = message
        await self._life[kind](self, worker, process, *rest)

    async def _on_locked(self, worker: int, process: WorkerProcess) -> None:
        self._state.starting_now(worker, time.monotonic())

    async def _on_hello(self, worker: int, process: WorkerProcess, facts: dict[str, Any]) -> None:
        if not facts.keys() >= {*_FACTS, "restored"}:
            raise MessageError("hello without facts")
        self.facts = {name: facts[name] for name in _FACTS}
        for name in facts["restored"]:
            log.critical("restored a token file that was cut short", token=self.name, file=name)
        sessions_max = self._settings.sessions_max or self.facts["sessions_max"]
        workers, is_single = plan_sessions(self._settings.workers, sessions_max)
        self._state.limit_workers(workers)
        pin_path = self._settings.pin_path()
        begin = partial(self._marks.begin, self.facts["serial"], self.facts["flags"], pin_path)
        try:
            await trio.to_thread.run_sync(begin)
        except PinRefused as error:
            self._refuse(worker, str(error))
            process.hang_up()
            return
        except OSError as error:
            self._start_failed(f"nobody logs in: a PIN mark cannot be written: {in_words(error)}")
            process.hang_up()
            return
        self._state.starting_now(worker, time.monotonic())
        process.login_began = True
        options = {"single": is_single, "verify_every": self._settings.verify_every}
        process.post(["login", options])

    async def _on_ready(self, worker: int, process: WorkerProcess) -> None:
        process.login_ended = True
        self._logins += 1
        await self._note_login(accepted=True)
        process.post(["serve"])
        log.info("a worker is ready", token=self.name, worker=worker)
        self._perform(self._state.ready_now(worker, time.monotonic()))
        self._first_outcome.set()

    async def _on_refused(self, worker: int, process: WorkerProcess, code: int, text: str) -> None:
        process.login_ended = True
        self._failed_logins += 1
        await self._note_login(accepted=False)
        self._refuse(
            worker,
            f"the token refused the PIN ({text}, code 0x{code:x}); nobody tries it again: put the "
            f"right PIN into {self._settings.pin_path()}, or run "
            f"`hsmux hsm clear-pin --config FILE --token {self.name}` once the token accepts it",
        )
        process.hang_up()

    async def _on_failed(
        self, worker: int, process: WorkerProcess, kind: str, code: int, text: str
    ) -> None:
        process.login_ended = True
        log.error("a worker failed to start", token=self.name, code=code, error=text)
        if kind == "sessions":
            self._state.no_session(worker, time.monotonic())
        if not self._first_outcome.is_set():
            self._start_error = _START_ERRORS.get(kind, TokenUnavailable)(text)
        process.hang_up()

    async def _on_leaving(
        self, worker: int, process: WorkerProcess, kind: str, code: int, text: str
    ) -> None:
        log.warning(
            "a worker leaves", token=self.name, worker=worker, kind=kind, code=code, error=text
        )
        self._state.leaving(worker, kind, time.monotonic())

    _life: Final[dict[str, Callable[..., Awaitable[None]]]] = {
        "locked": _on_locked,
        "hello": _on_hello,
        "ready": _on_ready,
        "refused": _on_refused,
        "failed": _on_failed,
        "leaving": _on_leaving,
    }

    async def _note_login(self, *, accepted: bool) -> None:
        pin_path = self._settings.pin_path()
        finish = partial(self._marks.finish, self.facts["serial"], pin_path, accepted=accepted)
        try:
            await trio.to_thread.run_sync(finish)
        except OSError as error:
            # The mark says "trying" for ever, which is careful enough.
            log.error("a PIN mark cannot be written", token=self.name, error=error.strerror)

    def _refuse(self, worker: int, text: str) -> None:
        log.critical("no login", token=self.name, error=text)
        if not self._first_outcome.is_set():
            self._start_error = PinRefused(text)
        self._perform(self._state.refuse(worker, text, time.monotonic()))

    def _on_answer(self, worker: int, process: WorkerProcess, answer: Answer) -> None:
        if not self._state.expects(worker, answer.number):
            raise MessageError(f"an answer to {answer.number}, which is not running")
        message = self._state.running(worker)
        statuses = _statuses_of(message, answer)
        if answer.kind != "done":
            self._log_failure(message, answer)
        decisions = self._state.answered(worker, answer.kind, time.monotonic(), statuses)
        uses_page = any(isinstance(job.request, PageRequest) for job in message.jobs)
        self._perform(decisions, answer, process)
        if uses_page:
            process.page.wipe()

    def _log_failure(self, message: Message, answer: Answer) -> None:
        say = log.critical if answer.kind == "quarantine" else log.warning
        say(
            "an operation failed",
            token=self.name,
            operation=message.jobs[0].operation if message.jobs else "",
            kind=answer.kind,
            code=answer.code,
            error=answer.text,
        )


def _statuses_of(message: Message, answer: Answer) -> bytes:
    """The statuses of a column's items, if that is what was asked for.

    Raises:
        MessageError: The answer does not fit the question.
    """
    if answer.kind != "done" or not message.jobs:
        return b""
    if not isinstance(message.jobs[0].payload, Column):
        return b""
    try:
        outputs, statuses = answer.value
        is_fitting = len(unpack_column(outputs)) == len(statuses) == message.count
    except (TypeError, ValueError, RemoteProtocolError):
        is_fitting = False
    if not is_fitting:
        raise MessageError("an answer that does not fit its column")
    return bytes(statuses)
