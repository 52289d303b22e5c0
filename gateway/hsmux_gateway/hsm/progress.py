"""What a worker is doing, told to the daemon through memory that both share.

A worker that crashed or hangs says nothing any more, so it publishes beforehand which message it
begins and which item of it is with the module: `u64 message ‖ u32 item`, in the machine's byte
order. Message 0 is none; item 0 is what comes before the first item, such as finding the key.
"""

import mmap
import os
import struct
from typing import Final

__all__ = ["Progress"]

_MESSAGE: Final = struct.Struct("=Q")
_BOTH: Final = struct.Struct("=QI")


class Progress:
    """The shared memory.

    Args:
        fd: A descriptor that was inherited; None makes new memory.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("hsmux-progress", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)
        self.item = memoryview(self._memory)[_MESSAGE.size : _BOTH.size]
        """The item's four bytes, for the C loop to write."""

    def begin(self, message: int) -> None:
        """A message is begun, or with 0 none is."""
        self._memory[_MESSAGE.size : _BOTH.size] = bytes(4)
        _MESSAGE.pack_into(self._memory, 0, message)

    def enter(self, item: int) -> None:
        """An item is begun, from 1."""
        struct.pack_into("=I", self._memory, _MESSAGE.size, item)

    def read(self) -> tuple[int, int]:
        """The message and the item of it."""
        message, item = _BOTH.unpack_from(self._memory)
        return message, item

    def close(self) -> None:
        """Give the memory up."""
        self.item.release()
        self._memory.close()
        os.close(self.fd)
