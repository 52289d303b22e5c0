"""A program whose disk stops taking writes; run with `failing_sync` preloaded.

Arguments: the directory of the log, the file that makes syncs fail. Prints one line for each thing
that holds.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from hsmux_gateway.audit.records import write_record
from hsmux_gateway.audit.segments import SEGMENT_SIZE_MIN, SyncFailed, open_chain
from tests.gateway.audit.logs import DEPLOYMENT, appended, request


def main(root: str, failing: str) -> None:
    """Write, fail, and refuse from then on."""
    writer = open_chain(Path(root), DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    appended(writer, 1, 3)
    print("durable", writer.synced.sequence == 3)
    body = write_record(request(4))
    writer.append([body])
    Path(failing).touch()
    print("failed", _refused(writer.sync) and writer.synced.sequence == 3)
    Path(failing).unlink()
    print("never synced again", _refused(writer.sync))
    print("nor written", _refused(lambda: writer.append([body])))


def _refused(action: Callable[[], object]) -> bool:
    try:
        action()
    except SyncFailed:
        return True
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
