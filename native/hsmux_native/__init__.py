"""The C module: key memory and AES-256-GCM for the gateway's hot path.

Keys live in an `Arena`: locked memory outside of Python, addressed by slot numbers. Sealing and
opening take a slot and bytes; a key's own bytes become a Python object only where a docstring says
so. Envelopes are XAES-256-GCM (C2SP); see `hsmux_protocol.envelope` for their format and
`native/src/seal.c` for why no nonce repeats. `hsmux_native.pkcs11` runs AES-GCM over a PKCS#11
module.

At import the module chooses libipsec-mb or OpenSSL, whichever passes its known-answer tests first;
`HSMUX_NATIVE_BACKEND` (`ipsec-mb` or `openssl`) demands one.
"""

from pathlib import Path

from . import _native
from ._bridge import Buffer
from .aead import (
    ITEM_SIZE_MAX,
    backend,
    gcm_open,
    gcm_seal,
    hmac_sha256,
    self_test,
    xaes_open,
    xaes_seal,
)
from .arena import Arena, ArenaStatistics
from .errors import ArenaFull, InvalidSlot, InvalidTag, NativeError, SelfTestFailed

__all__ = [
    "ITEM_SIZE_MAX",
    "Arena",
    "ArenaFull",
    "ArenaStatistics",
    "Buffer",
    "InvalidSlot",
    "InvalidTag",
    "NativeError",
    "SelfTestFailed",
    "adapter_path",
    "backend",
    "gcm_open",
    "gcm_seal",
    "hmac_sha256",
    "self_test",
    "xaes_open",
    "xaes_seal",
]


def adapter_path(*, faults: bool = False) -> str:
    """The PKCS#11 adapter module, for `HSMUX_ADAPTER_MODULE` to name the vendor's.

    Args:
        faults: The build that injects faults; see docs/fault-injection.md.

    Raises:
        FileNotFoundError: It was not built.
    """
    name = "libhsmux_adapter_faults.so" if faults else "libhsmux_adapter.so"
    path = Path(_native.__file__).parent / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: install hsmux-gateway again")
    return str(path)
