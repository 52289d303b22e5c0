"""The in-memory twin and SQLite answer any run of works alike."""

import shutil
from collections.abc import Callable
from contextlib import closing
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmux_gateway.store import (
    AccessPointRow,
    AliasRow,
    Conflict,
    CounterRow,
    IdempotencyRow,
    IntentRow,
    Result,
    Row,
    Store,
    Transaction,
)

from .sealer import AesSealer

KEK = bytes(range(48))
DEPLOYMENT_ID = bytes(16)
Work: TypeAlias = Callable[[Transaction], Any]

names = st.sampled_from(["a", "b", "\u00e4"])
identifiers = st.sampled_from([b"1" * 16, b"2" * 16])
moments = st.integers(min_value=0, max_value=3)


@st.composite
def works(draw: st.DrawFn) -> Work:
    """A work that may well run into a conflict."""
    make: Callable[[st.DrawFn], Work] = draw(st.sampled_from(MAKERS))
    return make(draw)


def _insert_alias(draw: st.DrawFn) -> Work:
    row = AliasRow(draw(names), draw(st.sampled_from([None, b"1" * 16])))
    return lambda transaction: transaction.insert(row)


def _insert_access_point(draw: st.DrawFn) -> Work:
    row = AccessPointRow(draw(identifiers), draw(names), "", "Enabled", "", "", 0)
    return lambda transaction: transaction.insert(row)


def _rename_access_point(draw: st.DrawFn) -> Work:
    access_point_id, name, age = draw(identifiers), draw(names), draw(moments)

    def work(transaction: Transaction) -> Row | None:
        row = transaction.get(AccessPointRow, access_point_id)
        if row is None:
            return None
        read = max(row.row_revision - age, 0)
        return transaction.update(msgspec.structs.replace(row, name=name, row_revision=read))

    return work


def _lease(draw: st.DrawFn) -> Work:
    key_id, amount = draw(identifiers), draw(st.sampled_from([0, 1, 7, 2**62]))
    return lambda transaction: transaction.lease_counter(key_id, 1, amount)


def _once(draw: st.DrawFn) -> Work:
    access_point_id, arguments, now_ms = draw(identifiers), draw(identifiers), draw(moments)

    def work(transaction: Transaction) -> bytes | None:
        known = transaction.recall(access_point_id, "o", b"t", arguments)
        if known is None:
            transaction.remember(access_point_id, "o", b"t", arguments, b"answer", now_ms=now_ms)
        return known

    return work


def _add_intent(draw: st.DrawFn) -> Work:
    key_id = draw(st.none() | identifiers)
    intent = IntentRow(draw(identifiers), "k", "t", b"", key_id, "me", b"", 0, draw(moments))
    return lambda transaction: transaction.add_intent(intent)


def _finish_expired(draw: st.DrawFn) -> Work:
    now_ms = draw(moments)

    def work(transaction: Transaction) -> list[IntentRow]:
        expired = transaction.expired_intents(now_ms)
        for intent in expired:
            transaction.finish_intent(intent.intent_id)
        return expired

    return work


MAKERS = [
    _insert_alias,
    _insert_access_point,
    _rename_access_point,
    _lease,
    _once,
    _add_intent,
    _finish_expired,
]


def _plain(result: Result[Any]) -> object:
    try:
        return result.get()
    except Conflict as conflict:
        return str(conflict)


def _everything(store: Store) -> list[object]:
    kinds: list[type[Row]] = [AliasRow, AccessPointRow, CounterRow, IdempotencyRow, IntentRow]
    rows = [store.read(methodcaller("select", kind)) for kind in kinds]
    return [store.revision(), *rows]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty sealed store to copy."""
    path = tmp_path_factory.mktemp("twin") / "template.db"
    with closing(
        Store.create(f"sqlite:///{path}", deployment_id=DEPLOYMENT_ID, created_at_ms=1)
    ) as store:
        store.reseal(AesSealer(KEK), lambda transaction: None)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(groups=st.lists(st.lists(works(), min_size=1, max_size=4), max_size=6))
def test_the_twin_answers_like_sqlite(template: Path, groups: list[list[Work]]) -> None:
    path = template.with_name("store.db")
    shutil.copy(template, path)
    twin = Store.in_memory(deployment_id=DEPLOYMENT_ID, created_at_ms=1)
    twin.reseal(AesSealer(KEK), lambda transaction: None)
    with closing(Store.open(f"sqlite:///{path}")) as store:
        store.unlock(AesSealer(KEK))
        for group in groups:
            answers = [[_plain(r) for r in one.write_group(group)] for one in (store, twin)]
            assert answers[0] == answers[1]
        assert _everything(store) == _everything(twin)
        assert store.read_changes(0) == twin.read_changes(0)
