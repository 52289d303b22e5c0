"""`verify`: how fast an audit log is verified.

The log is made by the writer of the gateway, of requests as the gateway records them, in segments
of the usual size, with checkpoints by a key of its own over all of it. It is verified again and
again for as long as each line of standard input says.
"""

import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.references import format_key_id

from ..audit.checkpoints import CheckpointFile, sealed_note
from ..audit.layout import CHECKPOINTS
from ..audit.records import DONE, Request, write_record
from ..audit.segments import open_chain
from ..audit.verify import verify
from ..clock import now_ms
from .lines import repeat

__all__ = ["run_verified"]

TOGETHER: Final = 64
"""Records that are written at once."""

CHECKPOINTS_MADE: Final = 4

_ACCESS_POINT, _CLIENT_KEY, _KEY = (bytes([number]) * 16 for number in (1, 2, 3))


def _request(number: int) -> bytes:
    """The record of an encryption."""
    return write_record(
        Request(
            now_ms(),
            f"r5f3a91c07b2e-{number:x}",
            "billing",
            _ACCESS_POINT,
            _CLIENT_KEY,
            "192.0.2.7:40312",
            OPERATIONS["encrypt"].number,
            "allowed by billing statement 1",
            format_key_id(_KEY),
            _KEY,
            1,
            DONE,
            os.urandom(16),
            1,
            0,
            141,
            144,
            number % 100,
        )
    )


def _make_log(root: Path, records: int) -> ec.EllipticCurvePublicKey:
    """A log whose last checkpoint holds every record; the key of the checkpoints."""
    key, deployment = ec.generate_private_key(ec.SECP256R1()), bytes(16)
    writer = open_chain(root, deployment)
    checkpoints = CheckpointFile(root / CHECKPOINTS, key.public_key())
    for part in range(CHECKPOINTS_MADE):
        numbers = range(
            part * records // CHECKPOINTS_MADE, (part + 1) * records // CHECKPOINTS_MADE
        )
        for start in range(0, len(numbers), TOGETHER):
            writer.append([_request(number) for number in numbers[start : start + TOGETHER]])
        text = checkpoints.text(deployment, now_ms(), {writer.chain: writer.end})
        signature = key.sign(text, ec.ECDSA(hashes.SHA256()))
        checkpoints.append(sealed_note(text, deployment, key.public_key(), signature))
    checkpoints.close()
    writer.close()
    return key.public_key()


def run_verified(directory: str, records: str) -> None:
    """Verify.

    Args:
        directory: Where the log comes.
        records: How many it gets.
    """
    root, number = Path(directory) / "log", int(records)
    key = _make_log(root, number)
    repeat(
        lambda: verify(root, key),
        lambda report: report.ok and report.records == number and report.behind == 0,
    )
