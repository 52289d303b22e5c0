"""The store: one revision, sealed rows, transactions of pieces of work.

Theory of operation. One row, `state`, holds the revision of the whole store; every writing
transaction takes it first (SQLite: BEGIN IMMEDIATE; PostgreSQL: its row lock) and writes it last.
So writing transactions happen one after the other, a higher revision was committed later, and a
reader who has seen revision r has seen everything up to r. (A sequence would hand out numbers
that commit in another order, and a revocation could be missed.) Whoever keeps rows in memory
polls `revision` and asks `read_changes` for what came since.

A piece of work is a function of a `Transaction`. Several can share one commit (`write_group`):
each has its own savepoint and its own revision, and one that fails costs the others nothing. If
the database itself fails, none of the group is written and all learn the same error. A work may
run and then not be committed, so it must have no effect besides its writes.

How a store comes to life:

    create   makes tables, deployment and state: the store is bare, its rows are unsealed
    reseal   seals every row under the first key-encryption key: from now on it is sealed
    open     finds a store of this version; `bootstrap` reads, unchecked, what leads to the
             key-encryption key; `unlock` gives the sealer and checks what was read
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, NoReturn, TypeAlias, TypeVar

import msgspec

from .backend import Backend, Rows
from .errors import (
    DATABASE_FAILED,
    RowsChanged,
    SchemaMismatch,
    SealBroken,
    StoreDamaged,
    StoreRolledBack,
)
from .memory import MemoryBackend
from .opening import BUSY_TIMEOUT_S, FirstRows, create_database, open_database
from .rows import (
    DEPLOYMENT,
    KEK_SEALS,
    KEKS,
    ROOTS,
    STATE,
    SUMMED,
    AccessPointRow,
    AliasRow,
    ClientKeyRow,
    DeploymentRow,
    GatewayKeyRow,
    KekRow,
    KekSealRow,
    KeyRow,
    KeyVersionRow,
    MtlsBindingRow,
    NetworkRuleRow,
    PolicyRow,
    RootRow,
    Row,
    SettingRow,
    StateRow,
    Table,
)
from .sealing import RowSealer, RowSeals, Stored
from .transaction import Reader, Transaction

__all__ = ["FORMAT", "Bootstrap", "Changes", "Done", "Failed", "Result", "Store", "Work"]

FORMAT: Final = 1
"""The format of sealed rows."""
_SINGLETON: Final = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A work of a group that was committed, and what it returned."""

    value: T

    def get(self) -> T:
        """What the work returned."""
        return self.value


@dataclass(frozen=True, slots=True)
class Failed:
    """A work of a group that raised; nothing of it was written."""

    error: Exception

    def get(self) -> NoReturn:
        """Raises what the work raised."""
        raise self.error


Result: TypeAlias = Done[T] | Failed
Work: TypeAlias = Callable[[Transaction], T]


class Bootstrap(msgspec.Struct, frozen=True):
    """What leads to the key-encryption key. Unchecked: `Store.unlock` checks it."""

    deployment: DeploymentRow
    roots: list[RootRow]
    keks: list[KekRow]
    kek_seals: list[KekSealRow]

    @property
    def bare(self) -> bool:
        """Whether `init` has not finished: there is no key-encryption key yet."""
        return not self.keks


class Changes(msgspec.Struct, frozen=True):
    """The rows that processes keep in memory, as far as they changed.

    Attributes:
        revision: The revision these rows bring their reader to.
    """

    revision: int
    roots: list[RootRow] = []
    keks: list[KekRow] = []
    kek_seals: list[KekSealRow] = []
    gateway_keys: list[GatewayKeyRow] = []
    keys: list[KeyRow] = []
    key_versions: list[KeyVersionRow] = []
    aliases: list[AliasRow] = []
    access_points: list[AccessPointRow] = []
    client_keys: list[ClientKeyRow] = []
    policies: list[PolicyRow] = []
    network_rules: list[NetworkRuleRow] = []
    mtls_bindings: list[MtlsBindingRow] = []
    settings: list[SettingRow] = []


_BOOTSTRAP: Final[tuple[Table[Any], ...]] = (DEPLOYMENT, ROOTS, KEKS, KEK_SEALS)
_FOLLOWED: Final = tuple(table for table in SUMMED if table.followed)


class Store:
    """A store, over a database (`open`, `create`) or the in-memory twin (`in_memory`).

    All methods block and may be called from any thread; a Trio program calls them through a
    limiter, and writes through a `StoreWriter`.
    """

    def __init__(self, backend: Backend) -> None:
        """Finds the deployment of a backend; programs call `open`, `create` or `in_memory`.

        Raises:
            SchemaMismatch: There is no deployment, or it is of another format.
        """
        self._backend = backend
        self._damage: StoreDamaged | None = None
        self._seen = 0
        self._works_done = 0
        self._commits_done = 0
        with self._reading() as (rows, _):
            stored = rows.fetch(DEPLOYMENT, (_SINGLETON,))
        if stored is None:
            raise SchemaMismatch("there is no deployment in this store: run hsmux init")
        deployment = RowSeals(b"", None).peek(DEPLOYMENT, stored)
        if deployment.format != FORMAT:
            raise SchemaMismatch(
                f"the store is of format {deployment.format}, this hsmux knows {FORMAT}: "
                "install the hsmux that made it"
            )
        self._seals = RowSeals(deployment.deployment_id, None)

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "Store":
        """Open a store that `create` made.

        Args:
            url: "sqlite:////absolute/path" or "postgresql://...".
            busy_timeout_s: How long to wait for others that write, in seconds.

        Raises:
            SchemaMismatch: There is none, or it is older or newer than this program.
            UnsafeStore: Others could read or change it, or commits are not durable.
            StoreUnavailable, StoreBusy, StoreDamaged: It cannot be read now.
        """
        return cls._over(open_database(url, busy_timeout_s))

    @classmethod
    def create(
        cls,
        url: str,
        *,
        deployment_id: bytes,
        created_at_ms: int,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> "Store":
        """Make a bare store, as a whole or not at all, or open the one that is there.

        A store that is there keeps its own deployment; what `open` raises, this raises too.
        """
        first = _first_rows(deployment_id, created_at_ms)
        return cls._over(create_database(url, busy_timeout_s, first))

    @classmethod
    def in_memory(cls, *, deployment_id: bytes, created_at_ms: int) -> "Store":
        """A bare store that is gone with the process: for tests of what stands on the store."""
        backend = MemoryBackend()
        with backend.begin() as rows:
            for table, stored in _first_rows(deployment_id, created_at_ms):
                rows.insert(table, stored)
        return cls(backend)

    @classmethod
    def _over(cls, backend: Backend) -> "Store":
        try:
            return cls(backend)
        except BaseException:
            backend.close()
            raise

    @property
    def deployment_id(self) -> bytes:
        """16 bytes."""
        return self._seals.deployment_id

    def __repr__(self) -> str:
        kek = self._seals.sealer.kek_id.hex() if self._seals.sealer else "none"
        done = f"{self._works_done} works in {self._commits_done} commits"
        return f"Store({self._backend!r}, kek {kek}, {done})"

    def close(self) -> None:
        """Give up all connections."""
        self._backend.close()

    def bootstrap(self) -> Bootstrap:
        """What leads to the key-encryption key, unchecked."""
        with self._reading() as (rows, _):
            stored = rows.fetch(DEPLOYMENT, (_SINGLETON,))
            if stored is None:
                raise SealBroken(DEPLOYMENT.name, (_SINGLETON,))
            peek = self._seals.peek
            return Bootstrap(
                peek(DEPLOYMENT, stored),
                [peek(ROOTS, stored) for stored in rows.find(ROOTS, {})],
                [peek(KEKS, stored) for stored in rows.find(KEKS, {})],
                [peek(KEK_SEALS, stored) for stored in rows.find(KEK_SEALS, {})],
            )

    def unlock(self, sealer: RowSealer) -> None:
        """Give the sealer of a sealed store; checks everything `bootstrap` has read.

        Raises:
            SealBroken: It does not open this store's rows.
        """
        seals = RowSeals(self.deployment_id, sealer)
        with self._reading() as (rows, _):
            _state(rows, seals)
            for table in _BOOTSTRAP:
                for stored in rows.find(table, {}):
                    seals.load(table, stored)
        self._seals = seals

    def reseal(self, sealer: RowSealer, work: Work[T]) -> T:
        """Do a work and seal every row anew, in one transaction; the sealer is used from then on.

        It ends `init` (the work writes the root, the key-encryption key and its seal) and is how
        a deployment goes over to a new key-encryption key. It reads one table at a time into
        memory and keeps others from writing until it is done.

        Raises:
            What `write` raises.
        """
        seals = RowSeals(self.deployment_id, sealer)
        with self._writing() as (rows, floor):
            state = self._state(rows, floor, lock=True)
            transaction = Transaction(rows, self._seals, state.row_revision + 1)
            value = work(transaction)
            before = after = 0
            for table in SUMMED:
                for stored in rows.find(table, {}):
                    resealed = self._reseal_row(rows, seals, table, stored, transaction.revision)
                    before += self._seals.term(stored)
                    after += seals.term(resealed)
            _require_sum(self._seals, state, before - transaction.difference)
            _write_state(rows, seals, state, transaction.revision, after)
        self._seals = seals
        return value

    def _reseal_row(
        self, rows: Rows, seals: RowSeals, table: Table[Any], stored: Stored, revision: int
    ) -> Stored:
        row = self._seals.load(table, stored)
        resealed = seals.store(table, row, revision)
        rows.replace(table, resealed, row.row_revision)
        return resealed

    def write(self, work: Work[T]) -> T:
        """Do a work in a transaction of its own; returns once it is durable.

        Raises:
            Conflict, SealBroken: From the work's reads and writes.
            StoreBusy, StoreFull, StoreUnavailable: Nothing was written.
            CommitUnknown: It was written as a whole or not at all.
            StoreDamaged: As `CommitUnknown`, and this process has to end.
            StoreLocked: The store is sealed and not unlocked.
        """
        (result,) = self.write_group([work])
        return result.get()

    def write_group(self, works: Sequence[Work[T]]) -> list[Result[T]]:
        """Do several works with one commit, each by itself; their results, in order.

        Raises:
            StoreError: The database failed as `write` says, for all of the group.
        """
        with self._writing() as (rows, floor):
            state = self._state(rows, floor, lock=True)
            revision, total = state.row_revision, int.from_bytes(state.rows_sum)
            results: list[Result[T]] = []
            for work in works:
                transaction = Transaction(rows, self._seals, revision + 1)
                results.append(self._attempt(rows, work, transaction))
                if isinstance(results[-1], Done):
                    revision += 1
                    total += transaction.difference
            if revision > state.row_revision:
                _write_state(rows, self._seals, state, revision, total)
        self._seen = max(self._seen, revision)
        self._commits_done += 1
        self._works_done += len(works)
        return results

    def _attempt(self, rows: Rows, work: Work[T], transaction: Transaction) -> Result[T]:
        try:
            with rows.savepoint():
                return Done(work(transaction))
        except DATABASE_FAILED:
            raise
        except Exception as error:
            # Not gone on with: `Failed.get` raises it to whoever brought the work.
            return Failed(error)

    def read(self, work: Callable[[Reader], T]) -> T:
        """Do a reading work that sees one state of the store.

        Raises:
            SealBroken: A row it read was changed outside of hsmux.
            StoreUnavailable, StoreBusy, StoreDamaged: It could not be read now.
            StoreLocked: The store is sealed and not unlocked.
        """
        with self._reading() as (rows, floor):
            return work(Reader(rows, self._seals, self._state(rows, floor).row_revision))

    def revision(self) -> int:
        """The store's revision now; raises what `read` raises."""
        return self.state().row_revision

    def state(self) -> StateRow:
        """The store's revision and the sum over its rows now; raises what `read` raises."""
        with self._reading() as (rows, floor):
            return self._state(rows, floor)

    def skip_to(self, revision: int) -> StateRow:
        """Let the store go on at a revision, unless it is beyond that already; its state then.

        Raises:
            What `write` raises.
        """
        with self._writing() as (rows, floor):
            state = self._state(rows, floor, lock=True)
            if state.row_revision < revision:
                total = int.from_bytes(state.rows_sum)
                _write_state(rows, self._seals, state, revision, total)
        return self.state()

    def read_changes(self, since_revision: int) -> Changes:
        """All rows that processes keep in memory and that were written after a revision.

        Whoever asks for everything has everything checked: each row of each table is opened, and
        together they are what the state says.

        Args:
            since_revision: The `Changes.revision` before, or 0 for everything.

        Raises:
            RowsChanged: Rows are missing or old.
            What `read` raises.
        """
        lists: dict[type[Row], list[Any]] = {table.row: [] for table in _FOLLOWED}
        revision = self.each_change(since_revision, lambda row: lists[type(row)].append(row))
        return Changes(revision, *(lists[table.row] for table in _FOLLOWED))

    def each_change(self, since_revision: int, consume: Callable[[Row], object]) -> int:
        """The same, one row at a time: for whoever builds something else of them.

        Rows of a table come together, tables after those they refer to. Who asks for everything may
        use it only after this has returned: the sum over all rows is checked last.

        Returns:
            The revision these rows bring their reader to.
        """
        with self._reading() as (rows, floor):
            state = self._state(rows, floor)
            if not since_revision:
                total = 0
                for table in SUMMED:
                    consumer = consume if table.followed else _ignore
                    for stored in self._consume(rows, table, 0, state.row_revision, consumer):
                        total += self._seals.term(stored)
                _require_sum(self._seals, state, total)
            elif state.row_revision > since_revision:
                for table in _FOLLOWED:
                    for _ in self._consume(
                        rows, table, since_revision, state.row_revision, consume
                    ):
                        pass
        return state.row_revision

    def _consume(
        self,
        rows: Rows,
        table: Table[Any],
        since_revision: int,
        revision: int,
        consume: Callable[[Row], object],
    ) -> Iterator[Stored]:
        load = self._seals.load
        for stored in rows.changed(table, since_revision):
            row = load(table, stored)
            if row.row_revision > revision:
                # A genuine row of the future: the state row was put back to an older copy.
                raise SealBroken(STATE.name, (_SINGLETON,))
            consume(row)
            yield stored

    def _state(self, rows: Rows, floor: int, *, lock: bool = False) -> StateRow:
        """The state, which must not be older than what was seen before the transaction began."""
        state = _state(rows, self._seals, lock=lock)
        if state.row_revision < floor:
            raise StoreRolledBack("the store is older than it was: it was put back meanwhile")
        self._seen = max(self._seen, state.row_revision)
        return state

    def _reading(self) -> AbstractContextManager[tuple[Rows, int]]:
        return self._noting_damage(self._backend.snapshot())

    def _writing(self) -> AbstractContextManager[tuple[Rows, int]]:
        return self._noting_damage(self._backend.begin())

    @contextmanager
    def _noting_damage(
        self, transaction: AbstractContextManager[Rows]
    ) -> Iterator[tuple[Rows, int]]:
        """A transaction's rows, and the newest revision that was seen before it began."""
        floor = self._seen
        if self._damage is not None:
            raise StoreDamaged("the database failed earlier: this process has to end")
        try:
            with transaction as rows:
                yield rows, floor
        except StoreDamaged as error:
            self._damage = error
            raise


def _state(rows: Rows, seals: RowSeals, *, lock: bool = False) -> StateRow:
    stored = rows.fetch(STATE, (_SINGLETON,), lock=lock)
    if stored is None:
        raise SealBroken(STATE.name, (_SINGLETON,))
    return seals.load(STATE, stored)


def _write_state(rows: Rows, seals: RowSeals, before: StateRow, revision: int, total: int) -> None:
    state = StateRow(before.singleton, seals.sum_bytes(total))
    rows.replace(STATE, seals.store(STATE, state, revision), before.row_revision)


def _require_sum(seals: RowSeals, state: StateRow, total: int) -> None:
    if state.rows_sum != seals.sum_bytes(total):
        raise RowsChanged


def _ignore(_row: Row) -> None:
    """For rows that only have to be opened."""


def _first_rows(deployment_id: bytes, created_at_ms: int) -> FirstRows:
    seals = RowSeals(deployment_id, None)
    deployment = DeploymentRow(_SINGLETON, deployment_id, FORMAT, created_at_ms)
    return [
        (DEPLOYMENT, seals.store(DEPLOYMENT, deployment, 0)),
        (STATE, seals.store(STATE, StateRow(_SINGLETON), 0)),
    ]
