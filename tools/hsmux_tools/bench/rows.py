"""What is measured, what it must be, and what became of it.

A machine that others use makes every absolute figure a matter of luck. So a figure is a ratio of
two things that were measured in turn, a few times, and its median decides; lowest and highest say
how far luck went. Sizes of memory and the time of one command are absolute by their nature; what a
decision and a record that is verified cost is processor time, which luck touches least.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "EXIT_GENERATOR",
    "EXIT_MISSED",
    "EXIT_WRONG",
    "GENERATOR_SHARE_MAX",
    "TARGETS",
    "Row",
    "Target",
    "WrongAnswer",
    "exit_code",
]

EXIT_MISSED: Final = 20
EXIT_GENERATOR: Final = 21
EXIT_WRONG: Final = 22

GENERATOR_SHARE_MAX: Final = 0.9
"""Processor time of the generator to that of the gateway; with more, it cannot keep the gateway
busy, and so it was the generator that was measured.
"""


class WrongAnswer(Exception):
    """An answer was not what it must be; the text says which. No figure counts after that."""


@dataclass(frozen=True, slots=True)
class Target:
    """One figure and what it must be.

    Attributes:
        name: Of its row.
        what: Which two things are compared, or what is measured.
        unit: "ratio", "MiB", "ms", "us" or "records/s".
        limit: The target.
        at_least: Whether the figure must reach the limit; else it must not pass it.
    """

    name: str
    what: str
    unit: str
    limit: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether a figure is as it must be."""
        return value >= self.limit if self.at_least else value <= self.limit


_TARGETS: Final = (
    Target(
        "python-path",
        "64-byte encryptions one a request, pipelined, software key: the gateway to an echo over "
        "its TLS stream and dispatch",
        "ratio",
        0.60,
        at_least=True,
    ),
    Target(
        "batches",
        "64-byte records in batches, software key: the gateway to the C module's loop behind the "
        "same TLS stream",
        "ratio",
        0.50,
        at_least=True,
    ),
    Target(
        "hardware-batches",
        "64-byte records in batches, hardware key, one worker: the gateway to the same C loop in "
        "one bare PKCS#11 session",
        "ratio",
        0.85,
        at_least=True,
    ),
    Target(
        "audit-singles",
        "64-byte encryptions one a request, pipelined, software key: a gateway that records to "
        "itself while it does not",
        "ratio",
        0.85,
        at_least=True,
    ),
    Target(
        "audit-batches",
        "64-byte records in batches, software key: a gateway that records to itself while it does "
        "not",
        "ratio",
        0.90,
        at_least=True,
    ),
    Target(
        "decision",
        "processor time of the facts of a call and the decision on it, about a key that was asked "
        "about before",
        "us",
        5,
    ),
    Target(
        "verify",
        "records of an audit log that are verified in a second of processor time",
        "records/s",
        200_000,
        at_least=True,
    ),
    Target("memory-gateway", "resident memory of an idle gateway", "MiB", 80),
    Target("memory-worker", "private memory of an idle worker", "MiB", 30),
    Target("help", "`hsmux --help` from start to end", "ms", 150),
)

TARGETS: Final[dict[str, Target]] = {target.name: target for target in _TARGETS}


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, measured.

    Attributes:
        target: What it is and must be.
        values: One for each round.
        generator_share: The generator's processor time to the gateway's and its worker's; 0 for
            what needs no generator.
        details: What the figure was made of, by name; medians.
        note: The same in words.
    """

    target: Target
    values: tuple[float, ...]
    generator_share: float = 0.0
    details: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def outcome(self) -> str:
        """ "ok", "missed", or "invalid" when the generator was the limit."""
        if self.generator_share > GENERATOR_SHARE_MAX:
            return "invalid"
        return "ok" if self.target.holds(self.median) else "missed"


def exit_code(rows: Iterable[Row]) -> int:
    """What a run's exit code tells: a run that is invalid in one row says nothing about targets."""
    outcomes = {row.outcome for row in rows}
    if "invalid" in outcomes:
        return EXIT_GENERATOR
    return EXIT_MISSED if "missed" in outcomes else 0
