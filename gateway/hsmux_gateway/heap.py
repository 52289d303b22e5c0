"""How the C library's heap behaves in the daemon: large pieces go back, medium ones stay.

glibc learns sizes as a program runs: a block that was mapped for itself and freed raises the size
up to which later ones are kept in the heap. In the daemon that goes wrong twice. The 8 MiB that
hashing a PIN takes for 30 ms would be kept for ever, by each thread that does it. And frames and
answers of some 100 KiB are on either side of the first threshold, so each would be mapped, faulted
in page by page and unmapped again. Fixed sizes end both.
"""

import ctypes
from typing import Final

__all__ = ["MMAP_SIZE", "TRIM_SIZE", "fix_heap_sizes"]

MMAP_SIZE: Final = 2 << 20
"""Bytes from which a block is mapped for itself and given back when freed: more than a frame."""

TRIM_SIZE: Final = 8 << 20
"""Free bytes at the top of the heap that are kept for what comes next."""

# Names of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def fix_heap_sizes() -> bool:
    """Fix the sizes for this process; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_THRESHOLD: MMAP_SIZE, _M_TRIM_THRESHOLD: TRIM_SIZE}
    return all(mallopt(name, size) == 1 for name, size in settings.items())
