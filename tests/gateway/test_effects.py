"""Changes: done once, remembered with their effect, and told truly whatever the store does."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from hsmux_gateway import effects
from hsmux_gateway.access.identities import Identities
from hsmux_gateway.access.rules import AccessRules
from hsmux_gateway.errors import EXIT_AGAIN, OperatorError
from hsmux_gateway.store import (
    AccessPointRow,
    ClientKeyRow,
    IdempotencyRow,
    KeyRow,
    Store,
    StoreDamaged,
    StoreUnavailable,
    Transaction,
)
from hsmux_gateway.store import errors as store_errors
from hsmux_gateway.store.memory import MemoryBackend, MemoryRows
from hsmux_gateway.store.rows import TABLES
from hsmux_gateway.store.transaction import IDEMPOTENCY_KEPT_MS
from hsmux_gateway.store.writer import GROUP_SIZE_MAX, QUEUE_LENGTH_MAX
from hsmux_protocol.errors import Busy, Conflict, OutcomeUnknown, Unavailable
from tests.gateway.parts import PRINCIPAL, Parts, make_call, running_parts
from tests.gateway.store.sealer import AesSealer

TOKEN = b"0123456789abcdef"
CALLERS_TABLES = {"access_points", "client_keys", "aliases", "mtls_bindings"}
"""Tables whose names and keys callers choose."""


class FaultyBackend(MemoryBackend):
    """A database that can be away, break, or take its time."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: Callable[[], None] = lambda: None
        self.writing: Callable[[], None] = lambda: None

    @contextmanager
    def begin(self) -> Iterator[MemoryRows]:
        self.writing()
        with super().begin() as rows:
            yield rows

    @contextmanager
    def snapshot(self) -> Iterator[MemoryRows]:
        self.reading()
        with super().snapshot() as rows:
            yield rows


@pytest.fixture
def backend() -> FaultyBackend:
    """The database under `parts`."""
    backend = FaultyBackend()
    twin = Store.in_memory(deployment_id=b"d" * 16, created_at_ms=1)
    backend._tables = twin._backend._tables  # type: ignore[attr-defined]
    return backend


@pytest.fixture
def parts(backend: FaultyBackend) -> Parts:
    """Parts over a database that can fail."""
    store = Store(backend)
    store.reseal(AesSealer(), lambda transaction: None)
    return Parts(store)


def _away() -> None:
    raise StoreUnavailable("away")


def test_every_rule_that_callers_can_hit_has_words_for_them() -> None:
    rules = {
        f"{table.name}.{', '.join(columns)}"
        for table in TABLES
        for columns in (table.unique if table.key[0].endswith("_id") else (table.key,))
    }
    callers = {rule for rule in rules if rule.split(".")[0] in CALLERS_TABLES}
    assert callers | {"idempotency token"} == set(effects.CONFLICTS)
    for rule in rules:
        text = effects.presented(store_errors.Conflict(rule, "is taken")).text
        assert rule not in text and "." not in text


def _broken() -> None:
    raise StoreDamaged("fsync failed")


def _keys(parts: Parts) -> int:
    return len(parts.store.read(lambda reader: reader.select(KeyRow)))


@pytest.mark.parametrize("protection", ["software", "hardware"])
async def test_equal_calls_at_once_have_one_effect_and_one_answer(protection: str) -> None:
    answers: list[Any] = []
    async with running_parts() as parts:

        async def create() -> None:
            answers.append(await parts.create_key(protection, idempotency_token=TOKEN))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(create)
        assert len({answer[0].key_id for answer in answers}) == 1
        assert len(parts.catalog.keys) == _keys(parts) == 1
        if protection == "hardware":
            # What the others made is named by intents, which run out.
            there = await parts.token.list_objects(deadline=time.monotonic() + 9)
            assert len(there) == 8


async def test_two_gateways_have_one_effect_of_one_token() -> None:
    first = Parts()
    second = Parts(first.store, first.token)
    async with running_parts(first), running_parts(second):
        (made,) = await first.create_key(idempotency_token=TOKEN)
        (again,) = await second.create_key(idempotency_token=TOKEN)
        assert again.key_id == made.key_id
        assert _keys(first) == 1


async def test_a_token_is_of_one_access_point_and_one_operation() -> None:
    async with running_parts() as parts:
        (made,) = await parts.create_key(idempotency_token=TOKEN)
        with pytest.raises(Conflict, match="other arguments"):
            await parts.create_key("hardware", idempotency_token=TOKEN)
        call = make_call("create_key", "AES_256", "ENCRYPT_DECRYPT", "software", None, None, "", {})
        other = call._replace(
            principal=PRINCIPAL._replace(access_point_id=b"o" * 16),
            options={"idempotency_token": TOKEN},
        )
        (others,) = await parts.lifecycle.create_key(other, *other.arguments)
        assert others.key_id != made.key_id


async def test_tokens_are_forgotten_after_a_day_and_not_before() -> None:
    async with running_parts() as parts:
        at_ms = time.time_ns() // 1_000_000

        def remember(transaction: Transaction) -> None:
            for number in range(1200):
                age_ms = IDEMPOTENCY_KEPT_MS + (60_000 if number % 2 else -60_000)
                token = number.to_bytes(16, "big")
                transaction.remember(
                    b"p" * 16, "create_key", token, b"h" * 32, b"\x90", now_ms=at_ms - age_ms
                )

        await parts.effects.write(remember)
        await parts.effects.forget()
        left = parts.store.read(lambda reader: reader.select(IdempotencyRow))
        assert [int.from_bytes(row.token, "big") % 2 for row in left] == [0] * 600


async def test_a_change_that_is_stored_is_answered_though_it_cannot_be_shown(
    parts: Parts, backend: FaultyBackend
) -> None:
    async with running_parts(parts):
        backend.reading = _away
        (made,) = await parts.create_key()
        assert made.key_id not in parts.catalog.keys
        backend.reading = lambda: None
        await parts.effects.refresh()
        assert made.key_id in parts.catalog.keys


async def test_a_store_that_is_away_changes_nothing(parts: Parts, backend: FaultyBackend) -> None:
    async with running_parts(parts):
        backend.writing = _away
        with pytest.raises(Unavailable) as refused:
            await parts.create_key()
        assert refused.value.retryable
        assert refused.value.retry_after_ms
        backend.writing = lambda: None
        assert _keys(parts) == 0


async def test_a_store_that_breaks_makes_the_outcome_unknown_and_ends_the_process(
    parts: Parts, backend: FaultyBackend
) -> None:
    async with running_parts(parts):
        backend.writing = _broken
        with pytest.raises(OutcomeUnknown):
            await parts.create_key()
        with pytest.raises(OperatorError, match="starting again") as ended:
            await parts.effects.poll(0.001)
        assert ended.value.exit_code == EXIT_AGAIN


class Gate:
    """A write that waits for the test."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        self.opened.wait()


async def test_a_change_that_waits_for_its_turn_is_taken_back(
    parts: Parts, backend: FaultyBackend
) -> None:
    gate = backend.writing = Gate()
    async with running_parts(parts), trio.open_nursery() as nursery:
        nursery.start_soon(parts.create_key)
        await trio.to_thread.run_sync(gate.entered.wait)
        with trio.CancelScope() as scope:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            nursery.start_soon(_cancel_when_blocked, scope)
            await parts.create_key()
        assert scope.cancelled_caught
        gate.opened.set()
    assert _keys(parts) == 1


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_a_change_that_is_being_committed_is_waited_for(
    parts: Parts, backend: FaultyBackend
) -> None:
    gate = backend.writing = Gate()
    async with running_parts(parts), trio.open_nursery() as nursery:

        async def cancel_then_commit() -> None:
            await trio.to_thread.run_sync(gate.entered.wait)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()

        nursery.start_soon(cancel_then_commit)
        with trio.CancelScope() as scope:
            (made,) = await parts.create_key()
        assert made.key_id in parts.catalog.keys


async def test_a_commit_that_takes_too_long_has_an_unknown_outcome(
    parts: Parts, backend: FaultyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "PATIENCE_S", 0.01)
    gate = backend.writing = Gate()
    async with running_parts(parts), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_entered, gate, scope)
            with pytest.raises(OutcomeUnknown):
                await parts.create_key()
        gate.opened.set()


async def _cancel_when_entered(gate: Gate, scope: trio.CancelScope) -> None:
    await trio.to_thread.run_sync(gate.entered.wait)
    scope.cancel()


async def test_a_read_that_hangs_does_not_keep_its_caller(
    parts: Parts, backend: FaultyBackend
) -> None:
    async with running_parts(parts):
        gate = backend.reading = Gate()
        call = make_call("create_key", "AES_256", "ENCRYPT_DECRYPT", "software", None, None, "", {})
        call.options["idempotency_token"] = TOKEN
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_when_entered, gate, scope)
                await parts.effects.recall(call, b"h" * 32)
            assert scope.cancelled_caught
            gate.opened.set()


async def test_access_points_take_turns_to_look_up_their_tokens(
    parts: Parts, backend: FaultyBackend
) -> None:
    order: list[str] = []

    async def recall(name: str) -> None:
        principal = PRINCIPAL._replace(access_point_id=name[0].encode() * 16)
        call = make_call("create_key", idempotency_token=TOKEN)._replace(principal=principal)
        assert await parts.effects.recall(call, b"h" * 32) is None
        order.append(name)

    async with running_parts(parts):
        gate = backend.reading = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recall, "a0")
            await trio.to_thread.run_sync(gate.entered.wait)
            backend.reading = lambda: None
            for name in ("a1", "a2", "a3", "b1"):
                nursery.start_soon(recall, name)
                await trio.testing.wait_all_tasks_blocked()
            # What is changed meanwhile is stored and shown.
            (made,) = await parts.create_key()
            assert made.key_id in parts.catalog.keys
            assert order == []
            gate.opened.set()
    assert order == ["a0", "a1", "b1", "a2", "a3"]


async def test_changes_that_are_committed_together_are_shown_by_one_refresh(
    parts: Parts, backend: FaultyBackend
) -> None:
    reads = 0

    def count() -> None:
        nonlocal reads
        reads += 1

    async with running_parts(parts):
        gate = backend.writing = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.create_key)
            await trio.to_thread.run_sync(gate.entered.wait)
            backend.writing, backend.reading = lambda: None, count
            for _ in range(30):
                nursery.start_soon(parts.create_key)
            await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
    # Of two groups, the revision and the changes.
    assert reads <= 4
    assert len(parts.catalog.keys) == 31


async def test_an_access_point_that_changes_much_delays_its_own_changes(
    parts: Parts, backend: FaultyBackend
) -> None:
    order: list[str] = []

    async def create(name: str) -> None:
        arguments: list[Any] = ["AES_256", "ENCRYPT_DECRYPT", "software", None, None, "", {}]
        principal = PRINCIPAL._replace(access_point_id=name[0].encode() * 16)
        call = make_call("create_key", *arguments)._replace(principal=principal)
        try:
            await parts.lifecycle.create_key(call, *arguments)
        except Busy as error:
            assert error.retry_after_ms
            name = "busy"
        order.append(name)

    async with running_parts(parts):
        gate = backend.writing = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(create, "a")
            await trio.to_thread.run_sync(gate.entered.wait)
            for _ in range(QUEUE_LENGTH_MAX):
                nursery.start_soon(create, "a")
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["busy"] * (QUEUE_LENGTH_MAX // 2)
            nursery.start_soon(create, "b")
            await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
        assert order[len(order) // 2 :].index("b") <= GROUP_SIZE_MAX + 1


async def test_what_is_known_holds_for_a_while_only(parts: Parts, backend: FaultyBackend) -> None:
    async with running_parts(parts):

        def add(transaction: Transaction) -> None:
            point = AccessPointRow(PRINCIPAL.access_point_id, "tester", "", "Enabled", "", "", 1)
            transaction.insert(point)
            key = ClientKeyRow(
                *(PRINCIPAL.client_key_id, PRINCIPAL.access_point_id, b"s" * 32, "1", "CN=x"),
                *(1, 2**50, "Enabled", 1),
            )
            transaction.insert(key)

        await parts.effects.write(add)
        identities, call = (
            Identities(parts.catalog, AccessRules(parts.catalog), 5.0, parts.effects.refresh),
            make_call("show_status"),
        )
        assert identities.facts(call).client_key_enabled
        backend.reading = _away
        with pytest.raises(Unavailable):
            await parts.effects.refresh()
        assert identities.facts(call).client_key_enabled
        parts.catalog.asked_at -= 5.0
        with pytest.raises(Unavailable, match="too old"):
            identities.facts(call)
        backend.reading = lambda: None
        await parts.effects.refresh()
        assert identities.facts(call).client_key_enabled


async def test_polling_goes_on_while_the_store_is_away(
    parts: Parts, backend: FaultyBackend
) -> None:
    seen = trio.Event()
    parts.catalog.on_key_change(lambda key_id: seen.set())
    other = Parts(parts.store, parts.token)
    async with running_parts(parts), running_parts(other), trio.open_nursery() as nursery:
        backend.reading = _away
        nursery.start_soon(parts.effects.poll, 0.001)
        await trio.sleep(0.02)
        backend.reading = lambda: None
        await other.create_key()
        with trio.fail_after(10):
            await seen.wait()
        nursery.cancel_scope.cancel()
