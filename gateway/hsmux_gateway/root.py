"""The root: what seals the key-encryption key (KEK), which seals everything else.

Theory of operation
-------------------
Every row and every software key is sealed under one KEK. The KEK exists in the open only in the
arena; the store holds it sealed by one or more roots. A root is an AES key in a token that can
encrypt and decrypt and nothing else, or, for development without an HSM, 32 bytes in a file.

At a start the gateway looks for a seal of a root that it is configured for, has the root open it
into an arena slot, and gives the store a sealer for it. Opening is also the proof that root and
store belong together: a seal of another root, deployment or KEK does not open.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha512
from pathlib import Path
from typing import Final, Protocol

import msgpack

from hsmux_native import ITEM_SIZE_MAX, Arena, InvalidTag

from .clock import now_ms
from .errors import OperatorError
from .hsm.errors import TokenError
from .hsm.token import HsmKey, Token
from .instance import write_file
from .private_files import check_secret
from .store.errors import InvalidSeal
from .store.rows import KekRow, KekSealRow, RootRow, Row
from .store.store import Bootstrap, Store

__all__ = ["ArenaSealer", "FileRoot", "HsmRoot", "Root", "make_kek", "open_kek"]

ROOT_FILE_SIZE: Final = 32

_SUMS_KEY: Final = b"hsmux row sums 1\0"
"""What the key of fingerprints is derived from."""

ROOT_TIMEOUT_S: Final = 30.0
"""Seconds a token has to seal or open a KEK at a start."""


class ArenaSealer:
    """Seals store rows under a KEK in the arena.

    Args:
        arena: Holds the KEK.
        slot: Its slot.
        kek_id: Its 16-byte name.
    """

    def __init__(self, arena: Arena, slot: int, kek_id: bytes) -> None:
        self._arena = arena
        self.slot = slot
        self._kek_id = kek_id
        self._sums_slot = arena.load(arena.hmac_sha256(slot, _SUMS_KEY))

    @property
    def kek_id(self) -> bytes:
        """16 bytes that name the KEK."""
        return self._kek_id

    def seal(self, associated_data: bytes, secret: bytes) -> bytes:
        """Seal a secret, bound to the associated data."""
        return self._arena.seal_bytes(self.slot, associated_data, secret)

    def open(self, associated_data: bytes, sealed: bytes) -> bytes:
        """The secret.

        Raises:
            InvalidSeal: It was not sealed like that under this KEK.
        """
        try:
            return self._arena.open_bytes(self.slot, associated_data, sealed)
        except InvalidTag:
            raise InvalidSeal from None

    def fingerprint(self, sealed: bytes) -> bytes:
        """A keyed hash of sealed bytes, 64 bytes: HMAC-SHA-256 under a key of its own, spread by
        SHA-512, so that the key stays in the arena.
        """
        message = sealed if len(sealed) <= ITEM_SIZE_MAX else sha512(sealed).digest()
        return sha512(self._arena.hmac_sha256(self._sums_slot, message)).digest()

    def derived_mac(self, label: bytes) -> Callable[[bytes], bytes]:
        """HMAC-SHA-256 under a key that is derived for a label and stays in the arena."""
        derived = self._arena.hmac_sha256(self.slot, label)
        return partial(self._arena.hmac_sha256, self._arena.load(derived))


class Root(Protocol):
    """Seals and opens KEKs."""

    row: RootRow

    async def seal(self, slot: int, associated_data: bytes) -> bytes:
        """Seal the key in an arena slot."""

    async def open(self, sealed: bytes, associated_data: bytes) -> int:
        """Open a sealed key into an arena slot; raises OperatorError if it does not open."""


class FileRoot:
    """A root key in a file; for development only.

    Args:
        arena: Where the key is kept.
        path: The file, mode 0600, 32 bytes.
        row: What the store knows of it.
    """

    def __init__(self, arena: Arena, path: Path, row: RootRow) -> None:
        self._arena = arena
        self._path = path
        self._slot = arena.load(_read_root_file(path))
        self.row = row

    @staticmethod
    def make_file(path: Path) -> None:
        """Make the file if it is not there.

        Raises:
            OperatorError: It cannot be written.
        """
        if path.exists():
            return
        try:
            write_file(path, os.urandom(ROOT_FILE_SIZE))
        except OSError as error:
            raise OperatorError(f"root.file {path} cannot be made: {error.strerror}") from None

    async def seal(self, slot: int, associated_data: bytes) -> bytes:
        """Seal the key in an arena slot."""
        return self._arena.seal_slot(self._slot, associated_data, slot)

    async def open(self, sealed: bytes, associated_data: bytes) -> int:
        """Open a sealed key into an arena slot."""
        try:
            return self._arena.open_slot(self._slot, associated_data, sealed)
        except InvalidTag:
            raise OperatorError(
                f"root.file {self._path} is not the root of this store; give back the right file"
            ) from None


class HsmRoot:
    """A root key in a token."""

    def __init__(self, token: Token, row: RootRow) -> None:
        self._token = token
        self._key = HsmKey(row.cka_id, "AES_256", row.proof, b"")
        self.row = row

    async def seal(self, slot: int, associated_data: bytes) -> bytes:
        """Seal the key in an arena slot, in the token."""
        deadline = time.monotonic() + ROOT_TIMEOUT_S
        try:
            return await self._token.seal_slot(self._key, slot, associated_data, deadline=deadline)
        except TokenError as error:
            raise self._failed(error) from error

    async def open(self, sealed: bytes, associated_data: bytes) -> int:
        """Open a sealed key into an arena slot, in the token."""
        deadline = time.monotonic() + ROOT_TIMEOUT_S
        try:
            return await self._token.open_slot(
                self._key, sealed, associated_data, deadline=deadline
            )
        except TokenError as error:
            raise self._failed(error) from error

    def _failed(self, error: TokenError) -> OperatorError:
        return OperatorError(
            f"token {self.row.token} does not open this store's root key: {error}; check that it "
            "is the token the store was initialised with (`hsmux hsm probe` shows it)"
        )


def _read_root_file(path: Path) -> bytes:
    check_secret("root.file", path)
    data = path.read_bytes()
    if len(data) != ROOT_FILE_SIZE:
        raise OperatorError(f"root.file {path} must have {ROOT_FILE_SIZE} bytes, not {len(data)}")
    return data


def _bound_to(deployment: bytes, kek_id: bytes, root_id: bytes) -> bytes:
    data: bytes = msgpack.packb([deployment, "kek", kek_id, root_id])
    return data


async def make_kek(arena: Arena, root: Root, store: Store) -> tuple[ArenaSealer, list[Row]]:
    """A new KEK, and the rows that lead to it.

    Returns:
        The sealer, and the rows to insert in the transaction that seals the store.
    """
    slot = arena.generate()
    kek_id = os.urandom(16)
    bound_to = _bound_to(store.deployment_id, kek_id, root.row.root_id)
    sealed = await root.seal(slot, bound_to)
    at_ms = now_ms()
    rows: list[Row] = [
        root.row,
        KekRow(kek_id, "active", at_ms),
        KekSealRow(kek_id, root.row.root_id, sealed),
    ]
    return ArenaSealer(arena, slot, kek_id), rows


async def open_kek(arena: Arena, root: Root, store: Store, bootstrap: Bootstrap) -> ArenaSealer:
    """Open the KEK of a sealed store.

    Raises:
        OperatorError: No seal of this root is in the store, or it does not open.
    """
    for seal in bootstrap.kek_seals:
        if seal.root_id == root.row.root_id:
            bound_to = _bound_to(store.deployment_id, seal.kek_id, seal.root_id)
            slot = await root.open(seal.kek_sealed, bound_to)
            return ArenaSealer(arena, slot, seal.kek_id)
    raise OperatorError("no key-encryption key in this store is sealed by the configured root")
