"""AES-GCM over a PKCS#11 module that this process has initialised: many records a call.

The module's function list comes from the same shared object that python-pkcs11 loaded; sessions and
handles are the numbers it shows. Codes are PKCS#11 return values, or one of the three that begin
with 0xffffffff.
"""

import mmap
import os
from typing import Any, Final

from . import NativeError, _check, _new, _taken
from ._native import ffi, lib

__all__ = ["BAD_OUTPUT", "DEADLINE", "IV_SIZE", "NOT_STARTED", "Pkcs11Loop", "SecretPage"]

IV_SIZE: Final[int] = lib.HS_IV_SIZE
TAG_SIZE: Final[int] = lib.HS_TAG_SIZE

NOT_STARTED: Final[int] = lib.HS_P11_NOT_STARTED
"""An item that was not begun, because an earlier one ended the column."""

BAD_OUTPUT: Final[int] = lib.HS_P11_BAD_OUTPUT
"""The module answered with an output that cannot be right."""

DEADLINE: Final[int] = lib.HS_P11_DEADLINE
"""An item whose deadline passed before its turn."""


class SecretPage:
    """A page of secret memory that the daemon shares with one worker by descriptor.

    Args:
        fd: A descriptor that was inherited; None makes a new page.
        size_bytes: Its size.
    """

    def __init__(self, fd: int | None = None, size_bytes: int = mmap.PAGESIZE) -> None:
        self.fd = lib.hs_secret_fd(size_bytes) if fd is None else fd
        if self.fd < 0:
            raise NativeError("no secret memory can be had")
        self.view = mmap.mmap(self.fd, size_bytes)

    def wipe(self) -> None:
        """Zero the page."""
        self.view[:] = bytes(len(self.view))

    def close(self) -> None:
        """Zero the page and give it up."""
        self.wipe()
        self.view.close()
        os.close(self.fd)


class Pkcs11Loop:
    """Calls a module's C_Encrypt and C_Decrypt for AES-GCM.

    Args:
        module_path: The shared object python-pkcs11 has loaded and initialised.

    Raises:
        ValueError: It cannot be loaded or is no PKCS#11 module.
    """

    def __init__(self, module_path: str) -> None:
        found = ffi.new("void **")
        _check(lib.hs_p11_open(module_path.encode(), found))
        self._list = found[0]

    def gcm(
        self,
        session: int,
        key: int,
        items: bytes,
        associated_data: bytes,
        *,
        encrypting: bool,
        ivs: bytes = b"",
        deadline_ns: int = 0,
    ) -> tuple[bytes, list[int]]:
        """Encrypt or decrypt a column.

        Args:
            session: Session handle.
            key: Object handle.
            items: A column: plaintexts, or IV 12 ‖ ciphertext ‖ tag 16.
            associated_data: A column of one for all, or one for each item.
            encrypting: The direction.
            ivs: 12 bytes for each item when encrypting.
            deadline_ns: CLOCK_MONOTONIC in nanoseconds, asked before each item; 0: none.

        Returns:
            The column of outputs (IV 12 ‖ ciphertext ‖ tag 16, or plaintexts), and a code for
            each item; an item whose code is not 0 has an empty output.

        Raises:
            ValueError: A column is malformed, or there are not as many IVs as items.
        """
        count = int.from_bytes(items[:4], "big")
        if count > lib.HS_BATCH_ITEMS_MAX or (encrypting and len(ivs) != count * IV_SIZE):
            raise ValueError("as many IVs of 12 bytes as items, at most 16,384")
        size = len(items) + count * (IV_SIZE + TAG_SIZE)
        outputs = _new("uint8_t[]", max(size, 8))
        outputs_size = ffi.new("size_t *", size)
        codes = ffi.new("uint64_t[]", max(count, 1))
        _check(
            lib.hs_p11_gcm(
                self._list,
                encrypting,
                session,
                key,
                ivs,
                associated_data,
                len(associated_data),
                items,
                len(items),
                deadline_ns,
                outputs,
                outputs_size,
                codes,
            )
        )
        return _taken(outputs, outputs_size[0]), ffi.unpack(codes, count)

    def seal_page(
        self, session: int, key: int, iv: bytes, associated_data: bytes, source: Any
    ) -> tuple[int, bytes]:
        """Encrypt secret memory: a code, and IV 12 ‖ ciphertext ‖ tag 16."""
        data = ffi.from_buffer("uint8_t[]", source)
        room = len(data) + TAG_SIZE
        output = _new("uint8_t[]", room)
        size = ffi.new("size_t *", room)
        aad = associated_data
        code = lib.hs_p11_gcm_one(
            self._list, 1, session, key, iv, aad, len(aad), data, len(data), output, size
        )
        return code, iv + _taken(output, size[0]) if code == 0 else b""

    def open_page(
        self, session: int, key: int, sealed: bytes, associated_data: bytes, destination: Any
    ) -> int:
        """Decrypt what `seal_page` made into secret memory; a code."""
        if len(sealed) < IV_SIZE + TAG_SIZE:
            raise ValueError("shorter than IV and tag")
        into = ffi.from_buffer("uint8_t[]", destination, require_writable=True)
        data, aad = sealed[IV_SIZE:], associated_data
        size = ffi.new("size_t *", len(data))
        if len(into) < len(data):
            raise ValueError("the destination is too small")
        code: int = lib.hs_p11_gcm_one(
            self._list, 0, session, key, sealed, aad, len(aad), data, len(data), into, size
        )
        return code
