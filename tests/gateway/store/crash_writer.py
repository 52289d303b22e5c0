"""A program that writes to a store until it is killed.

It acknowledges on standard output, one line each, what is durable: "<number> <revision>".
Arguments: the store's URL, the key of its sealer in hexadecimal, the first number.
"""

import itertools
import os
import sys

from hsmux_gateway.store import AliasRow, Store, Transaction
from tests.gateway.store.sealer import AesSealer

GROUP_SIZE = 3


def main(url: str, key: str, first: str) -> None:
    """Write groups of aliases for ever, each with a counter lease."""
    store = Store.open(url)
    store.unlock(AesSealer(bytes.fromhex(key)))
    for start in itertools.count(int(first), GROUP_SIZE):

        def work(transaction: Transaction, number: int) -> int:
            transaction.insert(AliasRow(str(number), None))
            transaction.lease_counter(b"k" * 16, 1, 1)
            return transaction.revision

        group = [
            lambda transaction, number=number: work(transaction, number)
            for number in range(start, start + GROUP_SIZE)
        ]
        results = [result.get() for result in store.write_group(group)]
        lines = [f"{start + place} {revision}\n" for place, revision in enumerate(results)]
        os.write(1, "".join(lines).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
