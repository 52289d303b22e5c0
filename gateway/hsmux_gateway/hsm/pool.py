"""The pool: performs what `pool_state` decides, with real processes and sockets.

Every worker has one task here. It starts the process, asks `pin` whether anybody may log in, tells
the worker to, and then turns its messages into events. Callers put a job in and wait for its
answer; their own deadline ends the wait, not the job. All decisions come from `PoolState`; this
module only acts on them, in one task at a time, so no lock is needed.
"""

import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from hsmux_native import Arena
from hsmux_native.pkcs11 import SecretPage
from hsmux_protocol.columns import pack_column, unpack_column

from . import softhsm
from .errors import (
    InvalidInput,
    KeyMissing,
    KeyQuarantined,
    PinRefused,
    TokenBusy,
    TokenDeadlineExceeded,
    TokenError,
    TokenOutcomeUnknown,
    TokenUnavailable,
    Unsupported,
)
from .messages import ITEMS_MAX, MessageError
from .pin import PinMarks
from .pool_state import Decision, Finish, Job, Kill, PoolState, Send, Start
from .settings import TokenSettings
from .token import BatchResult, FoundObject, HsmKey, TokenStatistics
from .worker_process import WorkerProcess

__all__ = ["PoolToken", "open_token"]

log = structlog.get_logger("hsmux.hsm")

RETRY_AFTER_MS: Final = 100
"""What is told when the queue is full: about the time the queue needs to move."""

SYSTEM_TENANT: Final = bytes(16)
"""The gateway itself in the fair queue."""

KILL_S: Final[dict[str, float]] = {
    "encrypt": 5.0,
    "decrypt": 5.0,
    "sign": 10.0,
    "generate": 60.0,
    "destroy": 10.0,
    "list_objects": 30.0,
}
"""Seconds an operation may run before its worker is killed."""
KILL_DEFAULT_S: Final = 5.0

END_PATIENCE_S: Final = 0.5
"""Seconds a worker has to end by itself before it is killed."""

KEY_SIZE: Final = 32
"""Bytes of the key that goes through a worker's page."""

WORK_SIZE_MAX: Final = 4 << 20
"""Bytes of items in one job."""

STATUS_DEADLINE: Final = 3
STATUS_UNAVAILABLE: Final = 4


class _Waiting:
    """A caller that waits for a job."""

    __slots__ = ("error", "event", "value")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.value: Any = None
        self.error: TokenError | None = None


@dataclass(frozen=True, slots=True)
class _PageHooks:
    """What happens to a worker's page before a job goes out, and when its answer is there."""

    before: Callable[[SecretPage], None]
    after: Callable[[SecretPage, Any], Any]


_FAILURES: Final[dict[str, type[TokenError]]] = {
    "caller": InvalidInput,
    "key": KeyMissing,
    "quarantine": KeyQuarantined,
    "unsupported": Unsupported,
}


def _failure(kind: str, code: int, text: str) -> TokenError:
    if kind == "busy":
        return TokenBusy(text, retry_after_ms=RETRY_AFTER_MS)
    return _FAILURES.get(kind, TokenUnavailable)(f"{text} (code 0x{code:x})")


def _unfinished(outcome: str) -> TokenError:
    if outcome == "busy":
        return TokenBusy("the token's queue is full", retry_after_ms=RETRY_AFTER_MS)
    if outcome == "deadline":
        return TokenDeadlineExceeded("the deadline passed in the queue")
    if outcome == "unknown":
        return TokenOutcomeUnknown("a worker was lost in the middle of a change")
    if outcome == "refused":
        return TokenUnavailable("this request killed two workers and is refused for a minute")
    return TokenUnavailable("the token is away")


class PoolToken:
    """A token behind a pool of workers; satisfies `Token`.

    Use `open_token`.
    """

    def __init__(
        self, settings: TokenSettings, arena: Arena, directory: Path, nursery: trio.Nursery
    ) -> None:
        self.name = settings.name
        self._settings = settings
        self._arena = arena
        self._directory = directory
        self._nursery = nursery
        self._marks = PinMarks(directory, settings.name)
        self._state = PoolState(settings.workers, settings.queue_items_max)
        self._processes: dict[int, WorkerProcess] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._page_lock = trio.Lock()
        self._page_hooks: dict[int, _PageHooks] = {}
        self._numbers = itertools.count(1)
        self._wake = trio.Event()
        self._first_outcome = trio.Event()
        self._worker_ended = trio.Event()
        self._start_error: TokenError | None = None
        self._logins = 0
        self._failed_logins = 0
        self.facts: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"PoolToken({self.name}, {self._state!r}, epoch {self._logins})"

    def statistics(self) -> TokenStatistics:
        """How it fares now."""
        state = self._state
        return TokenStatistics(
            self.name,
            state.ready,
            state.busy,
            state.starting,
            state.waiting,
            self._logins,
            state.breaker,
            state.restarts,
            self._failed_logins,
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
        self._perform(self._state.stop("the gateway stops"))
        for process in self._processes.values():
            process.hang_up()
        while self._processes:
            self._worker_ended = trio.Event()
            await self._worker_ended.wait()

    async def _tick(self) -> None:
        """Let the state know of time passing, when it has something to do then."""
        while True:
            next_at = self._state.next_event_at()
            pause_s = 3600.0 if next_at is None else max(0.0, next_at - time.monotonic())
            self._wake = trio.Event()
            with trio.move_on_after(pause_s):
                await self._wake.wait()
            self._perform(self._state.tick(time.monotonic()))

    def _perform(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Send):
                self._send(self._processes[decision.worker], decision.job)
            elif isinstance(decision, Finish):
                self._settle(decision.job, error=_unfinished(decision.outcome))
            elif isinstance(decision, Start):
                self._nursery.start_soon(self._run_worker, decision.worker)
            elif isinstance(decision, Kill):
                log.warning(
                    "killing a worker", token=self.name, worker=decision.worker, why=decision.reason
                )
                process = self._processes.get(decision.worker)
                if process is not None:
                    process.kill()
        self._wake.set()

    def _send(self, process: WorkerProcess, job: Job) -> None:
        hooks = self._page_hooks.get(job.number)
        if hooks is not None:
            hooks.before(process.page)
        process.post([job.number, job.operation, *job.arguments])

    def _settle(self, job: Job, *, value: Any = None, error: TokenError | None = None) -> None:
        waiting = self._waiting.pop(job.number, None)
        if waiting is not None:
            waiting.value, waiting.error = value, error
            waiting.event.set()

    # Workers

    async def _run_worker(self, worker: int) -> None:
        """One worker from its process' start to its end."""
        await trio.to_thread.run_sync(self._restore_files)
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
                code = await process.reap(END_PATIENCE_S)
            del self._processes[worker]
            self._worker_ended.set()
        log.warning("a worker ended", token=self.name, worker=worker, pid=process.pid, code=code)
        if self._start_error is None and not self._first_outcome.is_set():
            self._start_error = TokenUnavailable("its worker ended before it was ready")
        self._perform(self._state.died(worker, time.monotonic()))
        self._first_outcome.set()

    def _restore_files(self) -> None:
        environment = {**os.environ, **self._settings.environment}
        if "softhsm" in self._settings.module.lower():
            for name in softhsm.restore(environment, self._directory):
                log.error("restored a token file that was cut short", token=self.name, file=name)

    async def _on_message(self, worker: int, process: WorkerProcess, message: list[Any]) -> None:
        if isinstance(message[0], str):
            await self._on_life(worker, process, message)
        else:
            self._on_answer(worker, message)

    async def _on_life(self, worker: int, process: WorkerProcess, message: list[Any]) -> None:
        """hello, ready, refused or failed."""
        kind = message[0]
        if kind == "hello":
            await self._on_hello(process, message[1])
        elif kind == "ready":
            await self._on_ready(worker)
        elif kind == "refused":
            await self._on_refused(f"the token refused the PIN (code 0x{message[1]:x})")
        else:
            log.error("a worker failed to start", token=self.name, error=message[2])
            if not self._first_outcome.is_set():
                self._start_error = TokenUnavailable(message[2])

    async def _on_hello(self, process: WorkerProcess, facts: dict[str, Any]) -> None:
        self.facts = facts
        begin = partial(
            self._marks.begin, facts["serial"], facts["flags"], self._settings.pin_path()
        )
        try:
            await trio.to_thread.run_sync(begin)
        except PinRefused as error:
            self._refuse(str(error))
            process.hang_up()
            return
        process.post(["login", 0])

    async def _on_ready(self, worker: int) -> None:
        self._logins += 1
        await trio.to_thread.run_sync(
            partial(
                self._marks.finish, self.facts["serial"], self._settings.pin_path(), accepted=True
            )
        )
        if self.facts["manufacturer"].startswith(softhsm.MANUFACTURER):
            environment = {**os.environ, **self._settings.environment}
            await trio.to_thread.run_sync(softhsm.keep_copies, environment, self._directory)
        log.info("a worker is ready", token=self.name, worker=worker)
        self._perform(self._state.ready_now(worker, time.monotonic()))
        self._first_outcome.set()

    async def _on_refused(self, text: str) -> None:
        self._failed_logins += 1
        await trio.to_thread.run_sync(
            partial(
                self._marks.finish, self.facts["serial"], self._settings.pin_path(), accepted=False
            )
        )
        self._refuse(
            f"{text}; nobody tries it again: put the right PIN into {self._settings.pin_path()}, "
            f"or run `hsmux hsm clear-pin --token {self.name}` once the token accepts it"
        )

    def _refuse(self, text: str) -> None:
        log.critical("no login", token=self.name, error=text)
        self._start_error = PinRefused(text)
        self._perform(self._state.stop(text))
        self._first_outcome.set()

    def _on_answer(self, worker: int, message: list[Any]) -> None:
        number, kind, *rest = message
        job, decisions = self._state.answered(worker, kind, time.monotonic())
        if job.number != number:
            raise MessageError(f"answer to {number} while {job.number} was running")
        if kind != "done":
            log.warning(
                "an operation failed",
                token=self.name,
                operation=job.operation,
                kind=kind,
                code=rest[0],
                error=rest[1],
            )
        is_finished = any(isinstance(d, Finish) and d.job is job for d in decisions)
        if not is_finished and not self._state.is_pending(job):
            if kind == "done":
                self._settle_done(worker, job, rest[0])
            else:
                self._settle(job, error=_failure(kind, rest[0], rest[1]))
        self._perform(decisions)

    def _settle_done(self, worker: int, job: Job, value: Any) -> None:
        hooks = self._page_hooks.get(job.number)
        if hooks is None:
            self._settle(job, value=value)
            return
        page = self._processes[worker].page
        try:
            self._settle(job, value=hooks.after(page, value))
        except TokenError as error:
            self._settle(job, error=error)
        finally:
            page.wipe()

    # Jobs

    def _job(
        self,
        operation: str,
        arguments: list[Any],
        *,
        deadline: float,
        tenant: bytes = SYSTEM_TENANT,
        key: bytes = b"",
        items: int = 1,
    ) -> Job:
        is_change = operation in ("generate", "destroy")
        return Job(
            next(self._numbers),
            tenant,
            key,
            operation,
            arguments,
            items,
            deadline,
            KILL_S.get(operation, KILL_DEFAULT_S),
            repeatable=not is_change,
            exclusive=is_change,
        )

    async def _do(self, job: Job) -> Any:
        """Hand a job in and wait for its value, until its deadline at most.

        Raises:
            TokenError: It was not done; TokenOutcomeUnknown: it may have been.
        """
        waiting = self._waiting[job.number] = _Waiting()
        self._perform(self._state.submit(job, time.monotonic()))
        try:
            with trio.move_on_after(max(0.0, job.deadline - time.monotonic())):
                await waiting.event.wait()
        finally:
            if self._waiting.pop(job.number, None) is not None:
                was_waiting = self._state.is_pending(job)
                self._state.cancel(job)
                was_begun = self._state.is_pending(job)
                if was_waiting and was_begun and not job.repeatable:
                    waiting.error = TokenOutcomeUnknown("the deadline passed during a change")
        if waiting.error is not None:
            raise waiting.error
        if not waiting.event.is_set():
            raise TokenDeadlineExceeded("the deadline passed before the token answered")
        return waiting.value

    async def generate(
        self, spec: str, cka_id: bytes, *, deadline: float, role: str = "key"
    ) -> HsmKey:
        """Make a token object; see `Token`."""
        job = self._job("generate", [spec, cka_id, role], deadline=deadline, key=cka_id)
        proof, public_key = await self._do(job)
        return HsmKey(cka_id, spec, proof, public_key)

    async def destroy(self, key: HsmKey, *, deadline: float) -> None:
        """Destroy every object with the key's CKA_ID."""
        await self._do(self._job("destroy", [key.cka_id], deadline=deadline, key=key.cka_id))

    async def list_objects(self, *, deadline: float) -> list[FoundObject]:
        """Keys in the token."""
        found = await self._do(self._job("list_objects", [], deadline=deadline))
        return [FoundObject(*item) for item in found]

    async def mechanisms(self, *, deadline: float) -> list[str]:
        """Mechanisms the token lists."""
        found: list[str] = await self._do(self._job("mechanisms", [], deadline=deadline))
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
        parts = _split(column, associated_data)
        results: list[tuple[bytes, bytes] | None] = [None] * len(parts)

        async def do_part(index: int, items: bytes, aads: bytes, count: int) -> None:
            deadline_ns = int(deadline * 1e9)
            job = self._job(
                operation,
                [key.cka_id, key.spec, key.proof, items, aads, deadline_ns],
                deadline=deadline,
                tenant=tenant,
                key=key.cka_id,
                items=count,
            )
            if len(parts) == 1:
                results[index] = tuple(await self._do(job))
                return
            try:
                results[index] = tuple(await self._do(job))
            except TokenDeadlineExceeded:
                results[index] = (pack_column([b""] * count), bytes([STATUS_DEADLINE]) * count)
            except (TokenBusy, TokenUnavailable):
                results[index] = (pack_column([b""] * count), bytes([STATUS_UNAVAILABLE]) * count)

        if len(parts) == 1:
            await do_part(0, *parts[0])
        else:
            try:
                async with trio.open_nursery() as nursery:
                    for index, part in enumerate(parts):
                        nursery.start_soon(do_part, index, *part)
            except* TokenError as group:
                raise group.exceptions[0] from None
        done = [result for result in results if result is not None]
        statuses = b"".join(status for _, status in done)
        if len(done) == 1:
            return BatchResult(done[0][0], statuses)
        outputs = [item for output, _ in done for item in unpack_column(output)]
        return BatchResult(pack_column(outputs), statuses)

    async def sign(
        self, key: HsmKey, algorithm: str, digest: bytes, *, deadline: float, tenant: bytes
    ) -> bytes:
        """Sign a digest; see `Token`."""
        job = self._job(
            "sign",
            [key.cka_id, key.spec, algorithm, digest],
            deadline=deadline,
            tenant=tenant,
            key=key.cka_id,
        )
        signature: bytes = await self._do(job)
        return signature

    async def random(self, length: int, *, deadline: float) -> bytes:
        """Random bytes of the token."""
        data: bytes = await self._do(self._job("random", [length], deadline=deadline))
        if len(data) != length:
            raise TokenUnavailable("the token gave another number of random bytes")
        return data

    async def prove(self, key: HsmKey, *, deadline: float) -> None:
        """Prove that the token's object is this key."""
        arguments = [key.cka_id, key.spec, key.proof]
        await self._do(self._job("prove", arguments, deadline=deadline, key=key.cka_id))

    async def seal_slot(
        self, root: HsmKey, slot: int, associated_data: bytes, *, deadline: float
    ) -> bytes:
        """Seal the key in an arena slot under a root key, through the shared page."""
        hooks = _PageHooks(
            before=lambda page: self._arena.store(slot, memoryview(page.view)),
            after=lambda page, value: value,
        )
        arguments = [associated_data, KEY_SIZE]
        sealed: bytes = await self._through_page("seal_page", root, arguments, deadline, hooks)
        return sealed

    async def open_slot(
        self, root: HsmKey, sealed: bytes, associated_data: bytes, *, deadline: float
    ) -> int:
        """Open what `seal_slot` made into an arena slot, through the shared page."""

        def load(page: SecretPage, is_open: Any) -> int:
            if not is_open:
                raise InvalidInput("the sealed key does not open under this root key")
            return self._arena.load_from(memoryview(page.view)[:KEY_SIZE])

        hooks = _PageHooks(before=lambda page: page.wipe(), after=load)
        arguments = [associated_data, sealed]
        slot: int = await self._through_page("open_page", root, arguments, deadline, hooks)
        return slot

    async def _through_page(
        self,
        operation: str,
        root: HsmKey,
        arguments: list[Any],
        deadline: float,
        hooks: _PageHooks,
    ) -> Any:
        """Have one operation done whose secret bytes go through a worker's page; one at a time."""
        job = self._job(
            operation,
            [root.cka_id, root.proof, *arguments],
            deadline=deadline,
            key=root.cka_id,
        )
        async with self._page_lock:
            self._page_hooks[job.number] = hooks
            try:
                return await self._do(job)
            finally:
                del self._page_hooks[job.number]


def _split(column: bytes, associated_data: bytes) -> list[tuple[bytes, bytes, int]]:
    """A column in parts of at most `ITEMS_MAX` items and `WORK_SIZE_MAX` bytes."""
    count = int.from_bytes(column[:4], "big")
    if count <= ITEMS_MAX and len(column) <= WORK_SIZE_MAX:
        return [(column, associated_data, count)]
    items, aads = unpack_column(column), unpack_column(associated_data)
    parts = []
    for start in range(0, count, ITEMS_MAX):
        some = items[start : start + ITEMS_MAX]
        own = associated_data if len(aads) == 1 else pack_column(aads[start : start + ITEMS_MAX])
        parts.append((pack_column(some), own, len(some)))
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
