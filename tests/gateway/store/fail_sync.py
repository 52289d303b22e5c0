"""A program whose disk stops taking writes; run with `failing_sync` preloaded.

Arguments: the store's URL, the file that makes syncs fail. Prints one line for each thing that
holds.
"""

import sys
from pathlib import Path

from hsmux_gateway.store import AliasRow, Store, StoreDamaged


def main(url: str, failing: str) -> None:
    """Write, fail, and refuse from then on."""
    store = Store.create(url, deployment_id=b"d" * 16, created_at_ms=1)
    store.write(lambda transaction: transaction.insert(AliasRow("before", None)))
    print("written", store.revision() == 1)
    Path(failing).touch()
    print("refused", _refused(store, "during"))
    Path(failing).unlink()
    print("never tried again", _refused(store, "after"))


def _refused(store: Store, name: str) -> bool:
    try:
        store.write(lambda transaction: transaction.insert(AliasRow(name, None)))
    except StoreDamaged:
        return True
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
