"""The anchor: how new the store is, told from a place that a copy of the store does not bring back.

Theory of operation
-------------------
Seals and sums (`store.sealing`) find every change of a store but one: that all of it was put back
to an older copy. So what the store's state says, its revision and the sum over its rows, is also
written where the store is not: as private data objects in the token of the root key. A start
compares the two:

    the store is newer than the anchor      as it is after a crash: the anchor lags behind
    both are of one revision, same rows     as it is after a stop in order
    the store is older, or its rows differ  it was rolled back: refused, until an operator accepts

An anchor is written after what it tells was committed, at most every `INTERVAL_S` and at the stop:
created, made durable, read back, and only then the oldest destroyed, so that there are always two
of which one is whole. Whoever writes looks at the anchors first and at the store afterwards, so it
never finds the store older than an anchor that another process wrote meanwhile. Anchors are
numbered; the newest counts. An accepted roll-back gets the next number, and thereby counts more
than the newer store that is given up. And the store goes on `GIVEN_UP` revisions further than the
anchor told, where the one that is given up never came: put back later, it is older as well.

Several processes of a deployment may do this. None needs to be chosen: who finds that the newest
anchor tells the store's state, or is younger than `INTERVAL_S`, leaves it; and two that write at
the same time write two true anchors.

An anchor that is damaged says nothing, as if it were missing: who could damage it could as well
destroy it, and only who has the token's PIN can. What is in the store alone, or what whoever has
the token could do, is not what it is for. It also tells how far the writer's chain of the audit log
went, which shows a chain that was made shorter together with its checkpoints.

A token that keeps no data objects (NSS softokn) leaves a file in the instance directory, and a
development root file a file beside it: with a MAC like the others, they find a store that was put
back alone. `status` says so.
"""

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
import trio

from .clock import now_ms
from .config import Config
from .errors import OperatorError
from .foundation import token_failure
from .hsm.errors import TokenError, Unsupported
from .hsm.token import Token
from .instance import Instance, write_file
from .logs import structlog
from .root import ArenaSealer
from .store.errors import StoreError
from .store.rows import StateRow
from .store.store import Store

__all__ = [
    "INTERVAL_S",
    "NO_AUDIT",
    "Anchor",
    "AnchorKeeper",
    "AuditEnd",
    "FilePlace",
    "Place",
    "TokenPlace",
    "Verdict",
    "anchor_of",
    "judge",
    "make_keeper",
    "read_anchor",
    "write_anchor",
]

log = structlog.get_logger("hsmux.anchor")

INTERVAL_S: Final = 10.0
"""Seconds between anchors: how much can be rolled back without being noticed."""

LATE_S: Final = 60.0
"""Seconds an anchor may be behind the store before `status` warns."""

TIMEOUT_S: Final = 5.0
"""Seconds a token has for one step."""

KEPT: Final = 2
"""Anchors that are kept: one of them is whole, whenever a process dies."""

GIVEN_UP: Final = 1 << 32
"""Revisions after its last anchor that a store which is given up may have come to."""

FORMAT: Final = 1
MAC_SIZE: Final = 32
_MAC_KEY: Final = b"hsmux anchor 1\0"


class Anchor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an anchor tells.

    Attributes:
        format: `FORMAT`.
        deployment: 16 bytes.
        number: From 1; the anchor with the highest counts.
        revision: Of the store.
        rows: SHA-256 of the sum over the store's rows.
        at_ms: When it was written.
        chain: The writer's chain of the audit log, 16 bytes.
        sequence: The last durable record of that chain.
        head: The head after that record.
    """

    format: int
    deployment: bytes
    number: int
    revision: int
    rows: bytes
    at_ms: int
    chain: bytes
    sequence: int
    head: bytes

    @property
    def rank(self) -> tuple[int, int]:
        """Orders anchors: the highest counts."""
        return (self.number, self.revision)


class AuditEnd(NamedTuple):
    """How far a chain of the audit log is durable: its name, last record and head."""

    chain: bytes
    sequence: int
    head: bytes


NO_AUDIT: Final = AuditEnd(bytes(16), 0, bytes(32))
"""Of a process that keeps no chain."""


class Verdict(Enum):
    """What an anchor says about a store."""

    UNKNOWN = "there is no anchor"
    CURRENT = "the anchor tells this state"
    NEWER = "the store went on since"
    ROLLED_BACK = "the store is not what it was"


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Anchor).decode

Mac = Callable[[bytes], bytes]


def anchor_of(state: StateRow, deployment: bytes, number: int, at_ms: int, end: AuditEnd) -> Anchor:
    """The anchor of a state."""
    rows = sha256(state.rows_sum).digest()
    return Anchor(FORMAT, deployment, number, state.row_revision, rows, at_ms, *end)


def write_anchor(anchor: Anchor, mac: Mac) -> bytes:
    """An anchor as it is kept: canonical msgpack, then its MAC."""
    body = _encode(anchor)
    return body + mac(body)


def read_anchor(value: bytes, deployment: bytes, mac: Mac) -> Anchor | None:
    """The anchor that was kept, or None if it is not one that this deployment wrote."""
    body, found = value[:-MAC_SIZE], value[-MAC_SIZE:]
    if not hmac.compare_digest(mac(body), found):
        return None
    try:
        anchor = _decode(body)
    except msgspec.DecodeError:
        return None
    return anchor if (anchor.format, anchor.deployment) == (FORMAT, deployment) else None


def judge(state: StateRow, anchor: Anchor | None) -> Verdict:
    """What the newest anchor says about the store."""
    if anchor is None:
        return Verdict.UNKNOWN
    if state.row_revision > anchor.revision:
        return Verdict.NEWER
    is_same = sha256(state.rows_sum).digest() == anchor.rows
    if state.row_revision == anchor.revision and is_same:
        return Verdict.CURRENT
    return Verdict.ROLLED_BACK


class Place(Protocol):
    """Where anchors are kept."""

    warning: str

    async def read(self) -> list[bytes]:
        """Everything that is kept."""

    async def put(self, value: bytes) -> None:
        """Keep one more, durable and read back on return."""

    async def remove(self, value: bytes) -> None:
        """Keep one no longer."""


class TokenPlace:
    """Anchors as data objects in a token."""

    warning = ""

    def __init__(self, token: Token, deployment: bytes) -> None:
        self._token = token
        self._label = f"hsmux anchor {deployment.hex()}"

    async def read(self) -> list[bytes]:
        """See `Place`."""
        return await self._token.list_data(self._label, deadline=time.monotonic() + TIMEOUT_S)

    async def put(self, value: bytes) -> None:
        """See `Place`."""
        await self._token.put_data(self._label, value, deadline=time.monotonic() + TIMEOUT_S)

    async def remove(self, value: bytes) -> None:
        """See `Place`."""
        await self._token.remove_data(self._label, value, deadline=time.monotonic() + TIMEOUT_S)


class FilePlace:
    """The last anchor as a file, which is replaced as a whole or not at all.

    Args:
        path: The file.
        warning: What an operator should know about it.
    """

    def __init__(self, path: Path, warning: str = "") -> None:
        self._path = path
        self.warning = warning

    async def read(self) -> list[bytes]:
        """See `Place`."""
        try:
            return [await trio.to_thread.run_sync(self._path.read_bytes)]
        except FileNotFoundError:
            return []

    async def put(self, value: bytes) -> None:
        """See `Place`."""
        await trio.to_thread.run_sync(write_file, self._path, value)

    async def remove(self, value: bytes) -> None:
        """Nothing: there is only the last one."""


class _Found(NamedTuple):
    """An anchor, and where it was."""

    place: Place
    anchor: Anchor


@dataclass
class _Progress:
    """What `status` is told.

    Attributes:
        at_ms: Of the newest anchor, or None.
        behind_since: When the store was found to be newer than it, or None.
        failure: Why the last one could not be written.
    """

    at_ms: int | None = None
    behind_since: float | None = None
    failure: str = ""


class AnchorKeeper:
    """Compares store and anchor, and keeps the anchor new.

    Args:
        store: Unlocked.
        places: Where anchors may be; the first that can keep them does.
        mac: The keyed hash of anchors, 32 bytes.
        audit_end: How far this process' chain of the audit log is durable.
    """

    def __init__(
        self, store: Store, places: Sequence[Place], mac: Mac, audit_end: Callable[[], AuditEnd]
    ) -> None:
        self._store = store
        self._places = list(places)
        self._mac = mac
        self._audit_end = audit_end
        self._progress = _Progress()
        self._audit_is_short = False

    def __repr__(self) -> str:
        return f"AnchorKeeper({self._progress})"

    async def check(self, *, accept: bool) -> Anchor | None:
        """Compare the store with its anchor.

        Args:
            accept: Whether a roll-back is accepted.

        Returns:
            The anchor that says that the store was rolled back, if that is accepted: `write` has
            to follow. None: there is nothing to accept.

        Raises:
            OperatorError: The store was rolled back, or its anchor cannot be read now.
        """
        try:
            found, state = await self._look()
        except TokenError as error:
            raise token_failure("the anchor of the store cannot be read", error) from error
        except OSError as error:
            raise OperatorError(f"the anchor of the store cannot be read: {error}") from None
        if found is None:
            log.warning("the store has no anchor yet: it gets one now, as it is")
            return None
        newest, verdict = found.anchor, judge(state, found.anchor)
        self._progress.at_ms = newest.at_ms
        end = self._audit_end()
        self._audit_is_short = newest.chain == end.chain and newest.sequence > end.sequence
        if verdict is not Verdict.ROLLED_BACK:
            return None
        if not accept:
            raise _rolled_back(state, newest)
        return newest

    async def write(self, *, accept: bool = False, at_stop: bool = False) -> None:
        """Write an anchor if there is something new to tell.

        Args:
            accept: Whether what the anchor says about a roll-back is over.
            at_stop: Whether this is the last time, so that the interval does not count.

        Raises:
            OperatorError: The store was rolled back.
        """
        try:
            await self._write(accept, at_stop)
        except (TokenError, StoreError, OSError) as error:
            self._progress.failure = str(error)
            log.warning("no anchor of the store this time", error=str(error))

    async def _write(self, accept: bool, at_stop: bool) -> None:
        found, state = await self._look()
        newest = found.anchor if found else None
        verdict = judge(state, newest)
        if newest is not None and verdict is Verdict.ROLLED_BACK and not accept:
            raise _rolled_back(state, newest)
        if newest is not None and verdict is Verdict.ROLLED_BACK:
            goes_on = partial(self._store.skip_to, newest.revision + GIVEN_UP)
            state = await trio.to_thread.run_sync(goes_on)
        # One in another place than the best is moved, or shows that the best keeps none.
        if found is not None and found.place is self._places[0] and verdict is Verdict.CURRENT:
            self._progress = _Progress(at_ms=found.anchor.at_ms)
            return
        at_ms = now_ms()
        if verdict is Verdict.NEWER and newest is not None and not at_stop:
            if 0 <= at_ms - newest.at_ms < INTERVAL_S * 1000:
                self._progress = _Progress(at_ms=newest.at_ms)
                return
        if self._progress.behind_since is None:
            self._progress.behind_since = time.monotonic()
        number = newest.number + 1 if newest else 1
        anchor = anchor_of(state, self._store.deployment_id, number, at_ms, self._audit_end())
        await self._put(write_anchor(anchor, self._mac))
        self._progress = _Progress(at_ms=at_ms)
        await self._remove_old()

    async def _look(self) -> tuple["_Found | None", StateRow]:
        """The newest anchor, and the state of the store after it was read."""
        found = [
            _Found(place, anchor) for place, _, anchor in await self._read() if anchor is not None
        ]
        newest = max(found, key=lambda found: found.anchor.rank, default=None)
        return newest, await trio.to_thread.run_sync(self._store.state)

    async def _read(self) -> list[tuple[Place, bytes, Anchor | None]]:
        found = []
        for place in self._places:
            try:
                found += [(place, value) for value in await place.read()]
            except Unsupported:
                continue
        deployment = self._store.deployment_id
        return [(place, v, read_anchor(v, deployment, self._mac)) for place, v in found]

    async def _put(self, value: bytes) -> None:
        while True:
            try:
                await self._places[0].put(value)
                return
            except Unsupported as error:
                if len(self._places) == 1:
                    raise
                log.warning("no data objects in the token: the anchor is a file", error=str(error))
                del self._places[0]

    async def _remove_old(self) -> None:
        """Remove all but the newest; what is damaged goes first."""
        ranked = sorted(await self._read(), key=lambda found: found[2].rank if found[2] else (0, 0))
        for place, value, _ in ranked[:-KEPT]:
            await place.remove(value)

    async def keep(self) -> None:
        """Write an anchor every `INTERVAL_S` in which the store changed; runs for ever.

        Raises:
            OperatorError: The store was rolled back.
        """
        while True:
            await self.write()
            await trio.sleep(INTERVAL_S)

    def age_s(self) -> int | None:
        """Seconds since the newest anchor was written; None: there is none."""
        at_ms = self._progress.at_ms
        return None if at_ms is None else max(0, now_ms() - at_ms) // 1000

    def warnings(self) -> list[str]:
        """What an operator should know."""
        found = [self._places[0].warning] if self._places[0].warning else []
        since = self._progress.behind_since
        if since is not None and time.monotonic() - since > LATE_S:
            why = f": {self._progress.failure}" if self._progress.failure else ""
            found.append(f"the anchor of the store is not current{why}")
        if self._audit_is_short:
            found.append("the audit log ends before its anchor: `hsmux audit verify` tells more")
        return found


def _rolled_back(state: StateRow, anchor: Anchor) -> OperatorError:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(anchor.at_ms / 1000))
    was = f"was at revision {anchor.revision} at {at} and is at {state.row_revision} now"
    if state.row_revision == anchor.revision:
        was = f"is at revision {anchor.revision} as at {at}, with other rows"
    return OperatorError(
        f"the store was rolled back: it {was}. Give back the newest copy of it; or, if what was "
        "changed since is lost, revocations and disabled keys included, accept that once with "
        "`hsmux serve --accept-rollback` (docs/recovery.md)"
    )


_NO_OBJECTS: Final = (
    "the token keeps no data objects: the anchor of the store is a file in instance_dir, which is "
    "rolled back with it (docs/recovery.md)"
)


def make_keeper(
    config: Config,
    instance: Instance,
    sealer: ArenaSealer,
    tokens: dict[str, Token],
    store: Store,
    audit_end: Callable[[], AuditEnd],
) -> AnchorKeeper:
    """The keeper of a deployment's anchor: in the root's token, or beside the root file."""
    places: list[Place]
    if config.root.token:
        places = [
            TokenPlace(tokens[config.root.token], store.deployment_id),
            FilePlace(instance.path / "anchor", _NO_OBJECTS),
        ]
    else:
        places = [FilePlace(Path(f"{config.root.file}.anchor"))]
    return AnchorKeeper(store, places, sealer.derived_mac(_MAC_KEY), audit_end)
