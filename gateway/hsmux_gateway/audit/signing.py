"""Checkpoints of a running gateway: how far its chain went, signed again and again.

A checkpoint is signed when the gateway starts, every `INTERVAL_S` in which there were new records,
and when it has stopped. It says only what is durable, so a chain that is found shorter was made
shorter by somebody. While the key is away, records are written all the same, and the next signature
holds them too.
"""

import os
from collections.abc import Callable
from typing import Final

import trio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from ..clock import now_ms
from ..hsm.errors import TokenError
from ..logs import structlog
from .checkpoints import CheckpointFile, sealed_note
from .journal import Journal
from .segments import ChainEnd, NoRoom

__all__ = ["INTERVAL_S", "CheckpointSigner"]

log = structlog.get_logger("hsmux.audit")

INTERVAL_S: Final = 10.0
"""Seconds between checkpoints: what is behind the last one is held by its chain alone."""


class CheckpointSigner:
    """Signs how far the chain of a journal went.

    Args:
        file: Where checkpoints are stored; closed with the signer.
        journal: Of the chain.
        deployment: 16 bytes.
        open_key: The private key, for one signature; using it blocks.
        lock: The descriptor that holds the log for this gateway; closed with the signer.

    Attributes:
        file: Where checkpoints are stored; whoever else changes it holds `turn`.
        turn: Whoever changes the file has it.
    """

    def __init__(
        self,
        file: CheckpointFile,
        journal: Journal,
        deployment: bytes,
        open_key: Callable[[], ec.EllipticCurvePrivateKey],
        lock: int,
    ) -> None:
        self.file = file
        self.turn = trio.Lock()
        self._lock = lock
        self._journal = journal
        self._deployment = deployment
        self._open_key = open_key

    def __repr__(self) -> str:
        return f"CheckpointSigner({self.file!r})"

    async def sign(self) -> None:
        """Sign what is durable, if there is something new.

        Raises:
            SyncFailed: The process must end.
        """
        async with self.turn:
            end = self._journal.chain.synced
            if self.covered == end.sequence and self.file.last is not None:
                return
            try:
                await trio.to_thread.run_sync(self._sign, end)
            except (TokenError, NoRoom, OSError) as error:
                log.warning("no checkpoint of the audit log this time", error=str(error))

    @property
    def covered(self) -> int:
        """The last record of the chain that a checkpoint holds; 0 if none does."""
        last = self.file.last
        end = None if last is None else last.chains.get(self._journal.chain.chain)
        return 0 if end is None else end.sequence

    def _sign(self, end: ChainEnd) -> None:
        at_ms = now_ms()
        text = self.file.text(self._deployment, at_ms, {self._journal.chain.chain: end})
        key = self._open_key()
        der = key.sign(text, ec.ECDSA(hashes.SHA256()))
        self.file.append(sealed_note(text, self._deployment, key.public_key(), der))

    async def sign_for_ever(self) -> None:
        """Sign every `INTERVAL_S`; runs for ever.

        Raises:
            SyncFailed: The process must end.
        """
        while True:
            await trio.sleep(INTERVAL_S)
            await self.sign()

    def close(self) -> None:
        """Close the file, and let others have the log."""
        self.file.close()
        os.close(self._lock)
