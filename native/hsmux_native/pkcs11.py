"""AES-GCM over a PKCS#11 module that this process has initialised: many records a call.

The module's function list comes from the same shared object that python-pkcs11 loaded; sessions and
handles are the numbers it shows. Codes are PKCS#11 return values, or one of the three that begin
with 0xffffffff. `native/src/pkcs11.c` says which rules the loop follows and why.
"""

import mmap
import os
from collections.abc import Sequence
from typing import Any, Final, Literal

from ._bridge import Buffer, as_bytes, check, new, taken
from ._native import ffi, lib
from .errors import NativeError

__all__ = [
    "BAD_OUTPUT",
    "DEADLINE",
    "IV_SIZE",
    "NOT_STARTED",
    "TAG_SIZE",
    "Pkcs11Loop",
    "SecretPage",
]

IV_SIZE: Final[int] = lib.HS_IV_SIZE
TAG_SIZE: Final[int] = lib.HS_TAG_SIZE

NOT_STARTED: Final[int] = lib.HS_P11_NOT_STARTED
"""An item that was not begun, because an earlier one ended the column."""

BAD_OUTPUT: Final[int] = lib.HS_P11_BAD_OUTPUT
"""The module answered with an output that cannot be right."""

DEADLINE: Final[int] = lib.HS_P11_DEADLINE
"""An item whose deadline passed before its turn."""

_PROGRESS_SIZE: Final = 4


class SecretPage:
    """Secret memory that the daemon shares with one worker by descriptor.

    The memory is memfd_secret(2) where the kernel has it, else a locked memfd whose size is sealed;
    forked children do not get it, core files neither. The descriptor is closed on exec: hand it on
    with `pass_fds`.

    Args:
        fd: An inherited descriptor, which is this object's from now on; None makes new memory.
        size_bytes: Its size, less than 1 GiB.
        kind: `memfd_secret` or `memfd` demands one; None takes the first that can be had.

    Attributes:
        fd: The descriptor.
        view: The memory, mapped.

    Raises:
        NativeError: The memory cannot be had or locked.
        ValueError: There is less memory behind `fd` than `size_bytes`, or there is no such kind.
    """

    def __init__(
        self,
        fd: int | None = None,
        size_bytes: int = mmap.PAGESIZE,
        *,
        kind: Literal["memfd_secret", "memfd"] | None = None,
    ) -> None:
        if not 0 < size_bytes < 2**30:
            raise ValueError("size_bytes: more than 0, less than 1 GiB")
        if kind not in (None, "memfd_secret", "memfd"):
            raise ValueError("kind: memfd_secret or memfd")
        wanted = ffi.NULL if kind is None else kind.encode()
        self.fd: int = lib.hs_secret_fd(size_bytes, wanted) if fd is None else fd
        if self.fd < 0:
            raise NativeError("no secret memory can be had: no such kind, or no descriptor is free")
        try:
            self.view = self._map(size_bytes)
        except BaseException:
            os.close(self.fd)
            raise

    def _map(self, size_bytes: int) -> mmap.mmap:
        try:
            view = mmap.mmap(self.fd, size_bytes)
        except OSError as error:
            raise NativeError(f"no secret memory can be had: {error.strerror}") from None
        if lib.hs_secret_protect(self.fd, ffi.from_buffer(view), size_bytes) != lib.HS_OK:
            raise NativeError(f"cannot lock {size_bytes} bytes of memory; raise RLIMIT_MEMLOCK")
        return view

    def wipe(self) -> None:
        """Zero the page."""
        self.view[:] = bytes(len(self.view))

    def close(self) -> None:
        """Zero the page and give it up."""
        self.wipe()
        self.view.close()
        os.close(self.fd)


class Pkcs11Loop:
    """Calls a module's C_Encrypt and C_Decrypt for AES-GCM with 96-bit IVs and 128-bit tags.

    Args:
        module_path: The shared object python-pkcs11 has loaded and initialised.

    Raises:
        ValueError: It cannot be loaded or is no PKCS#11 module.
    """

    def __init__(self, module_path: str) -> None:
        found = ffi.new("void **")
        if lib.hs_p11_open(os.fsencode(module_path), found) != lib.HS_OK:
            raise ValueError(f"{module_path}: not a PKCS#11 module that can be loaded")
        self._list = found[0]

    def gcm(
        self,
        session: int,
        key: int,
        items: Buffer,
        associated_data: Buffer,
        *,
        encrypting: bool,
        ivs: Buffer = b"",
        deadline_ns: int | Sequence[int] = 0,
        progress: Any = None,
        general_error_is_data: bool = True,
    ) -> tuple[bytes, list[int]]:
        """Encrypt or decrypt a column with CKM_AES_GCM (PKCS#11 current mechanisms v2.40, 2.12).

        The column ends at the first code that is neither success nor speaks of the item's data
        (CKR_DATA_INVALID, CKR_DATA_LEN_RANGE and, when decrypting, CKR_ENCRYPTED_DATA_INVALID and
        CKR_ENCRYPTED_DATA_LEN_RANGE); items behind it are `NOT_STARTED`.

        Args:
            session: Session handle.
            key: Object handle.
            items: A column of at most 16,384 and 1 GiB: plaintexts, or IV 12 ‖ ciphertext ‖ tag 16.
            associated_data: A column of one for all, or one for each item.
            encrypting: The direction.
            ivs: 12 bytes for each item when encrypting.
            deadline_ns: CLOCK_MONOTONIC in nanoseconds, asked before each item; one for all or one
                for each item; 0: none.
            progress: Writable memory of at least 4 bytes, aligned to 4, that gets the running
                item's number plus one (u32 of this machine), and 0 at the end.
            general_error_is_data: When decrypting, CKR_GENERAL_ERROR does not end the column: some
                modules answer a wrong tag with it.

        Returns:
            The column of outputs (IV 12 ‖ ciphertext ‖ tag 16, or plaintexts), and a code for
            each item; an item whose code is not 0 has an empty output.

        Raises:
            ValueError: A column is malformed, or there are not as many IVs, texts of associated
                data or deadlines as items.
        """
        items, aads, ivs = as_bytes(items), as_bytes(associated_data), as_bytes(ivs)
        count = int.from_bytes(items[:4], "big")
        if count > lib.HS_BATCH_ITEMS_MAX or len(items) > lib.HS_P11_COLUMN_SIZE_MAX:
            raise ValueError(f"at most {lib.HS_BATCH_ITEMS_MAX} items and 1 GiB")
        ends = [deadline_ns] if isinstance(deadline_ns, int) else list(deadline_ns)
        parts = {
            "ivs": ffi.from_buffer("uint8_t[]", ivs),
            "aads": ffi.from_buffer("uint8_t[]", aads),
            "items": ffi.from_buffer("uint8_t[]", items),
            "deadlines_ns": ffi.new("uint64_t[]", ends),
            "progress": _progress(progress),
        }
        batch = ffi.new("hs_p11_batch *", parts)
        batch.encrypting = encrypting
        batch.general_error_is_data = general_error_is_data
        batch.session, batch.key = session, key
        batch.ivs_size, batch.aads_size = len(ivs), len(aads)
        batch.items_size, batch.deadlines_count = len(items), len(ends)
        size = len(items) + count * (IV_SIZE + TAG_SIZE)
        outputs, outputs_size = new("uint8_t[]", max(size, 8)), ffi.new("size_t *", size)
        codes = ffi.new("uint64_t[]", max(count, 1))
        check(lib.hs_p11_gcm(self._list, batch, outputs, outputs_size, codes))
        return taken(outputs, outputs_size[0]), ffi.unpack(codes, count)

    def seal_page(
        self, session: int, key: int, iv: bytes, associated_data: bytes, source: Any
    ) -> tuple[int, bytes]:
        """Encrypt secret memory: a code, and IV 12 ‖ ciphertext ‖ tag 16, or nothing.

        Args:
            session: Session handle.
            key: Object handle.
            iv: 12 bytes.
            associated_data: Of any size that the module takes.
            source: The memory, read in place.

        Raises:
            ValueError: The IV has not 12 bytes.
        """
        if len(iv) != IV_SIZE:
            raise ValueError(f"iv: {IV_SIZE} bytes")
        data = ffi.from_buffer("uint8_t[]", source)
        room = len(data) + TAG_SIZE
        output = new("uint8_t[]", room)
        size = ffi.new("size_t *", room)
        aad = associated_data
        code = lib.hs_p11_gcm_one(
            self._list, 1, session, key, iv, aad, len(aad), data, len(data), output, size
        )
        return code, iv + taken(output, size[0]) if code == 0 else b""

    def open_page(
        self, session: int, key: int, sealed: bytes, associated_data: bytes, destination: Any
    ) -> int:
        """Decrypt what `seal_page` made into secret memory; a code.

        Args:
            session: Session handle.
            key: Object handle.
            sealed: IV 12 ‖ ciphertext ‖ tag 16.
            associated_data: As it was sealed.
            destination: Writable memory with room for ciphertext and tag: modules want it.

        Raises:
            ValueError: `sealed` is too short, or the destination.
        """
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


def _progress(memory: Any) -> Any:
    """A pointer to the u32 that names the running item."""
    if memory is None:
        return ffi.NULL
    into = ffi.from_buffer("uint8_t[]", memory, require_writable=True)
    if len(into) < _PROGRESS_SIZE or int(ffi.cast("uintptr_t", into)) % _PROGRESS_SIZE:
        raise ValueError(f"progress: at least {_PROGRESS_SIZE} bytes, aligned")
    return ffi.cast("uint32_t *", into)
