"""A program that fills the disk under a store; run in a namespace with a small file system.

Argument: an empty directory to mount on. Prints one line for each thing that holds.
"""

import os
import subprocess
import sys
from operator import methodcaller
from pathlib import Path

from hsmux_gateway.store import AliasRow, SettingRow, Store, StoreFull, Transaction
from tests.gateway.store.sealer import AesSealer

SIZE_BYTES = 768 * 1024


def main(directory: str) -> None:
    """Fill, look, make room, go on."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=700", "none", directory], check=True
    )
    url = f"sqlite:///{directory}/store.db"
    ballast = Path(directory, "ballast")
    ballast.write_bytes(bytes(128 * 1024))
    store = Store.create(url, deployment_id=b"d" * 16, created_at_ms=1)
    store.reseal(AesSealer(), lambda transaction: None)
    written = _fill(store)
    revision = store.revision()
    print("full", written > 0)
    print("reads go on", len(store.read_changes(0).settings) == written)
    print("whole group refused", _refused_group(store))
    print("nothing of it written", store.revision() == revision)
    ballast.unlink()
    store.write(lambda transaction: transaction.insert(AliasRow("room", None)))
    print("writes go on", store.revision() == revision + 1)


def _fill(store: Store) -> int:
    for number in range(10_000):
        row = SettingRow(str(number), os.urandom(4096), b"")
        try:
            store.write(methodcaller("insert", row))
        except StoreFull:
            return number
    return 0


def _refused_group(store: Store) -> bool:
    def small(transaction: Transaction) -> object:
        return transaction.insert(AliasRow("small", None))

    def large(transaction: Transaction) -> object:
        return transaction.insert(SettingRow("large", os.urandom(SIZE_BYTES), b""))

    try:
        store.write_group([small, large])
    except StoreFull:
        return True
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
