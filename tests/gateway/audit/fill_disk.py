"""A program that fills the disk under a log; run in a namespace with a small file system.

Argument: an empty directory to mount on. Prints one line for each thing that holds.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from hsmux_gateway.audit.layout import chain_directories, segment_paths
from hsmux_gateway.audit.records import write_record
from hsmux_gateway.audit.segments import (
    SEGMENT_SIZE_MIN,
    ChainWriter,
    NoRoom,
    Room,
    open_chain,
)
from hsmux_gateway.audit.verify import verify
from tests.gateway.audit.logs import DEPLOYMENT, PUBLIC_KEY, add_checkpoint, request

SIZE_BYTES = 256 * 1024
BODY = write_record(request(1))


def main(directory: str) -> None:
    """Fill, look, make room, go on."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=700", "none", directory], check=True
    )
    root = Path(directory, "audit")
    writer = open_chain(root, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    ballast = Path(directory, "ballast")
    _fill_disk(ballast)
    print("refused when full", _fill(writer) > 0)
    end = writer.end
    print("nothing of it written", _refused(writer) and writer.end == end)
    print("last records still", writer.append([BODY], Room.LAST) == end.sequence + 1)
    ballast.unlink()
    print("works again", writer.append([BODY]) == end.sequence + 2)
    writer.close()
    _fill_disk(ballast)
    writer = open_chain(root, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    print("starts when full", writer.append([BODY]) == end.sequence + 3 and not writer.prepare())
    print("short write leaves nothing", _short_write(writer, ballast))
    writer.close()
    add_checkpoint(root, {writer.chain: writer.end})
    report = verify(root, PUBLIC_KEY)
    print("verifies", report.ok and report.records == writer.end.sequence)


def _fill_disk(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def _refused(writer: ChainWriter) -> bool:
    try:
        writer.append([BODY])
    except NoRoom:
        return True
    return False


def _fill(writer: ChainWriter) -> int:
    start = writer.end.sequence
    while not _refused(writer):
        pass
    return writer.end.sequence - start


def _short_write(writer: ChainWriter, ballast: Path) -> bool:
    """A file system that took less room than it said: the segment has a hole from the next page."""
    segment = segment_paths(chain_directories(ballast.parent / "audit")[0]).popitem()[1]
    size = segment.stat().st_size
    used = len(segment.read_bytes().rstrip(b"\0"))
    os.truncate(segment, used)
    os.truncate(segment, size)
    _fill_disk(ballast)
    end = writer.end
    try:
        writer.append([BODY] * 100)
    except NoRoom:
        ballast.unlink()
        return writer.end == end and writer.append([BODY]) == end.sequence + 1
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
