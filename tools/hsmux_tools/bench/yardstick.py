"""The yardsticks: processes of the gateway's package that are measured, or measured against.

`hsmux_gateway.yardsticks` says what each does and what it is told and tells.
"""

import importlib.util
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

__all__ = ["Laps", "Yardstick", "check_gateway", "yardstick"]

MODULE: Final = "hsmux_gateway.yardsticks"
END_TIMEOUT_S: Final = 20.0


def check_gateway() -> None:
    """Find out whether there is anything to measure.

    Raises:
        Failure: There is not; says what to install.
    """
    if importlib.util.find_spec(MODULE.partition(".")[0]) is None:
        raise Failure("the bench measures a gateway on this machine: pip install hsmux-gateway")


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

    def tell(self, line: str) -> dict[str, Any]:
        """Tell it something; what it says to that.

        Raises:
            WrongAnswer: What it made is not right.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        record = self._read()
        if not record.pop("right", True):
            raise WrongAnswer(f"the yardstick {self._name} made what is not right")
        return record

    def run(self, seconds: float) -> Laps:
        """Have a loop repeat its batch for some seconds.

        Raises:
            WrongAnswer: What it made does not open again, or is not what it must be.
        """
        return Laps(**self.tell(str(seconds)))

    def end(self) -> int:
        """End it in order, by the end of what it is told; its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(END_TIMEOUT_S)


@contextmanager
def yardstick(name: str, *told: Path | int) -> Iterator[Yardstick]:
    """Start a yardstick and end it.

    Args:
        name: As `hsmux_gateway.yardsticks` calls it.
        told: What it is told on its command line.

    Raises:
        Failure: It is not installed, or did not start.
    """
    check_gateway()
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, name, *map(str, told)],
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
