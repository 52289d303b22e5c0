"""Every check of the store on SQLite, on PostgreSQL and on the in-memory twin."""

import pytest

from hsmux_gateway.store import Store
from hsmux_gateway.store.conformance import STORE_CHECKS, Check

from .sealer import AesSealer


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
def test_store(check: Check, bare_store: Store) -> None:
    check(bare_store, AesSealer)
