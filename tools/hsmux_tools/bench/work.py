"""What the gateway is asked to do, and whether it did it.

Work is made before the clock runs and checked when it has stopped: everything that was encrypted
is decrypted by the gateway again and compared with what it was made of.
"""

import os
from dataclasses import dataclass
from typing import Any, Final

from hsmux_protocol.columns import pack_column, pack_u16_column

from .generator import Flow, Generator, Group, group_of
from .rows import WrongAnswer

__all__ = [
    "BATCHES_OPEN",
    "BATCH_ITEMS",
    "RECORD_SIZE",
    "SINGLES_A_GROUP",
    "SINGLES_OPEN",
    "Work",
    "batch_work",
    "check",
    "single_work",
]

RECORD_SIZE: Final = 64
"""Bytes of a record."""

SINGLES_A_GROUP: Final = 64
SINGLES_OPEN: Final = 4
"""Groups of single requests open at a time: a pipeline of 256."""

BATCH_ITEMS: Final = 1900
BATCHES_OPEN: Final = 4
"""Batches of as many records as the client puts into one, and as many open at a time."""

BATCHES: Final = 8
"""Different batches that are sent in turn."""


@dataclass(frozen=True, slots=True)
class Work:
    """Requests that are sent in turn, and the records in them.

    Attributes:
        groups: The requests.
        columns: For each group its records, as a column.
    """

    groups: list[Group]
    columns: list[bytes]


def single_work(key: str) -> Work:
    """One encryption a request."""
    groups, columns = list[Group](), list[bytes]()
    for number in range(SINGLES_OPEN):
        records = [os.urandom(RECORD_SIZE) for _ in range(SINGLES_A_GROUP)]
        requests: list[tuple[Any, ...]] = [(key, {}, record) for record in records]
        groups.append(group_of("encrypt", 1 + number * SINGLES_A_GROUP, requests))
        columns.append(pack_column(records))
    return Work(groups, columns)


def batch_work(key: str) -> Work:
    """A batch a request."""
    columns = [
        pack_column([os.urandom(RECORD_SIZE) for _ in range(BATCH_ITEMS)]) for _ in range(BATCHES)
    ]
    groups = [
        group_of("encrypt_batch", 1 + number, [(key, {}, None, column)])
        for number, column in enumerate(columns)
    ]
    return Work(groups, columns)


def check(generator: Generator, work: Work, flow: Flow) -> None:
    """Decrypt everything that was encrypted and compare it with the records.

    Raises:
        WrongAnswer: Something is not what it must be.
    """
    expected, opening = [], []
    for number, results in enumerate(flow.results()):
        expected.append(work.columns[number % len(work.columns)])
        if flow.groups[number].operation == "encrypt":
            sealed = pack_column([ciphertext for ciphertext, _, _ in results])
        else:
            ((statuses, sealed, _, _),) = results
            _check_statuses(statuses)
        opening.append(group_of("decrypt_batch", 1 + number, [(None, {}, None, sealed)]))
    opened = generator.run(opening, window=BATCHES_OPEN)
    for column, ((statuses, plaintexts, _, _),) in zip(expected, opened.results(), strict=True):
        _check_statuses(statuses)
        if plaintexts != column:
            raise WrongAnswer("what was encrypted decrypts to something else")


def _check_statuses(statuses: bytes) -> None:
    count = int.from_bytes(statuses[:4], "big")
    if statuses != pack_u16_column([0] * count):
        raise WrongAnswer("a record of a batch was not done")
