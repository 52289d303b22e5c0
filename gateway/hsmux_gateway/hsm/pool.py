"""The pool: performs what `pool_state` decides, with real processes and sockets.

Every worker has one task here. It starts the process, asks `pin` whether anybody may log in, tells
the worker to, and then turns its messages into events. Callers put jobs in and wait for their
request; their own deadline ends the wait, not the job. All decisions come from `PoolState`; this
module only acts on them, in one thread and without awaiting in between, so no lock is needed.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from hsmux_native import Arena
from hsmux_native.pkcs11 import SecretPage
from hsmux_protocol.columns import pack_column, unpack_column
from hsmux_protocol.errors import RemoteProtocolError

from .decisions import Decision, Deliver, Finish, HangUp, Kill, Send
from .errors import (
    InvalidInput,
    PinRefused,
    TokenDeadlineExceeded,
    TokenError,
    TokenOutcomeUnknown,
    TokenUnavailable,
)
from .jobs import ITEMS_MAX, Arguments, Column, Job, Message
from .messages import Answer, MessageError
from .pin import PinMarks
from .pool_state import START_TIMEOUT_S, PoolState
from .requests import ColumnRequest, PageRequest, PoolRequest, ValueRequest
from .sessions import plan_sessions
from .settings import TokenSettings
from .token import BatchResult, FoundObject, HsmKey, TokenStatistics
from .worker_process import WorkerProcess

__all__ = ["PoolToken", "open_token"]

log = structlog.get_logger("hsmux.hsm")

SYSTEM_TENANT: Final = bytes(16)
"""The gateway itself in the fair queue."""

KILL_S: Final[dict[str, float]] = {
    "sign": 10.0,
    "generate": 60.0,
    "destroy": 10.0,
    "list_objects": 30.0,
    "try_quirk": 20.0,
}
"""Seconds an operation, or an item of a column, may run before its worker is killed."""
KILL_DEFAULT_S: Final = 5.0

END_PATIENCE_S: Final = 0.5
"""Seconds a worker has to end by itself before it is killed."""

KEY_SIZE: Final = 32
"""Bytes of the key that goes through a worker's page."""

WORK_SIZE_MAX: Final = 4 << 20
"""Bytes of items in one job."""


class PoolToken:
    """A token behind a pool of workers; satisfies `Token`.

    Use `open_token`.
    """

    def __init__(
        self, settings: TokenSettings, arena: Arena, directory: Path, nursery: trio.Nursery
    ) -> None:
        self.name = settings.name
        self.facts: dict[str, Any] = {}
        self._settings = settings
        self._arena = arena
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
        return f"PoolToken({self.name}, {self._state!r}, epoch {self._logins})"

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
        process = WorkerProcess.start(self._settings, self._directory)
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
        log.warning("a worker ended", token=self.name, worker=worker, pid=process.pid, code=code)
        if self._start_error is None and not self._first_outcome.is_set():
            self._start_error = TokenUnavailable("its worker ended before it was ready")
        running, item = process.last_progress
        self._perform(self._state.died(worker, time.monotonic(), running, item))
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
            f"`hsmux hsm clear-pin --token {self.name}` once the token accepts it",
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
            self._start_error = TokenUnavailable(text)
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
        await trio.to_thread.run_sync(finish)

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

    # Requests

    def _job(
        self,
        request: PoolRequest,
        operation: str,
        values: list[Any],
        deadline: float,
        key: HsmKey | None = None,
        tenant: bytes = SYSTEM_TENANT,
    ) -> Job:
        return Job(
            request,
            tenant,
            key.name if key else b"",
            operation,
            Arguments(values),
            deadline,
            KILL_S.get(operation, KILL_DEFAULT_S),
            repeatable=operation not in ("generate", "try_quirk"),
            exclusive=operation in ("generate", "destroy"),
            alone=isinstance(request, PageRequest) or operation == "try_quirk",
        )

    async def _ask(
        self,
        operation: str,
        values: list[Any],
        deadline: float,
        key: HsmKey | None = None,
        tenant: bytes = SYSTEM_TENANT,
        request: ValueRequest | None = None,
    ) -> Any:
        """Have one thing done, and wait for its value until the deadline at most.

        Raises:
            TokenError: It was not done; TokenOutcomeUnknown: it may have been.
        """
        waiting = request or ValueRequest()
        job = self._job(waiting, operation, values, deadline, key, tenant)
        self._perform(self._state.submit(job, time.monotonic()))
        try:
            is_settled = await waiting.wait(deadline - time.monotonic())
        finally:
            is_begun = job.place == "running"
            self._perform(self._state.cancel(waiting, time.monotonic()))
        if is_settled:
            return waiting.result()
        if is_begun and not job.repeatable:
            raise TokenOutcomeUnknown("the deadline passed during a change")
        raise TokenDeadlineExceeded("the deadline passed before the token answered")

    async def generate(
        self, spec: str, cka_id: bytes, *, deadline: float, role: str = "key"
    ) -> HsmKey:
        """Make a token object; see `Token`."""
        key = HsmKey(cka_id, spec, b"", b"")
        made = await self._ask("generate", [spec, cka_id, role], deadline, key)
        proof, public_key = made
        return HsmKey(cka_id, spec, proof, public_key, role)

    async def destroy(self, key: HsmKey, *, deadline: float) -> None:
        """Destroy every object with the key's CKA_ID; no worker knows it any more on return."""
        await self._ask("destroy", [key.cka_id], deadline, key)
        await self.drop_key(key, deadline=deadline)

    async def drop_key(self, key: HsmKey, *, deadline: float) -> None:
        """Have every worker forget a key; one that does not answer in time is killed."""
        request = ValueRequest()

        def make() -> Job:
            return self._job(request, "drop_key", [key.cka_id], deadline, key)

        self._perform(self._state.broadcast(make, time.monotonic()))
        request.settle()
        if not await request.wait(deadline - time.monotonic()):
            self._perform(self._state.silence(request))
            await request.wait(END_PATIENCE_S)

    async def list_objects(self, *, deadline: float) -> list[FoundObject]:
        """Keys in the token."""
        found = await self._ask("list_objects", [], deadline)
        return [FoundObject(*item) for item in found]

    async def mechanisms(self, *, deadline: float) -> list[str]:
        """Mechanisms the token lists."""
        found: list[str] = await self._ask("mechanisms", [], deadline)
        return found

    async def try_quirk(self, name: str, *, deadline: float) -> str:
        """What one of `quirks.QUIRKS` finds out.

        Raises:
            TokenOutcomeUnknown: The module did not survive it.
        """
        found: str = await self._ask("try_quirk", [name], deadline)
        return found

    async def encrypt(
        self,
        key: HsmKey,
        plaintexts: bytes,
        associated_data: bytes,
        *,
        deadline: float,
        tenant: bytes,
    ) -> BatchResult:
        """AES-GCM over a column; see `Token`."""
        return await self._crypt("encrypt", key, plaintexts, associated_data, deadline, tenant)

    async def decrypt(
        self, key: HsmKey, sealed: bytes, associated_data: bytes, *, deadline: float, tenant: bytes
    ) -> BatchResult:
        """Open a column of what `encrypt` made; see `Token`."""
        return await self._crypt("decrypt", key, sealed, associated_data, deadline, tenant)

    async def _crypt(
        self,
        operation: str,
        key: HsmKey,
        column: bytes,
        associated_data: bytes,
        deadline: float,
        tenant: bytes,
    ) -> BatchResult:
        """Split a column into jobs, have them done side by side, and put it together again."""
        parts = _split(key, column, associated_data)
        request = ColumnRequest(sum(part.count for part in parts))
        kill_s = KILL_S.get(operation, KILL_DEFAULT_S)
        jobs = [Job(request, tenant, key.name, operation, p, deadline, kill_s) for p in parts]
        request.jobs.update(jobs)
        try:
            for job in jobs:
                self._perform(self._state.submit(job, time.monotonic()))
            await request.wait(deadline - time.monotonic())
        finally:
            self._perform(self._state.cancel(request, time.monotonic()))
        return request.result()

    async def sign(
        self, key: HsmKey, algorithm: str, digest: bytes, *, deadline: float, tenant: bytes
    ) -> bytes:
        """Sign a digest; see `Token`."""
        values = [key.cka_id, key.spec, key.public_key, algorithm, digest]
        signature: bytes = await self._ask("sign", values, deadline, key, tenant)
        return signature

    async def random(self, length: int, *, deadline: float) -> bytes:
        """Random bytes of the token."""
        data: bytes = await self._ask("random", [length], deadline)
        if len(data) != length:
            raise TokenUnavailable("the token gave another number of random bytes")
        return data

    async def prove(self, key: HsmKey, *, deadline: float) -> None:
        """Prove that the token's object is this key."""
        values = [key.cka_id, key.spec, key.proof, key.public_key, key.role]
        await self._ask("prove", values, deadline, key)

    async def seal_slot(
        self, root: HsmKey, slot: int, associated_data: bytes, *, deadline: float
    ) -> bytes:
        """Seal the key in an arena slot under a root key, through a worker's page."""
        request = PageRequest(
            before=lambda page: self._arena.store(slot, memoryview(page.view)),
            after=lambda page, value: value,
        )
        values = [root.cka_id, root.spec, root.proof, associated_data, KEY_SIZE]
        sealed: bytes = await self._ask("seal_page", values, deadline, root, request=request)
        return sealed

    async def open_slot(
        self, root: HsmKey, sealed: bytes, associated_data: bytes, *, deadline: float
    ) -> int:
        """Open what `seal_slot` made into an arena slot, through a worker's page."""

        def load(page: SecretPage, is_open: Any) -> int:
            if not is_open:
                raise InvalidInput("the sealed key does not open under this root key")
            return self._arena.load_from(memoryview(page.view)[:KEY_SIZE])

        request = PageRequest(before=lambda page: page.wipe(), after=load)
        values = [root.cka_id, root.spec, root.proof, associated_data, sealed]
        slot: int = await self._ask("open_page", values, deadline, root, request=request)
        return slot


_FACTS: Final = ("manufacturer", "model", "serial", "flags", "sessions_max")


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


def _split(key: HsmKey, column: bytes, associated_data: bytes) -> list[Column]:
    """A column in parts of at most `ITEMS_MAX` items and `WORK_SIZE_MAX` bytes.

    Raises:
        ValueError: It is malformed, or the associated data are not one or one for each item.
    """
    try:
        items, aads = unpack_column(column), unpack_column(associated_data)
    except RemoteProtocolError as error:
        raise ValueError(str(error)) from None
    if len(aads) not in (1, len(items)):
        raise ValueError(f"{len(aads)} texts of associated data for {len(items)} items")
    name, count = (key.cka_id, key.spec, key.proof), len(items)
    if count <= ITEMS_MAX and len(column) <= WORK_SIZE_MAX:
        return [Column(name, column, associated_data, range(count))]
    parts = []
    start = 0
    while start < count:
        stop, size = start, 0
        while stop < min(count, start + ITEMS_MAX) and (not size or size <= WORK_SIZE_MAX):
            size += len(items[stop])
            stop += 1
        own = associated_data if len(aads) == 1 else pack_column(aads[start:stop])
        parts.append(Column(name, pack_column(items[start:stop]), own, range(start, stop)))
        start = stop
    return parts


@asynccontextmanager
async def open_token(
    settings: TokenSettings, arena: Arena, directory: Path
) -> AsyncIterator[PoolToken]:
    """Open a token: prove its PIN, start its workers, end them at the end.

    Args:
        settings: How to reach it.
        arena: For keys that a root key seals and opens.
        directory: Where PIN marks and copies of token files are kept.

    Raises:
        PinRefused: Nobody may log in; says what to do.
        TokenError: The first worker did not get ready; says why.
    """
    async with trio.open_nursery() as nursery:
        token = PoolToken(settings, arena, directory, nursery)
        try:
            failure = await token.start()
            if failure is None:
                yield token
        finally:
            with trio.CancelScope(shield=True):
                await token.stop()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
