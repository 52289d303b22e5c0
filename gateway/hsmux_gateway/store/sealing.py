"""Sealing of rows: what the database holds is either what this deployment wrote, or refused.

Theory of operation. Every row of every table has, behind its clear columns, three more:
`row_revision` (the store revision that wrote it), `row_kek_id` and `row_sealed`, an AEAD
ciphertext under that key-encryption key. Its plaintext are the secret columns (a msgpack array,
or nothing where a table has none); its associated data is one canonical msgpack array:

    [deployment, KEK id, table, [primary key], row revision, every clear column in schema order]

so a row whose column was changed, that was copied over another row, that was brought from another
table, deployment or revision does not open. Clear columns are only indexes: nobody decides on
them before `RowSeals.load` has opened the row.

What row seals cannot see is a row that is missing, and one that was put back to an older copy of
itself. So the state holds, as a secret column, a sum over all rows of all other tables: each row
adds a keyed hash of its seal, modulo 2^512. A transaction that writes subtracts what was there and
adds what is there now, so the sum costs the same however large the store is; whoever loads the
store adds up everything once more. That the seal alone is hashed is enough, because a row counts
only after its seal was opened over all of its columns, and no two seals are the same. The hash is
keyed and the sum is never in the clear, so nobody can look for other rows that add up to it.

What neither sees is a whole store that is old: that needs an anchor outside of the store
(`hsmux_gateway.anchor`).

Canonical: integers and lengths in their shortest form, text as UTF-8 `str`, bytes as `bin`, an
absent value as nil; maps of texts are JSON texts with keys in code point order, sealed as the
text that is stored.

There is a time without a key-encryption key: `init` has to write down what it is about to make in
an HSM before there is one. Until then the store is bare: rows carry an empty `row_kek_id` and an
empty `row_sealed`. `Store.reseal` seals all of them in one transaction, and from then on a row
without a seal is as broken as a changed one.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec

from .errors import InvalidSeal, SealBroken, StoreLocked
from .rows import Column, Row, Table, Value

__all__ = ["INTEGER_MAX", "SUM_SIZE", "RowSealer", "RowSeals", "Stored", "associated_data"]

INTEGER_MAX: Final = 2**63 - 1
"""The largest integer both databases hold."""

SUM_SIZE: Final = 64
"""Bytes of a sum over rows."""

R = TypeVar("R", bound=Row)

Stored: TypeAlias = tuple[Any, ...]
"""The columns of a row as the database holds them: clear columns, row_revision, row_kek_id,
row_sealed."""

_SUM_MODULUS: Final = 1 << 8 * SUM_SIZE

_msgpack = msgspec.msgpack.Encoder()
_secrets = msgspec.msgpack.Decoder(list[Any])
_json = msgspec.json.Encoder(order="sorted")
_texts = msgspec.json.Decoder(dict[str, str])


class RowSealer(Protocol):
    """Seals rows under one key-encryption key."""

    @property
    def kek_id(self) -> bytes:
        """16 bytes that name the key."""

    def seal(self, associated_data: bytes, secret: bytes) -> bytes:
        """Seal a secret (possibly empty), bound to the associated data."""

    def open(self, associated_data: bytes, sealed: bytes) -> bytes:
        """The secret.

        Raises:
            InvalidSeal: The sealed bytes were not made by `seal` with these data and this key.
        """

    def fingerprint(self, sealed: bytes) -> bytes:
        """A keyed hash of sealed bytes, `SUM_SIZE` bytes that nobody else can tell."""


def associated_data(
    deployment_id: bytes,
    kek_id: bytes,
    table: Table[Any],
    clear: tuple[Value, ...],
    row_revision: int,
) -> bytes:
    """The canonical bytes a row's seal is bound to; the primary key leads the clear columns."""
    key = clear[: len(table.key)]
    return _msgpack.encode([deployment_id, kek_id, table.name, key, row_revision, *clear])


def _fits(column: Column, value: Any) -> bool:
    exact = type(value) is column.kind
    if not exact:
        return value is None and column.nullable
    if column.kind is int:
        return bool(0 <= value <= INTEGER_MAX)
    if column.kind is dict:
        return all(type(text) is str for pair in value.items() for text in pair)
    return column.kind is bytes or "\0" not in value


def _clear_and_secret(table: Table[R], row: R) -> tuple[tuple[Value, ...], list[bytes]]:
    values = [getattr(row, column.name) for column in table.columns]
    for column, value in zip(table.columns, values, strict=True):
        if not _fits(column, value):
            raise ValueError(f"{table.name}.{column.name} cannot hold this value")
    for position in table.json_positions:
        values[position] = _json.encode(values[position]).decode()
    size = len(table.clear)
    return tuple(values[:size]), values[size:]


def _row(table: Table[R], clear: Stored, secret: list[Any], row_revision: int) -> R:
    if table.json_positions:
        values = list(clear)
        for position in table.json_positions:
            values[position] = _texts.decode(values[position])
        return table.row(*values, *secret, row_revision)
    return table.row(*clear, *secret, row_revision)


@dataclass(frozen=True, slots=True)
class RowSeals:
    """Turns rows into what the database holds, and back.

    Attributes:
        deployment_id: 16 bytes.
        sealer: The sealer, or None while the store is bare or locked.
    """

    deployment_id: bytes
    sealer: RowSealer | None

    def store(self, table: Table[R], row: R, row_revision: int) -> Stored:
        """The stored columns of a row written at `row_revision`.

        Raises:
            ValueError: A column is of a type or size the store cannot hold.
            StoreLocked: The row has a secret column and there is no sealer.
        """
        clear, secret = _clear_and_secret(table, row)
        if self.sealer is None:
            if any(secret):
                raise StoreLocked("a store without seals cannot keep a secret")
            return (*clear, row_revision, b"", b"")
        kek_id = self.sealer.kek_id
        data = associated_data(self.deployment_id, kek_id, table, clear, row_revision)
        sealed = self.sealer.seal(data, _msgpack.encode(secret) if secret else b"")
        return (*clear, row_revision, kek_id, sealed)

    def load(self, table: Table[R], stored: Stored) -> R:
        """The row, after its seal was checked.

        Raises:
            SealBroken: The stored columns are not what was written.
            StoreLocked: The row is sealed and there is no sealer yet.
        """
        clear, (row_revision, kek_id, sealed) = stored[:-3], stored[-3:]
        if self.sealer is None:
            if kek_id:
                raise StoreLocked("the rows are sealed: unlock the store first")
            return _row(table, clear, [b""] * len(table.secret), row_revision)
        key = clear[: len(table.key)]
        if kek_id != self.sealer.kek_id:
            raise SealBroken(table.name, key)
        try:
            data = associated_data(self.deployment_id, kek_id, table, clear, row_revision)
            secret = self.sealer.open(data, sealed)
        except (InvalidSeal, UnicodeEncodeError) as error:
            # Text that is not UTF-8 any more arrives with surrogates, which cannot be encoded.
            raise SealBroken(table.name, key) from error
        found = _secrets.decode(secret) if secret else []
        if len(found) != len(table.secret):
            raise SealBroken(table.name, key)
        return _row(table, clear, found, row_revision)

    def peek(self, table: Table[R], stored: Stored) -> R:
        """The row without any check: only for what has to be read to get at the sealer."""
        return _row(table, stored[:-3], [b""] * len(table.secret), stored[-3])

    def term(self, stored: Stored) -> int:
        """What a stored row adds to the sum over rows; nothing while there is no sealer."""
        if self.sealer is None:
            return 0
        return int.from_bytes(self.sealer.fingerprint(stored[-1]))

    def sum_bytes(self, total: int) -> bytes:
        """A sum as the state holds it."""
        return b"" if self.sealer is None else (total % _SUM_MODULUS).to_bytes(SUM_SIZE)
