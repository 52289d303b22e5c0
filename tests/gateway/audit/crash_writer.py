"""A program that appends to a chain until it is killed.

It acknowledges on standard output, one line each, how far it has written: "<sequence> <head>".
Argument: the directory of the log.
"""

import itertools
import os
import sys
from pathlib import Path

from hsmux_gateway.audit.records import write_record
from hsmux_gateway.audit.segments import SEGMENT_SIZE_MIN, open_chain
from tests.gateway.audit.logs import DEPLOYMENT, request


def main(root: str) -> None:
    """Append groups of records for ever."""
    writer = open_chain(Path(root), DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    for number in itertools.count(1):
        writer.append([write_record(request(number))] * (number % 40 + 1))
        os.write(1, f"{writer.end.sequence} {writer.end.head.hex()}\n".encode())
        if number % 5 == 0:
            writer.sync()
            writer.prepare()


if __name__ == "__main__":
    main(*sys.argv[1:])
