"""Break-glass: what the first administrator's restoration leaves in the store, until a gateway
has recorded it.

`hsmux init --restore-administrator` runs while no gateway does, so it has no audit log. It notes in
its own transaction what it did, and the next gateway that starts appends the record before it
serves anybody, and then takes the note away. A crash between the two records it twice, never not.

It wants no approvals any more: whoever could give them may be who locked the administrator out, or
be gone. It needs the host, the store and the token's PIN, which is everything the gateway has.
"""

from typing import Final, NamedTuple

import msgpack
import msgspec

from ..store.rows import SettingRow
from ..store.transaction import Reader, Transaction
from .quorum import NO_QUORUM, QuorumSetting, read_setting, write_setting

__all__ = ["Restoration", "forget_restoration", "note_restoration", "read_restoration"]

RESTORATION: Final = "restoration"
"""The name of the setting that is the note; empty: there is none."""


class Restoration(NamedTuple):
    """The first administrator was restored.

    Attributes:
        at_ms: When, milliseconds since 1970 UTC.
        approvals: How many approvals were wanted until then.
    """

    at_ms: int
    approvals: int


def note_restoration(transaction: Transaction, at_ms: int) -> None:
    """Note that the administrator is restored, and want no approvals any more."""
    wanted = read_setting(transaction).approvals
    if wanted:
        write_setting(transaction, QuorumSetting(NO_QUORUM.approvals, at_ms))
    earlier = read_restoration(transaction)
    # One that no gateway has recorded yet wanted what was set before it.
    note = Restoration(at_ms, max(wanted, earlier.approvals if earlier else 0))
    _write(transaction, msgpack.packb(list(note)))


def read_restoration(reader: Reader) -> Restoration | None:
    """What is noted and not recorded yet."""
    row = reader.get(SettingRow, RESTORATION)
    return Restoration(*msgpack.unpackb(row.value)) if row is not None and row.value else None


def forget_restoration(transaction: Transaction, recorded: Restoration) -> None:
    """Take the note away if it is the one that was recorded."""
    if read_restoration(transaction) == recorded:
        _write(transaction, b"")


def _write(transaction: Transaction, value: bytes) -> None:
    found = transaction.get(SettingRow, RESTORATION)
    if found is None:
        transaction.insert(SettingRow(RESTORATION, value, b""))
    else:
        transaction.update(msgspec.structs.replace(found, value=value))
