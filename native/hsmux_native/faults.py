"""Writing rules for the fault-injecting PKCS#11 adapter, and reading what it counted.

For tests of programs that use PKCS#11; docs/fault-injection.md says what can be injected. The
layout of the counters file is documented in `native/adapter/counters.c`.
"""

import os
import struct
import time
from pathlib import Path
from typing import Final

__all__ = ["FUNCTIONS", "Counters", "write_rules"]

# The order of CK_FUNCTION_LIST, PKCS#11 base specification v2.40.
FUNCTIONS: Final[tuple[str, ...]] = tuple(
    """
    C_Initialize C_Finalize C_GetInfo C_GetFunctionList C_GetSlotList C_GetSlotInfo C_GetTokenInfo
    C_GetMechanismList C_GetMechanismInfo C_InitToken C_InitPIN C_SetPIN C_OpenSession
    C_CloseSession C_CloseAllSessions C_GetSessionInfo C_GetOperationState C_SetOperationState
    C_Login C_Logout C_CreateObject C_CopyObject C_DestroyObject C_GetObjectSize
    C_GetAttributeValue C_SetAttributeValue C_FindObjectsInit C_FindObjects C_FindObjectsFinal
    C_EncryptInit C_Encrypt C_EncryptUpdate C_EncryptFinal C_DecryptInit C_Decrypt C_DecryptUpdate
    C_DecryptFinal C_DigestInit C_Digest C_DigestUpdate C_DigestKey C_DigestFinal C_SignInit C_Sign
    C_SignUpdate C_SignFinal C_SignRecoverInit C_SignRecover C_VerifyInit C_Verify C_VerifyUpdate
    C_VerifyFinal C_VerifyRecoverInit C_VerifyRecover C_DigestEncryptUpdate C_DecryptDigestUpdate
    C_SignEncryptUpdate C_DecryptVerifyUpdate C_GenerateKey C_GenerateKeyPair C_WrapKey C_UnwrapKey
    C_DeriveKey C_SeedRandom C_GenerateRandom C_GetFunctionStatus C_CancelFunction
    C_WaitForSlotEvent
    """.split()
)
"""The functions the adapter counts, and rules can name, in the order of the standard's list."""

_MAGIC: Final = b"hsmuxct1"
_FILE_SIZE_BYTES: Final = 20480
_CALLS_WORD: Final = 1
_FAULTS_WORD: Final = 128


class Counters:
    """What all processes with `HSMUX_ADAPTER_COUNTERS` set to one file have counted together.

    Args:
        path: The file; the adapter makes it at the first call.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def count(self, function: str) -> int:
        """Calls of a function such as `C_Login`, whatever they were answered.

        Raises:
            ValueError: There is no such function, or the file is not the adapter's.
        """
        return self._word(_CALLS_WORD, function)

    def faults(self, function: str) -> int:
        """Calls of a function that a rule did something to; counted before it is done.

        Raises:
            ValueError: There is no such function, or the file is not the adapter's.
        """
        return self._word(_FAULTS_WORD, function)

    def _word(self, base: int, function: str) -> int:
        if function not in FUNCTIONS:
            raise ValueError(f"{function}: not a function of PKCS#11 v2.40")
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        # A file that the adapter is about to fill is empty first, and then has no magic yet.
        if not data.strip(b"\0") and len(data) in (0, _FILE_SIZE_BYTES):
            return 0
        if len(data) != _FILE_SIZE_BYTES or data[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"{self._path}: not a file of the adapter's counters; remove it")
        word: int
        (word,) = struct.unpack_from("=Q", data, 8 * (base + FUNCTIONS.index(function)))
        return word


def write_rules(path: str | os.PathLike[str], *lines: str) -> None:
    """Replace the rules file at once, so that no call sees half of it.

    The rules start to count anew, even those that are as before.

    Args:
        path: The file that `HSMUX_ADAPTER_RULES` names.
        lines: Rules and settings, one each; none at all injects nothing.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}")
    temporary.write_text("".join(f"{line}\n" for line in lines))
    # The kernel's own times are coarse, and a new file may get the old one's inode.
    now_ns = time.time_ns()
    os.utime(temporary, ns=(now_ns, now_ns))
    os.replace(temporary, target)
