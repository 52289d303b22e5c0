"""Reading everything at start: in one pass, without a second copy of it."""

import tracemalloc
from collections.abc import Callable

import pytest

from hsmux_gateway.store import KeyRow, Row, Store

from .sealer import AesSealer

KEYS = 4000


@pytest.fixture(params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, created: Callable[[str], Store]) -> Store:
    """A sealed store with many keys."""
    store = created(request.getfixturevalue(f"{request.param}_url"))
    store.reseal(AesSealer(), lambda transaction: None)
    rows = [
        KeyRow(
            number.to_bytes(16, "big"), "AES_256", "ENCRYPT_DECRYPT", "software", "", "",
            "Enabled", 1, f"key number {number}", {"n": str(number)}, 1, b"a" * 16,
        )
        for number in range(KEYS)
    ]  # fmt: skip
    store.write(lambda transaction: [transaction.insert(row) for row in rows])
    return store


def _peak_bytes(work: Callable[[], object]) -> int:
    work()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_rows_stream(filled: Store) -> None:
    seen: list[Row] = []
    filled.each_change(0, seen.append)
    assert len({row.key_id for row in seen if isinstance(row, KeyRow)}) == KEYS
    whole = _peak_bytes(lambda: filled.read_changes(0))
    streamed = _peak_bytes(lambda: filled.each_change(0, lambda row: None))
    assert streamed < whole / 2
