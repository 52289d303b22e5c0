"""A module's function list: for the few calls that python-pkcs11 does not offer as they are.

The list comes from the same shared object that python-pkcs11 has loaded and initialised in this
process. Structures and the order of functions are those of PKCS#11 v2.40 section 3.
"""

import ctypes
from typing import Any, Final

from hsmux_native.faults import FUNCTIONS

from .failures import Failure

__all__ = [
    "CK_UNAVAILABLE",
    "FunctionList",
    "GcmParameters",
    "MechanismRecord",
    "TokenInfo",
    "plain_mechanism",
]

CK_UNAVAILABLE: Final = ctypes.c_ulong(-1).value
"""CK_UNAVAILABLE_INFORMATION."""

WRAPPED_SIZE_MAX: Final = 4096
"""Bytes of the largest wrapped key that is taken."""


class TokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO."""

    _fields_ = (
        ("label", ctypes.c_char * 32),
        ("manufacturerID", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serialNumber", ctypes.c_char * 16),
        ("flags", ctypes.c_ulong),
        ("ulMaxSessionCount", ctypes.c_ulong),
        ("ulSessionCount", ctypes.c_ulong),
        ("ulMaxRwSessionCount", ctypes.c_ulong),
        ("ulRwSessionCount", ctypes.c_ulong),
        ("ulMaxPinLen", ctypes.c_ulong),
        ("ulMinPinLen", ctypes.c_ulong),
        ("ulTotalPublicMemory", ctypes.c_ulong),
        ("ulFreePublicMemory", ctypes.c_ulong),
        ("ulTotalPrivateMemory", ctypes.c_ulong),
        ("ulFreePrivateMemory", ctypes.c_ulong),
        ("hardwareVersion", ctypes.c_ubyte * 2),
        ("firmwareVersion", ctypes.c_ubyte * 2),
        ("utcTime", ctypes.c_char * 16),
    )


class GcmParameters(ctypes.Structure):
    """CK_GCM_PARAMS."""

    _fields_ = (
        ("pIv", ctypes.c_char_p),
        ("ulIvLen", ctypes.c_ulong),
        ("ulIvBits", ctypes.c_ulong),
        ("pAAD", ctypes.c_char_p),
        ("ulAADLen", ctypes.c_ulong),
        ("ulTagBits", ctypes.c_ulong),
    )


class MechanismRecord(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = (
        ("mechanism", ctypes.c_ulong),
        ("pParameter", ctypes.c_void_p),
        ("ulParameterLen", ctypes.c_ulong),
    )


def plain_mechanism(number: int) -> MechanismRecord:
    """A mechanism without parameters."""
    return MechanismRecord(number, None, 0)


class FunctionList:
    """A module's functions by name.

    Args:
        module: Path of the shared object.
    """

    def __init__(self, module: str) -> None:
        get: Any = ctypes.CDLL(module).C_GetFunctionList
        self._functions = ctypes.POINTER(ctypes.c_void_p)()
        code = get(ctypes.byref(self._functions))
        if code:
            raise Failure("operator", code, "its module cannot be loaded, or is no PKCS#11 module")

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function; its return code.

        Args:
            name: Such as `C_Encrypt`.
            arguments: Instances of ctypes types, or None for a null pointer.
        """
        types = [ctypes.c_void_p if a is None else type(a) for a in arguments]
        # The first member of CK_FUNCTION_LIST is its version, padded to a pointer's size.
        pointer = self._functions[1 + FUNCTIONS.index(name)]
        return int(ctypes.CFUNCTYPE(ctypes.c_ulong, *types)(pointer)(*arguments))

    def wrap_key(
        self, session: int, wrapping: int, key: int, mechanism: MechanismRecord
    ) -> tuple[int, bytes]:
        """C_WrapKey into a buffer that is large enough: some modules tell no length beforehand.

        Args:
            session: Handle.
            wrapping: Handle of the wrapping key.
            key: Handle of the key to wrap.
            mechanism: With its parameters.

        Returns:
            The return code, and the wrapped key.
        """
        output = ctypes.create_string_buffer(WRAPPED_SIZE_MAX)
        length = ctypes.c_ulong(WRAPPED_SIZE_MAX)
        code = self.call(
            "C_WrapKey",
            ctypes.c_ulong(session),
            ctypes.pointer(mechanism),
            ctypes.c_ulong(wrapping),
            ctypes.c_ulong(key),
            ctypes.cast(output, ctypes.c_char_p),
            ctypes.pointer(length),
        )
        return code, output.raw[: length.value] if code == 0 else b""

    def token_info(self, slot_id: int) -> TokenInfo | None:
        """What the token says of itself; None if it does not."""
        info = TokenInfo()
        code = self.call("C_GetTokenInfo", ctypes.c_ulong(slot_id), ctypes.pointer(info))
        return None if code else info
