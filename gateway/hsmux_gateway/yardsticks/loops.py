"""Two bare loops: what sealing and encrypting cost by themselves.

`software` seals a column with the C module's batch loop and no stream; `hardware` encrypts it with
one bare PKCS#11 session. They read a number of seconds a line, repeat their batch for that long,
and print how many batches that were, the time of the clock and of the processor they took, and
whether the last one opens again.
"""

from pathlib import Path
from typing import Final

from hsmux_native import Arena
from hsmux_protocol.columns import pack_column
from hsmux_protocol.context import EMPTY_CONTEXT
from hsmux_protocol.envelope import HEADER_SIZE, SUITE_XAES_256_GCM, make_header

from ..config import load_config
from ..foundation import token_settings
from .lines import repeat

__all__ = ["Sealer", "run_hardware", "run_software"]

HEADER: Final = make_header(SUITE_XAES_256_GCM, bytes(16), 1)


class Sealer:
    """The C module's batch loop with a key of its own."""

    def __init__(self) -> None:
        self._arena = Arena()
        self._slot = self._arena.generate()
        self._contexts = pack_column([EMPTY_CONTEXT])

    def seal(self, column: bytes) -> bytes:
        """A column of envelopes."""
        return self._arena.seal_batch(self._slot, HEADER, self._contexts, column)[0]

    def open(self, column: bytes) -> bytes:
        """The way back."""
        return self._arena.open_batch(self._slot, HEADER, self._contexts, column)[0]


def run_software(column_path: str) -> None:
    """Seal a column."""
    column, sealer = Path(column_path).read_bytes(), Sealer()
    repeat(lambda: sealer.seal(column), lambda output: sealer.open(output) == column)


def run_hardware(column_path: str, config_path: str) -> None:
    """Encrypt a column in the one token of a configuration."""
    # PKCS#11 is loaded only here.
    from ..hsm.raw_session import RawSession

    config = load_config(Path(config_path))
    ((name, hsm),) = config.hsm.items()
    session = RawSession(token_settings(name, hsm))
    column = Path(column_path).read_bytes()
    data = pack_column([bytes(HEADER_SIZE) + EMPTY_CONTEXT])
    repeat(
        lambda: session.encrypt(column, data)[0],
        lambda output: session.decrypt(output, data)[0] == column,
    )
