"""Stores to test with: bare or sealed, in each kind of database."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsmux_gateway.store import Store
from tests.postgresql import postgresql_cluster, postgresql_url

__all__ = ["postgresql_cluster", "postgresql_url"]

DEPLOYMENT_ID = bytes(range(16))
CREATED_AT_MS = 1_700_000_000_000


def _create(url: str) -> Store:
    return Store.create(url, deployment_id=DEPLOYMENT_ID, created_at_ms=CREATED_AT_MS)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite store that does not exist yet."""
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def created() -> Iterator[Callable[[str], Store]]:
    """Makes or opens a store by its URL; closed after the test."""
    stores = []

    def make(url: str) -> Store:
        stores.append(_create(url))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def bare_store(request: pytest.FixtureRequest, created: Callable[[str], Store]) -> Store:
    """A bare store in each kind of database."""
    if request.param == "memory":
        return Store.in_memory(deployment_id=DEPLOYMENT_ID, created_at_ms=CREATED_AT_MS)
    url: str = request.getfixturevalue(f"{request.param}_url")
    return created(url)
