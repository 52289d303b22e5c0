"""`hsmux dev` as a process of one's own: for programs that need a gateway and leave nothing behind.

The process has a session of its own, so that Ctrl-C reaches the program alone, which then ends the
gateway. Its profile is `dev`, in whatever directory `XDG_CONFIG_HOME` names.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .failure import Failure

__all__ = ["own_gateway", "workers_of"]

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
WORKER_MODULE: Final = b"hsmux_gateway.hsm.worker"
LAST_LINE: Final = "Ctrl-C stops it."


@contextmanager
def own_gateway(directory: Path, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """A running development gateway; its process id.

    Args:
        directory: Its state goes into `state` there, what it says into `dev.log`.
        environment: Variables it gets besides this process' own.

    Raises:
        Failure: It did not start, did not stop, or left a process running.
    """
    command = [sys.executable, "-m", "hsmux_tools.main", "dev", "--state", str(directory / "state")]
    with open(directory / "dev.log", "wb+") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        assert process.stdout is not None
        starter = threading.Timer(START_TIMEOUT_S, process.kill)
        starter.start()
        try:
            lines = iter(process.stdout.readline, "")
            if not any(line.strip() == LAST_LINE for line in lines):
                log.seek(0)
                raise Failure(f"the gateway did not start: {log.read().decode().strip()}")
            starter.cancel()
            yield process.pid
        finally:
            starter.cancel()
            started = [process.pid, *workers_of(process.pid)]
            process.terminate()
            _wait_for_end(process)
            process.stdout.close()
    left = [pid for pid in started if _is_running(pid)]
    if left:
        raise Failure(f"processes are left running: {left}")


def _wait_for_end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Failure("the gateway did not stop at SIGTERM") from None


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def workers_of(pid: int) -> list[int]:
    """Process ids of the HSM workers of a gateway."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(child) for child in children if _is_worker(child)]


def _is_worker(pid: str) -> bool:
    try:
        return WORKER_MODULE in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
