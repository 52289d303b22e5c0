"""What is old goes: segments past their time or room, and checkpoints that later ones hold.

Theory of operation
-------------------
What is removed must be told from what somebody took away. So nothing is removed before a record in
the chain says what goes, and a signed checkpoint holds that record; then the verifier begins where
the record ends and knows the head there, and believes nobody else. The record is in the present
segment, which is never removed, and whenever segments go both records are written anew: so the
newest of each is there as long as what it tells of is gone.

Records are written in one round and what they name is removed in the next, `INTERVAL_S` later, so
that a copy that is made meanwhile has the record with whatever it still has or has not. What dies
in between is done again, and a second record of the same is as good as the first.

Room for the record is that of the last ones: a full disk is when it is needed.
"""

from typing import Final, NamedTuple

import trio

from ..clock import now_ms
from ..logs import structlog
from .checkpoints import FILE_SIZE_MAX, Checkpoint
from .journal import Journal
from .records import CheckpointsRetired, Retired
from .segments import NoRoom, Past, Room
from .signing import CheckpointSigner

__all__ = ["INTERVAL_S", "Retention"]

log = structlog.get_logger("hsmux.audit")

INTERVAL_S: Final = 60.0
"""Seconds between looks at what is old, and from its record to its removal."""

_DAY_MS: Final = 24 * 3600 * 1000


class _Due(NamedTuple):
    """What is to be removed.

    Attributes:
        past: Segments, or None.
        checkpoint: The last checkpoint that goes; 0: none does.
    """

    past: Past | None
    checkpoint: int


class Retention:
    """Removes what is old from the log of a running gateway.

    Args:
        journal: Of the chain.
        signer: Of its checkpoints.
        keep_days: Days that records are kept; 0: for ever.
        keep_bytes: Bytes that segments may take; 0: any.
        checkpoints_size_max: Bytes of the file of checkpoints.
    """

    def __init__(
        self,
        journal: Journal,
        signer: CheckpointSigner,
        *,
        keep_days: int,
        keep_bytes: int,
        checkpoints_size_max: int = FILE_SIZE_MAX,
    ) -> None:
        self._journal = journal
        self._signer = signer
        self._keep_ms = keep_days * _DAY_MS
        self._keep_bytes = keep_bytes
        self._checkpoints_size_max = checkpoints_size_max
        self._due: _Due | None = None

    def __repr__(self) -> str:
        return f"Retention({self._due})"

    async def run_for_ever(self) -> None:
        """Do a round every `INTERVAL_S`.

        Raises:
            SyncFailed: The process must end.
        """
        while True:
            await self.run_once()
            await trio.sleep(INTERVAL_S)

    async def run_once(self) -> None:
        """Remove what is due, and write down what goes next.

        Raises:
            SyncFailed: The process must end.
        """
        try:
            due, self._due = self._due, None
            if due is not None:
                await self._remove(due)
            await self._announce()
        except (NoRoom, OSError) as error:
            log.warning("nothing is removed from the audit log this time", error=str(error))

    async def _remove(self, due: _Due) -> None:
        if due.past is not None:
            await trio.to_thread.run_sync(self._journal.chain.remove, due.past)
            log.info("removed segments of the audit log", up_to_record=due.past.sequence)
        if due.checkpoint:
            async with self._signer.turn:
                await trio.to_thread.run_sync(self._signer.file.remove, due.checkpoint)

    async def _announce(self) -> None:
        past = await trio.to_thread.run_sync(self._past)
        checkpoint = await self._worn_checkpoint()
        if past is None and checkpoint is None:
            return
        number = 0
        if past is not None:
            number = self._journal.append(Retired(now_ms(), *past))
        told = checkpoint or self._signer.file.first
        assert told is not None
        gone = (told.number, told.digest) if checkpoint else (told.number - 1, told.previous)
        if gone[0]:
            number = self._journal.append(CheckpointsRetired(now_ms(), *gone))
        self._journal.flush(Room.LAST)
        await self._journal.durable(number)
        end = self._journal.chain.synced
        await self._signer.sign()
        if self._signer.covered >= end.sequence:
            self._due = _Due(past, checkpoint.number if checkpoint else 0)

    def _past(self) -> Past | None:
        if not (self._keep_ms or self._keep_bytes):
            return None
        before_ms = now_ms() - self._keep_ms if self._keep_ms else 0
        return self._journal.chain.past(before_ms, self._signer.covered, self._keep_bytes)

    async def _worn_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint that goes because the file is too large, or None."""
        async with self._signer.turn:
            if self._signer.file.size <= self._checkpoints_size_max:
                return None
            return await trio.to_thread.run_sync(self._signer.file.older_half)
