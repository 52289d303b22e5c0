"""How a yardstick is told what to do and tells what it did: a line for a line."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["repeat", "say"]

T = TypeVar("T")


def say(record: dict[str, Any]) -> None:
    """Print a JSON line."""
    print(json.dumps(record), flush=True)


def repeat(
    batch: Callable[[], T], is_right: Callable[[T], bool], facts: dict[str, Any] | None = None
) -> None:
    """Repeat a batch for as many seconds as each line of standard input says, and tell of it.

    What is told is how many batches that were, the time of the clock and of the processor they
    took, and whether the last one is right.

    Args:
        batch: At least once for each line.
        is_right: Looks at what the last one made, when the clock has stopped.
        facts: What is told first.
    """
    say(facts or {})
    for line in sys.stdin:
        cpu, began = time.process_time_ns(), time.perf_counter_ns()
        end = began + int(float(line) * 1e9)
        output, calls = batch(), 1
        while time.perf_counter_ns() < end:
            output = batch()
            calls += 1
        wall_ns, cpu_ns = time.perf_counter_ns() - began, time.process_time_ns() - cpu
        say({"calls": calls, "wall_ns": wall_ns, "cpu_ns": cpu_ns, "right": is_right(output)})
