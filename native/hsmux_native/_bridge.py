"""The border between Python and C: buffers in, bytes out, status codes as exceptions."""

from typing import Any, Final

from ._native import ffi, lib
from .errors import ArenaFull, InvalidSlot, InvalidTag, NativeError, SelfTestFailed

__all__ = ["Buffer", "as_bytes", "check", "new", "sized", "slot_number", "taken", "text"]

Buffer = bytes | bytearray | memoryview

new: Final = ffi.new_allocator(should_clear_after_alloc=False)
"""Allocates without clearing: every byte that is read back was written by C."""

_ERRORS: Final[dict[int, tuple[type[Exception], str]]] = {
    lib.HS_INVALID: (InvalidTag, "does not open"),
    lib.HS_TOO_LARGE: (ValueError, f"more than {lib.HS_ITEM_SIZE_MAX} bytes"),
    lib.HS_BAD_ARGUMENT: (ValueError, "a column or length that is malformed or over a limit"),
    lib.HS_BAD_SLOT: (InvalidSlot, "no key under this slot number"),
    lib.HS_FULL: (ArenaFull, "the arena is full"),
    lib.HS_NO_RANDOM: (
        NativeError,
        "the operating system gives no random bytes, or the same twice",
    ),
    lib.HS_NO_MEMORY: (NativeError, "memory cannot be had, mapped or locked"),
    lib.HS_FORKED: (NativeError, "the arena belongs to another process"),
    lib.HS_SELF_TEST: (SelfTestFailed, "a known-answer test failed"),
    lib.HS_NOT_FOUND: (ValueError, "not a PKCS#11 module that can be loaded"),
}


def check(status: int) -> None:
    """Raise what a status stands for, if it is not HS_OK."""
    if status != lib.HS_OK:
        error, reason = _ERRORS[status]
        raise error(reason)


def as_bytes(data: Buffer) -> bytes:
    """The bytes that C is given; a copy unless they are `bytes` already.

    C checks lengths once, without the interpreter's lock, so nobody may change the bytes then.
    """
    return data if type(data) is bytes else bytes(data)


def taken(output: Any, size: int) -> bytes:
    """The first `size` bytes of a C buffer."""
    data: bytes = ffi.buffer(output, size)[:]
    return data


def text(pointer: Any) -> str:
    """A text that C owns."""
    found: bytes = ffi.string(pointer)
    return found.decode()


def sized(data: Buffer, size: int, name: str) -> bytes:
    """The bytes that C is given, when there are exactly `size` of them."""
    found = as_bytes(data)
    if len(found) != size:
        raise ValueError(f"{name}: {size} bytes, not {len(found)}")
    return found


def slot_number(number: int) -> int:
    """A number that can be a slot's; others mean no slot."""
    if not 0 <= number < 2**64:
        raise InvalidSlot("no key under this slot number")
    return number
