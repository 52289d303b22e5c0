"""Journals to test with, and what is on record in the log of a gateway or of a test."""

import hashlib
import hmac
from pathlib import Path
from typing import Any

from hsmux_gateway.audit.calls import CallRecords
from hsmux_gateway.audit.journal import Journal
from hsmux_gateway.audit.reading import export
from hsmux_gateway.audit.records import export_record
from hsmux_gateway.audit.segments import SEGMENT_SIZE_MIN, open_chain
from hsmux_gateway.log_sink import LogSink

__all__ = ["RECORDS", "kinds_in", "open_journal", "records_in", "requests_in"]


def _mac(context: bytes) -> bytes:
    return hmac.digest(b"a key of the tests", context, hashlib.sha256)


RECORDS = CallRecords(_mac)


def open_journal(root: Path, *, log: LogSink | None = None) -> Journal:
    """A journal with small segments; its start is written."""
    journal = Journal(open_chain(root, bytes(16), segment_size=SEGMENT_SIZE_MIN), log=log)
    journal.flush()
    return journal


def records_in(root: Path) -> list[dict[str, Any]]:
    """Every record of a log, as it is exported."""
    return [export_record(record) for _, _, record in export(root)]


def kinds_in(root: Path) -> list[str]:
    """The kinds of the records of a log."""
    return [record["kind"] for record in records_in(root)]


def requests_in(root: Path) -> list[dict[str, Any]]:
    """A record for each request of a log; those of a run are told apart again."""
    found = []
    for record in records_in(root):
        if record["kind"] == "request":
            found.append(record)
        elif record["kind"] == "run":
            process, _, number = record["first"].rpartition("-")
            first = int(number, 16)
            assert record["last"] == f"{process}-{first + record['count'] - 1:x}"
            found += [
                record | {"reference": f"{process}-{first + n:x}", "outcome": "done"}
                for n in range(record["count"])
            ]
    return found
