"""Every check of the store on SQLite, on PostgreSQL and on the in-memory twin."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from hsmux_gateway.store import Store
from hsmux_gateway.store.conformance import STORE_CHECKS, Check, check_store
from hsmux_gateway.store.memory import MemoryRows
from hsmux_gateway.store.rows import ALIASES, Key, Table
from hsmux_gateway.store.sealing import Stored

from .conftest import CREATED_AT_MS, DEPLOYMENT_ID
from .sealer import AesSealer


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
def test_store(check: Check, bare_store: Store) -> None:
    check(bare_store, AesSealer)


def _in_memory() -> Store:
    return Store.in_memory(deployment_id=DEPLOYMENT_ID, created_at_ms=CREATED_AT_MS)


def test_all_checks_in_one() -> None:
    check_store(lambda: closing(_in_memory()), AesSealer)


@contextmanager
def _undo_nothing(self: MemoryRows) -> Iterator[None]:
    yield


def _insert_no_aliases(self: MemoryRows, table: Table[Any], stored: Stored) -> None:
    if table is not ALIASES:
        INSERT(self, table, stored)


def _replace_always(self: MemoryRows, table: Table[Any], stored: Stored, row_revision: int) -> bool:
    before = self.fetch(table, stored[: len(table.key)])
    return before is not None and REPLACE(self, table, stored, before[-3])


def _change_late(self: MemoryRows, table: Table[Any], since_revision: int) -> Iterator[Stored]:
    return CHANGED(self, table, since_revision + 1)


def _remove_nothing(self: MemoryRows, table: Table[Any], key: Key) -> None:
    return None


INSERT, REPLACE, CHANGED = MemoryRows.insert, MemoryRows.replace, MemoryRows.changed
BROKEN: dict[str, Callable[..., object]] = {
    "savepoint": _undo_nothing,
    "insert": _insert_no_aliases,
    "replace": _replace_always,
    "changed": _change_late,
    "remove": _remove_nothing,
}


@pytest.mark.parametrize("method", BROKEN)
def test_the_checks_find_a_broken_store(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(MemoryRows, method, BROKEN[method])
    with pytest.raises(AssertionError):
        check_store(lambda: closing(_in_memory()), AesSealer)
