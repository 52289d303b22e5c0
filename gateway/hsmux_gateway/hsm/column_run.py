"""One message's column through AES-GCM: every item gets its own fate, and the right one.

The C loop does the whole column in one call, and mostly that is all. What is left is done item by
item:

    late            its deadline passed before its turn
    suspect         answered as if its data were wrong: the key opens its own proof, and the item is
                    tried again, until it has failed `TRIES_TO_BLAME` times with a proof in between
                    and one at the end, all in one session. Then it is invalid: no burst of errors
                    looks like that, nor do two that come apart. One proof serves all suspects of a
                    column
    busy            this item and all that are left are for later
    other codes     a new session, the key proven in it, the item once more; then it is unavailable

Of the results one in `verify_every` is checked: the key proves itself again, what was encrypted is
decrypted, what was decrypted is decrypted again, and compared. A difference quarantines the key, or
ends the worker if the canary does not sing either; nothing of the column is told.
"""

import secrets
import struct
from collections.abc import Sequence
from typing import Any, Final

from hsmux_native.pkcs11 import DEADLINE, IV_SIZE, NOT_STARTED
from hsmux_protocol.columns import pack_column, unpack_column

from .application import TRIES_TO_BLAME, Application
from .failures import Ending, Failure
from .progress import Progress

__all__ = ["AGAIN", "DONE", "INVALID", "LATE", "UNAVAILABLE", "ColumnRun", "Sampler"]

DONE: Final = 0
INVALID: Final = 1
LATE: Final = 3
UNAVAILABLE: Final = 4
AGAIN: Final = 5
"""Statuses of an item; AGAIN: not done, by nobody's fault."""

_OFFSETS: Final = struct.Struct(">II")
_PENDING: Final = 255
_SUSPECT: Final = 254

ATTEMPTS: Final = 2
"""How often an item is tried that fails with a code of the device, in a new session each time."""

SUSPECT_ROUNDS: Final = 3
"""How often suspects are tried that a new session came in between of."""


class Sampler:
    """Says which results are checked: the first under a key in a session, and one in so many.

    Args:
        verify_every: In how many.
    """

    def __init__(self, verify_every: int) -> None:
        self._every = verify_every
        self._session = 0
        self._left: dict[bytes, int] = {}

    def choose(self, session: int, cka_id: bytes, count: int) -> range:
        """Numbers, below `count`, of the results to check."""
        if session != self._session:
            self._session = session
            self._left.clear()
        left = self._left.get(cka_id, 0)
        self._left[cka_id] = (left - count) % self._every
        return range(left, count, self._every)


class ColumnRun:
    """A column on its way.

    Args:
        application: Does it.
        progress: Where the running item is published.
        sampler: Says which results are checked.
        key: CKA_ID, spec and proof of the key.
        items: A column.
        associated_data: A column of one, or one for each item.
        deadlines_ns: One, or one for each item.
        encrypting: The direction.
    """

    def __init__(
        self,
        application: Application,
        progress: Progress,
        sampler: Sampler,
        key: tuple[bytes, str, bytes],
        items: bytes,
        associated_data: bytes,
        deadlines_ns: Sequence[int],
        *,
        encrypting: bool,
    ) -> None:
        self.ending: Ending | None = None
        self._application = application
        self._progress = progress
        self._sampler = sampler
        self._key_name = key
        self._column = items
        self._aads_column = associated_data
        self._deadlines_ns = deadlines_ns
        self._encrypting = encrypting
        self._operation = "encrypt" if encrypting else "decrypt"
        self._count = _count(items)
        # Filled only when the C loop did not do all of it.
        self._items: list[bytes] = []
        self._aads: list[bytes] = []
        self._outputs: list[bytes] = []
        self._statuses: list[int] = []
        self._attempts: dict[int, int] = {}

    def run(self) -> list[Any]:
        """Outputs as a column, and a status for each item.

        Raises:
            Failure: The key cannot be used.
            Ending: The worker has to end before anything was done. If something was,
                `ending` says so instead.
        """
        key = self._application.secret_key(*self._key_name)
        outputs, codes = self._application.loop.gcm(
            self._application.work.handle,
            key.handle,
            self._column,
            self._aads_column,
            encrypting=self._encrypting,
            ivs=secrets.token_bytes(IV_SIZE * self._count) if self._encrypting else b"",
            deadline_ns=self._deadlines_ns,
            progress=self._progress.item,
            general_error_is_data=self._application.general_error_is_data,
        )
        if not any(codes):
            for index in self._choose(self._count):
                aad = _item(self._aads_column, min(index, _count(self._aads_column) - 1))
                self._check(index, _item(self._column, index), _item(outputs, index), aad)
            return [outputs, bytes(self._count)]
        self._open(outputs)
        self._statuses = [self._status_of(code) for code in codes]
        try:
            self._finish(codes)
        except Ending as ending:
            self.ending = ending
        self._statuses = [AGAIN if s in (_PENDING, _SUSPECT) else s for s in self._statuses]
        done = [index for index, status in enumerate(self._statuses) if status == DONE]
        for place in self._choose(len(done)) if self.ending is None else ():
            index = done[place]
            self._check(index, self._items[index], self._outputs[index], self._aads[index])
        return [pack_column(self._outputs), bytes(self._statuses)]

    def _choose(self, count: int) -> range:
        return self._sampler.choose(self._application.session_number, self._key_name[0], count)

    def _open(self, outputs: bytes) -> None:
        aads = unpack_column(self._aads_column)
        self._items, self._outputs = unpack_column(self._column), unpack_column(outputs)
        self._aads = aads * self._count if len(aads) == 1 else aads

    def _status_of(self, code: int) -> int:
        if code in (0, DEADLINE):
            return DONE if code == 0 else LATE
        kind = "" if code == NOT_STARTED else self._application.class_of(code, self._operation)
        return _SUSPECT if kind in ("caller", "suspect") else _PENDING

    def _finish(self, codes: Sequence[int]) -> None:
        """Decide about every item that the C loop left open."""
        for index, status in enumerate(self._statuses):
            if status == _PENDING and codes[index] != NOT_STARTED:
                self._failed(index, codes[index])
                break
        while _PENDING in self._statuses:
            self._try(self._statuses.index(_PENDING))
        for _ in range(SUSPECT_ROUNDS):
            if _SUSPECT not in self._statuses or self._clear_suspects():
                return
        self._statuses = [UNAVAILABLE if s == _SUSPECT else s for s in self._statuses]

    def _try(self, index: int) -> None:
        """One item, once more."""
        deadlines = self._deadlines_ns
        self._progress.enter(index + 1)
        key = self._application.secret_key(*self._key_name)
        outputs, codes = self._application.loop.gcm(
            self._application.work.handle,
            key.handle,
            pack_column([self._items[index]]),
            pack_column([self._aads[index]]),
            encrypting=self._encrypting,
            ivs=secrets.token_bytes(IV_SIZE) if self._encrypting else b"",
            deadline_ns=deadlines[0 if len(deadlines) == 1 else index],
        )
        self._progress.enter(0)
        self._statuses[index] = self._status_of(codes[0])
        self._outputs[index] = unpack_column(outputs)[0]
        if self._statuses[index] == _PENDING:
            self._failed(index, codes[0])

    def _failed(self, index: int, code: int) -> None:
        """A code that does not speak of the item's data."""
        failure = self._application.failed(code, self._operation, self._operation)
        self._attempts[index] = self._attempts.get(index, 0) + 1
        if failure.kind == "busy":
            self._statuses = [AGAIN if s == _PENDING else s for s in self._statuses]
        elif self._attempts[index] >= ATTEMPTS:
            self._statuses[index] = UNAVAILABLE
        self._application.renew(failure)

    def _clear_suspects(self) -> bool:
        """Try suspects again, each time between proofs of the key; False: a session ended."""
        session = self._application.session_number
        suspects = [index for index, status in enumerate(self._statuses) if status == _SUSPECT]
        self._require_proof()
        for _ in range(TRIES_TO_BLAME - 1):
            for index in suspects:
                self._try(index)
                while self._statuses[index] == _PENDING:
                    self._try(index)
            suspects = [index for index in suspects if self._statuses[index] == _SUSPECT]
            if not suspects or self._application.session_number != session:
                return not suspects
            self._require_proof()
        for index in suspects:
            self._statuses[index] = INVALID
        return True

    def _require_proof(self) -> None:
        cka_id, _, proof = self._key_name
        key = self._application.secret_key(*self._key_name)
        if not self._application.opens_proof(key, cka_id, proof):
            raise Failure("wrong", 0, "a key does not open its proof any more")

    def _check(self, index: int, item: bytes, output: bytes, aad: bytes) -> None:
        """Have the key prove itself again, open a result again, and compare.

        Raises:
            Failure: Of kind "wrong": the module's answers cannot be trusted.
        """
        application = self._application
        self._require_proof()
        key = application.secret_key(*self._key_name)
        sealed, plain = (output, item) if self._encrypting else (item, output)
        self._progress.enter(index + 1)
        code, opened = application.gcm_one(application.work, key, sealed, aad, False)
        self._progress.enter(0)
        if code == 0 and opened == plain:
            return
        if code and application.class_of(code, "decrypt") not in ("caller", "suspect"):
            raise application.failed(code, "decrypt", "a result could not be checked")
        raise Failure("wrong", code, f"{self._operation}: a result that does not open")


def _count(column: bytes) -> int:
    return int.from_bytes(column[:4], "big")


def _item(column: bytes, index: int) -> bytes:
    """One item of a column that is known to be well formed."""
    begin, end = _OFFSETS.unpack_from(column, 4 + 4 * index)
    start = 4 * (_count(column) + 2)
    return column[start + begin : start + end]
