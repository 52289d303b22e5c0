"""The result of a run as a table, and as a record for other programs."""

import os
import platform
import ssl
from collections.abc import Sequence, Set
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from hsmux_protocol import __version__

from .measures import Pace
from .rows import Row
from .work import BATCH_ITEMS, BATCHES_OPEN, RECORD_SIZE, SINGLES_A_GROUP, SINGLES_OPEN

__all__ = ["machine", "record", "table"]

LIBRARIES: Final = ("cffi", "cryptography", "msgpack", "msgspec", "python-pkcs11", "trio")
DIGITS: Final = {"ratio": 2, "MiB": 1, "ms": 0, "us": 1, "records/s": 0}
"""Digits behind the point of a figure, by its unit."""

HEADINGS: Final = ("figure", "median", "lowest", "highest", "target", "")


def _figure(row: Row, value: float) -> str:
    digits = DIGITS[row.target.unit]
    unit = "" if row.target.unit == "ratio" else f" {row.target.unit}"
    return f"{value:,.{digits}f}{unit}"


def table(rows: Sequence[Row]) -> str:
    """Aligned lines, and below them what each figure is."""
    lines = [HEADINGS]
    for row in rows:
        sign = ">=" if row.target.at_least else "<="
        lines.append(
            (
                row.target.name,
                _figure(row, row.median),
                _figure(row, min(row.values)),
                _figure(row, max(row.values)),
                f"{sign} {_figure(row, row.target.limit)}",
                row.outcome,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    shown = [
        "  ".join(
            cell.ljust(width) if column in (0, len(HEADINGS) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*shown, "", *(_explained(row) for row in rows)])


def _explained(row: Row) -> str:
    text = f"{row.target.name}: {row.target.what}"
    if row.note:
        text += f": {row.note}"
    if row.outcome == "invalid":
        text += f"; invalid: the generator needed {row.generator_share:.0%} of the gateway's time"
    return text


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def record(
    rows: Sequence[Row], pace: Pace, cores: tuple[Set[int], Set[int]], *, native: str
) -> dict[str, Any]:
    """The whole run as plain values.

    Args:
        rows: What was measured.
        pace: For how long.
        cores: Those of the generator, and of what it measured.
        native: The C module's backend; empty where no gateway was asked.
    """
    return {
        "machine": machine(),
        "versions": {
            "hsmux": __version__,
            "python": platform.python_version(),
            "openssl": ssl.OPENSSL_VERSION,
            "native": native,
            **{name: metadata.version(name) for name in LIBRARIES},
        },
        "configuration": {
            "rounds": pace.rounds,
            "seconds": pace.seconds,
            "record_bytes": RECORD_SIZE,
            "singles_open": SINGLES_A_GROUP * SINGLES_OPEN,
            "batch_items": BATCH_ITEMS,
            "batches_open": BATCHES_OPEN,
            "workers": 1,
            "generator_cores": sorted(cores[0]),
            "measured_cores": sorted(cores[1]),
        },
        "results": [
            {
                "name": row.target.name,
                "what": row.target.what,
                "unit": row.target.unit,
                "median": row.median,
                "values": list(row.values),
                "target": row.target.limit,
                "at_least": row.target.at_least,
                "outcome": row.outcome,
                "generator_share": round(row.generator_share, 3),
                "details": row.details,
            }
            for row in rows
        ],
    }
