"""The journal of one process: records on their way into its chain.

Theory of operation
-------------------
`append` only keeps a record and tells its number; `flush` writes everything kept, formatted and
chained together, with one system call. A connection remembers the number of its last record and
sees that it is written before it hands the answers to TLS. So a record survives `kill -9` if its
answer was seen, and a burst of answers costs one write.

Written is not durable: a power cut takes what the disk does not have. `durable` waits until a
record is; all who wait share one `fdatasync`, done in a thread, and who comes while it runs shares
the next one. `keep_durable` does the same for records that nobody waits for, at most `LAG_S` after
they were written.

If a write fails, no answer to a recorded request leaves: `flush` raises NoRoom and the connection
ends. What was not written is kept and written first, so what was changed is then on record late,
never unrecorded. While writing fails, `ready` is false: the engine refuses requests before anything
is done, without a record, and such refusals and new connections need no write. Each look at `ready`
tries again, at most every `RETRY_S`. If a sync fails, everything from then on raises SyncFailed,
and the process must end.

The request log is a convenience and must cost little: what was written is kept for it, and
`keep_durable` formats and writes the lines of all that came in `LAG_S` together; sooner where many
came. What is not in the chain is in no log.

Refused connections, and requests over a limit, are counted, not written (see `floods`). A wall
clock that moves by itself is written down: times in records are only as good as it.
"""

import time
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from ..clock import now_ms
from ..log_sink import LogSink
from .chain import FRAME_OVERHEAD
from .floods import Floods
from .records import (
    AnyRecord,
    ClockJump,
    Flood,
    Limited,
    Start,
    Stop,
    Torn,
    export_record,
    write_record,
)
from .segments import ChainWriter, NoRoom, RecordError, Room

__all__ = ["CLOCK_JUMP_MS", "LAG_S", "UNLOGGED_MAX", "Journal"]

RETRY_S: Final = 0.1
"""Seconds between tries to write while writing fails."""

LAG_S: Final = 0.05
"""Seconds a written record may wait to be durable if nobody waits for it."""

UNLOGGED_MAX: Final = 256
"""Written records that are kept for the request log; with as many, their lines are written."""

CLOCK_JUMP_MS: Final = 60_000
"""Milliseconds by which the wall clock has to leave the monotonic one to be recorded."""

_encode_line: Final = msgspec.json.Encoder().encode


class Journal:
    """Takes records, writes them, makes them durable.

    Args:
        chain: Where they go; closed with the journal.
        software: The version of this software, for the record of the start.
        libraries: Versions of native libraries.
        log: Gets the same records as JSON lines, or None. What cannot be written there is lost: it
            is a convenience, the chain is the record.
        wall_ms: The wall clock, milliseconds since 1970 UTC.
        monotonic: Seconds of a clock that nobody sets.

    Attributes:
        records: Records appended so far.
        written: Of these, how many are with the operating system.
        synced: Of these, how many are durable.
        failing: Whether the last write failed.
        floods: Counts refused connections.
        limited: Counts requests that were over a limit of their access point.
    """

    def __init__(
        self,
        chain: ChainWriter,
        *,
        software: str = "",
        libraries: str = "",
        log: LogSink | None = None,
        wall_ms: Callable[[], int] = now_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain = chain
        self._log = log
        self._wall_ms = wall_ms
        self._monotonic = monotonic
        self._clock_ms = self._offset_ms()
        self._kept: list[AnyRecord] = []
        self._bodies: list[bytes] = []
        self._formatted: list[AnyRecord] = []
        self._unlogged: list[AnyRecord] = []
        self._retry_at = 0.0
        self._syncing: trio.Event | None = None
        self._threads = trio.CapacityLimiter(1)
        self.floods = Floods(Flood)
        self.limited = Floods(Limited)
        self.records = 0
        self.written = 0
        self.synced = 0
        self.failing = False
        if chain.cut is not None:
            self.append(Torn(wall_ms(), *chain.cut))
        self.append(Start(wall_ms(), software, libraries))

    def __repr__(self) -> str:
        pending, lag = self.records - self.written, self.written - self.synced
        return f"Journal({self.records} records, {pending} pending, {lag} not durable)"

    @property
    def chain(self) -> ChainWriter:
        """The chain, for its identity and its durable end."""
        return self._chain

    def ready(self) -> bool:
        """Whether requests can be recorded; tries to write again where that failed."""
        if self.failing and time.monotonic() >= self._retry_at:
            try:
                self.flush()
            except RecordError:
                return False
        return not self.failing

    def append(self, record: AnyRecord) -> int:
        """Keep a record for the next flush; its number, from 1."""
        self._kept.append(record)
        self.records += 1
        return self.records

    def flush(self, room: Room = Room.ORDINARY) -> None:
        """Write every kept record.

        Args:
            room: Which room they may take.

        Raises:
            NoRoom: Not everything could be written; what was not is kept.
            SyncFailed: Nothing is written any more.
        """
        self._format()
        if not self._bodies:
            return
        try:
            for bodies in self._portions():
                self._chain.append(bodies, room)
                del self._bodies[: len(bodies)]
        except RecordError:
            self.failing = True
            self._retry_at = time.monotonic() + RETRY_S
            raise
        self.failing = False
        self.written = self.records
        if self._log is not None:
            self._unlogged += self._formatted
            self._formatted.clear()
            if len(self._unlogged) >= UNLOGGED_MAX:
                self.write_log()

    def _format(self) -> None:
        self._bodies += map(write_record, self._kept)
        if self._log is not None:
            self._formatted += self._kept
        self._kept.clear()

    def write_log(self) -> None:
        """Write the lines of what was written since the last time into the request log."""
        if self._log is not None and self._unlogged:
            lines = [_encode_line(export_record(record)) for record in self._unlogged]
            self._unlogged.clear()
            self._log.write(b"\n".join(lines) + b"\n")

    def _portions(self) -> list[list[bytes]]:
        """What is to be written, in as few writes as segments allow: almost always one."""
        size_max = self._chain.append_size_max
        sizes = [len(body) + FRAME_OVERHEAD for body in self._bodies]
        if sum(sizes) <= size_max:
            return [self._bodies[:]]
        portions: list[list[bytes]] = []
        left = 0
        for body, size in zip(self._bodies, sizes, strict=True):
            if size > left:
                portions.append([])
                left = size_max
            portions[-1].append(body)
            left -= size
        return portions

    async def durable(self, number: int) -> None:
        """Wait until a record is durable.

        Args:
            number: What `append` returned for it.

        Raises:
            NoRoom: It could not be written.
            SyncFailed: It may not be durable.
        """
        if self.written < number:
            self.flush()
        while self.synced < number:
            if self._syncing is not None:
                await self._syncing.wait()
            else:
                await self._sync()

    async def _sync(self) -> None:
        done = self._syncing = trio.Event()
        reached = self.written
        try:
            await trio.to_thread.run_sync(self._sync_files, limiter=self._threads)
            self.synced = reached
        finally:
            self._syncing = None
            done.set()

    def _sync_files(self) -> None:
        self._chain.sync()
        if not self._chain.has_spare:
            self._chain.prepare()

    async def keep_durable(self) -> None:
        """Make records durable that nobody waits for, log them, and look at clock and floods; runs
        for ever.

        Raises:
            SyncFailed: The process must end.
        """
        while True:
            self.look_at_clock()
            self._write_counts()
            self.write_log()
            if self.synced < self.written:
                await self.durable(self.written)
            await trio.sleep(LAG_S)

    def _write_counts(self) -> None:
        """Write what nobody's answer waits for: counts whose time is over, a jump of the clock."""
        for limited in self.limited.take(self._wall_ms()):
            self.append(limited)
        floods = self.floods.take(self._wall_ms())
        if self.failing:
            return
        try:
            self.flush()
            for flood in floods:
                self._chain.append([write_record(flood)], Room.FLOOD)
        except NoRoom:
            # Whoever floods gets no more room; requests have theirs.
            return

    def look_at_clock(self) -> None:
        """Record a jump of the wall clock, if there was one."""
        now = self._offset_ms()
        by_ms = now - self._clock_ms
        if abs(by_ms) >= CLOCK_JUMP_MS:
            self._clock_ms = now
            self.append(ClockJump(self._wall_ms(), by_ms))

    def _offset_ms(self) -> int:
        return self._wall_ms() - round(self._monotonic() * 1000)

    def close(self) -> None:
        """Write what is kept and that the process stops, make it durable and close the chain.

        Raises:
            NoRoom: Not everything was written.
            SyncFailed: Not everything is durable.
        """
        try:
            for limited in self.limited.take(self._wall_ms(), all_of_it=True):
                self.append(limited)
            for flood in self.floods.take(self._wall_ms(), all_of_it=True):
                self.append(flood)
            self.append(Stop(self._wall_ms(), self.records + 1))
            self.flush(Room.LAST)
        finally:
            self.write_log()
            self._chain.close()
        self.synced = self.written
