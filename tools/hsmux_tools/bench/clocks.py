"""What Linux tells about a process: its processor time, its memory, and where it may run."""

import os
import re
import time
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Final

__all__ = ["cpu_ns", "pin", "private_mib", "resident_mib", "split_cores", "waited_ns"]

_CPUCLOCK_SCHED: Final = 2
"""The kind of a process' clock that counts what the scheduler gave it; see clock_getcpuclockid."""

_KIB_A_MIB: Final = 1024


def cpu_ns(pid: int) -> int:
    """Nanoseconds of processor time that all threads of a process have had."""
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)


def waited_ns(pid: int) -> int:
    """Nanoseconds that the main thread of a process could have run, but others had its core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


def _kib(text: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"no {name}")
    return int(match[1])


def resident_mib(pid: int) -> float:
    """Memory that a process has in use, shared pages included, in MiB."""
    return _kib(Path(f"/proc/{pid}/status").read_text(), "VmRSS") / _KIB_A_MIB


def private_mib(pid: int) -> float:
    """Memory that a process alone uses and has written to, in MiB.

    A worker shows its pages to nobody but root. Others are told the size of its anonymous pages,
    which is the same but for pages of files that it has written to.
    """
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return _kib(rollup, "Private_Dirty") / _KIB_A_MIB
    except PermissionError:
        return _kib(Path(f"/proc/{pid}/status").read_text(), "RssAnon") / _KIB_A_MIB


def split_cores() -> tuple[set[int], set[int]]:
    """Cores for the generator and for what it measures: apart where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return ({cores[0]}, {cores[-1]}) if len(cores) > 1 else (set(cores), set(cores))


def pin(pids: Iterable[int], cores: Set[int]) -> None:
    """Let every thread of some processes run on some cores only."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)
