"""Records of changes: stored with the change, appended once, whoever dies in between."""

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from hsmux_gateway import effects as effects_module
from hsmux_gateway.access.first_policies import EVERYTHING
from hsmux_gateway.access.grants import Grants
from hsmux_gateway.audit import recovery as recovery_module
from hsmux_gateway.audit.outbox import LEASE_MS, UNWAITED, Outbox
from hsmux_gateway.audit.recovery import Recovery
from hsmux_gateway.audit.segments import SyncFailed
from hsmux_gateway.call import Call
from hsmux_gateway.catalog import Catalog
from hsmux_gateway.clock import now_ms
from hsmux_gateway.effects import Effects
from hsmux_gateway.engine import Engine
from hsmux_gateway.metrics import Metrics
from hsmux_gateway.store import OutboxRow, PolicyRow, Store, StoreWriter, Transaction
from hsmux_protocol.errors import Busy, Conflict, Denied, HsmuxError, InternalError, OutcomeUnknown
from hsmux_protocol.records import PolicyRecord
from tests.gateway.journals import RECORDS, open_journal, records_in
from tests.gateway.parts import Permissive, Unasked, make_call
from tests.gateway.store.sealer import AesSealer
from tests.gateway.test_engine import Everybody

DOCUMENT = json.dumps({"statements": [{"effect": "allow", "role": "auditor", "resources": ["*"]}]})


class Life:
    """What one process has: a journal, an outbox, a way to the store."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self.store = root, store
        self.journal = open_journal(root)
        self.outbox = Outbox(self.journal, RECORDS)
        self.permits: Any = Permissive()
        self.writer = StoreWriter(store)
        self.catalog = Catalog()
        self.effects = Effects(store, self.writer, self.catalog, self, self.outbox, Unasked())
        self.recovery = Recovery(self.outbox, self.effects, self.journal, root)
        self.after: Callable[[], None] = lambda: None
        identities = Everybody()
        identities.grants = Grants({"everything": EVERYTHING}, {})
        self.engine = Engine(
            {"put_policy": self._put_policy},
            identities=identities,
            memory=self.effects,
            journal=self.journal,
            records=RECORDS,
            outbox=self.outbox,
            metrics=Metrics(),
            requests_max=10,
        )

    def require(self, call: Call, decided: Callable[[str], None]) -> None:
        """As the permits of the test want it."""
        self.permits.require(call, decided)

    def require_unchanged(self, reader: Any, call: Call, since: int) -> None:
        """As the permits of the test want it."""
        self.permits.require_unchanged(reader, call, since)

    async def _put_policy(self, call: Call, name: str, document: str) -> list[Any]:
        def effect(transaction: Transaction) -> list[Any]:
            transaction.insert(PolicyRow(name, document, 1))
            return [PolicyRecord(name, "", 1, 0, 1)]

        values = await self.effects.apply(call, effect)
        self.after()
        return values

    async def put(self, name: str, **options: Any) -> None:
        """Put a policy, through the engine."""
        call = make_call("put_policy", name, DOCUMENT, **options)
        await self.engine.call(call._replace(reference=f"r-{name}-1"))

    def rows(self) -> list[OutboxRow]:
        """What is in the outbox."""
        return self.store.read(lambda reader: reader.select(OutboxRow))

    def told(self) -> list[tuple[str, str, str]]:
        """Kind, resource and outcome of every request on record."""
        return [
            (record["kind"], record["resource"], record["outcome"])
            for record in records_in(self.root)
            if "resource" in record
        ]


@pytest.fixture
def store() -> Store:
    """A store, sealed."""
    store = Store.in_memory(deployment_id=bytes(16), created_at_ms=1)
    store.reseal(AesSealer(), lambda transaction: None)
    return store


@asynccontextmanager
async def living(root: Path, store: Store) -> AsyncIterator[Life]:
    """A process from its start to its end; what is not flushed by then is lost, as by a kill."""
    life = Life(root, store)
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await life.writer.run(task_status=task_status)

        await nursery.start(run)
        await life.effects.refresh()
        try:
            yield life
        finally:
            nursery.cancel_scope.cancel()
            life.journal.chain.close()


async def test_a_record_is_stored_with_its_change_and_removed_when_it_is_durable(
    tmp_path: Path, store: Store
) -> None:
    async with living(tmp_path, store) as life:
        await life.put("a")
        (row,) = life.rows()
        assert row.chain == life.journal.chain.chain and b"r-a-1" in row.record
        # Written is not durable: a power cut would take it.
        life.journal.flush()
        await life.recovery.settle()
        assert len(life.rows()) == 1
        await life.journal.durable(life.journal.records)
        await life.recovery.settle()
        assert life.rows() == []
        assert life.told() == [("request", "a", "done")]


async def test_a_change_whose_process_died_is_appended_by_the_next(
    tmp_path: Path, store: Store
) -> None:
    async with living(tmp_path, store) as life:
        await life.put("written")
        life.journal.flush()
        await life.put("lost")
        meant_for = life.journal.chain.chain.hex()
    async with living(tmp_path, store) as life:
        assert life.told() == [("request", "written", "done")]
        await life.recovery.recover()
        assert life.told()[1:] == [("recovered", "lost", "done")]
        (record,) = (one for one in records_in(tmp_path) if one["kind"] == "recovered")
        assert record["meant_for"] == meant_for and record["reference"] == "r-lost-1"
        assert record["made_at"] <= record["at"]
        # What was on record already is not waited for, what is new is until it is durable.
        assert len(life.rows()) == 1
        await life.recovery.recover()
        assert len(life.told()) == 2
        await life.journal.durable(life.journal.records)
        await life.recovery.settle()
        assert life.rows() == []


@pytest.mark.parametrize("is_written", [False, True])
async def test_a_recovery_that_dies_is_recovered_from(
    tmp_path: Path, store: Store, is_written: bool
) -> None:
    async with living(tmp_path, store) as life:
        await life.put("lost")
    async with living(tmp_path, store) as life:
        if not is_written:
            # Its write fails, and it dies with the record in its memory.
            life.journal.flush = lambda *_: None  # type: ignore[method-assign]
        await life.recovery.recover()
        assert len(life.told()) == is_written
        assert len(life.rows()) == 1
    async with living(tmp_path, store) as life:
        await life.recovery.recover()
        assert life.told() == [("recovered", "lost", "done")]
        assert len(life.rows()) == (not is_written)


async def test_another_gateway_appends_when_the_lease_is_over(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with living(tmp_path / "one", store) as life:
        await life.put("lost")
        chain = life.journal.chain.chain.hex()
    async with living(tmp_path / "two", store) as two, living(tmp_path / "three", store) as three:
        await two.recovery.recover()
        assert two.told() == []
        later = now_ms() + LEASE_MS + 1
        monkeypatch.setattr(recovery_module, "now_ms", lambda: later)
        await two.recovery.recover()
        await three.recovery.recover()
        assert (two.told(), three.told()) == ([("recovered", "lost", "done")], [])
        assert records_in(tmp_path / "two")[-1]["meant_for"] == chain
        # While its record waits for the disk the lease may run out: it is still its own.
        monkeypatch.setattr(recovery_module, "now_ms", lambda: later + 2 * LEASE_MS)
        await two.recovery.recover()
        assert len(two.told()) == 1


async def test_a_change_that_failed_leaves_no_record_of_itself(
    tmp_path: Path, store: Store
) -> None:
    async with living(tmp_path, store) as life:
        await life.put("a")
        with pytest.raises(Conflict):
            await life.put("a")
        await life.journal.durable(life.journal.records)
        await life.recovery.settle()
        assert life.rows() == [] and repr(life.outbox) == "Outbox(0 rows)"
        assert life.told() == [("request", "a", "done"), ("request", "a", "Conflict")]


async def test_a_change_that_is_repeated_under_its_token_is_stored_once(
    tmp_path: Path, store: Store
) -> None:
    async with living(tmp_path, store) as life:
        for _ in range(2):
            await life.put("a", idempotency_token=b"t" * 16)
        assert len(life.rows()) == 1
        await life.journal.durable(life.journal.records)
        await life.recovery.settle()
        assert life.rows() == [] and repr(life.outbox) == "Outbox(0 rows)"
        assert life.told() == [("request", "a", "done")] * 2


async def test_a_change_whose_call_fails_afterwards_is_on_record_as_made(
    tmp_path: Path, store: Store
) -> None:
    async with living(tmp_path, store) as life:

        def fail() -> None:
            raise ZeroDivisionError

        life.after = fail
        with pytest.raises(InternalError):
            await life.put("a")
        await life.journal.durable(life.journal.records)
        assert life.told() == [("request", "a", "InternalError"), ("request", "a", "done")]
        await life.recovery.settle()
        assert life.rows() == []


async def test_a_change_that_was_committed_too_late_is_on_record_in_the_end(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with living(tmp_path, store) as life:

        async def lost(*_: Any, **__: Any) -> None:
            raise OutcomeUnknown("the connection was lost while committing")

        write = life.effects.write_for

        async def written_unknown(call: Call, work: Any) -> Any:
            await write(call, work)
            await lost()

        monkeypatch.setattr(life.effects, "write_for", written_unknown)
        with pytest.raises(OutcomeUnknown):
            await life.put("late")
        life.journal.flush()
        assert life.told() == [("request", "late", "OutcomeUnknown")]
        assert repr(life.outbox) == "Outbox(0 rows)"
        for _ in range(2):
            await life.recovery.recover()
            assert life.told()[1:] == [("recovered", "late", "done")]


async def test_a_change_that_begins_when_its_call_is_over_is_on_record(
    tmp_path: Path, store: Store
) -> None:
    """A store that hangs: its caller was told that the outcome is unknown before anything began."""
    async with living(tmp_path, store) as life:
        call = make_call("put_policy", "late", DOCUMENT)
        life.outbox.decided(call, "allowed by p statement 1")
        record = RECORDS.request(call, statement="", outcome=97, values=[], elapsed_us=1)
        life.outbox.append(call, record)
        await life.effects.write(lambda transaction: life.outbox.post(transaction, call, []))
        await life.recovery.recover()
        assert [kind for kind, *_ in life.told()] == ["request", "recovered"]
        assert records_in(tmp_path)[-1]["statement"] == UNWAITED


class Changed:
    """Permits that are taken before the change is made."""

    def __init__(self, statement: str, error: HsmuxError, *, in_transaction: bool) -> None:
        self.statement, self.error, self.in_transaction = statement, error, in_transaction

    def require(self, call: Call, decided: Callable[[str], None]) -> None:
        """Tell and raise, or let it pass."""
        if not self.in_transaction:
            decided(self.statement)
            raise self.error
        decided("allowed by something")

    def require_unchanged(self, reader: Any, call: Call, since: int) -> None:
        """Raise."""
        raise self.error


@pytest.mark.parametrize(
    "permits",
    [
        Changed("denied by late statement 1", Denied("no"), in_transaction=False),
        Changed(effects_module.UNDECIDED, Busy("again"), in_transaction=True),
    ],
    ids=["denied", "changed"],
)
async def test_what_decided_when_the_change_was_made_is_on_record(
    tmp_path: Path, store: Store, permits: Changed
) -> None:
    async with living(tmp_path, store) as life:
        life.permits = permits
        with pytest.raises(type(permits.error)):
            await life.put("a")
        life.journal.flush()
        (record,) = (one for one in records_in(tmp_path) if one["kind"] == "request")
        assert record["statement"] == permits.statement
        assert life.rows() == []


def _link_to_nothing(segment: Path) -> None:
    segment.unlink()
    segment.symlink_to("gone")


@pytest.mark.parametrize(
    "damage",
    [
        lambda segment: os.truncate(segment, 10),
        lambda segment: segment.write_bytes(b"x" * 4096),
        _link_to_nothing,
    ],
    ids=["cut short", "another format", "gone"],
)
async def test_a_chain_that_cannot_be_read_keeps_no_record_from_being_recovered(
    tmp_path: Path, store: Store, damage: Callable[[Path], object]
) -> None:
    async with living(tmp_path, store) as life:
        await life.put("lost")
        chain = tmp_path / life.journal.chain.chain.hex()
    damage(chain / "00000001.log")
    # The next process goes on with this one.
    (tmp_path / ("0" * 32)).mkdir(mode=0o700)
    async with living(tmp_path, store) as life:
        await life.recovery.recover()
        await life.journal.durable(life.journal.records)
        await life.recovery.settle()
        assert life.rows() == []
    chain.rename(tmp_path / "aside")
    assert life.told() == [("recovered", "lost", "done")]


async def test_without_room_a_recovered_record_waits(tmp_path: Path, store: Store) -> None:
    async with living(tmp_path, store) as life:
        await life.put("lost")
    async with living(tmp_path, store) as life:

        def refuse(*_: Any) -> None:
            raise SyncFailed("no")

        flush, life.journal.flush = life.journal.flush, refuse  # type: ignore[method-assign,assignment]
        await life.recovery.recover()
        await life.recovery.recover()
        life.journal.flush = flush  # type: ignore[method-assign]
        await life.journal.durable(life.journal.records)
        assert life.told() == [("recovered", "lost", "done")]
