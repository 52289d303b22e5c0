"""The yardsticks: processes of the gateway's package that it is measured against.

`hsmux_gateway.yardstick` says what each does and what it is told and tells.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..failure import Failure
from .rows import WrongAnswer

__all__ = ["Laps", "Yardstick", "yardstick"]

MODULE: Final = "hsmux_gateway.yardstick"


@dataclass(frozen=True, slots=True)
class Laps:
    """What a loop did in its time: batches, and nanoseconds of clock and processor."""

    calls: int
    wall_ns: int
    cpu_ns: int


class Yardstick:
    """A running yardstick.

    Attributes:
        pid: Its process id.
        facts: What it said when it was ready.
    """

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process
        self.pid = process.pid
        self.facts = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failure(f"the yardstick {self._name} ended; it says why above")
        record: dict[str, Any] = json.loads(line)
        return record

    def run(self, seconds: float) -> Laps:
        """Have a loop repeat its batch for some seconds.

        Raises:
            WrongAnswer: What it made does not open again.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        record = self._read()
        if not record.pop("right"):
            raise WrongAnswer(f"the yardstick {self._name} made what does not open")
        return Laps(**record)


@contextmanager
def yardstick(name: str, *files: Path) -> Iterator[Yardstick]:
    """Start a yardstick and end it.

    Args:
        name: "echo", "software" or "hardware".
        files: What it is told on its command line.

    Raises:
        Failure: It did not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, name, *map(str, files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Yardstick(name, process)
    finally:
        # It has nothing to lose, and may be in the middle of a long lap.
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
