"""PKCS#11 return codes as classes: what a code says about whose fault it was and what helps.

The classes, and what a worker does with them. After everything but a proven caller's fault the work
session is closed, another one is opened, and the canary has to sing in it; does it not, the worker
ends and a new one takes its place.

    caller       the data of this one item: believed when it comes again
    suspect      a decrypt's code that some modules give for bad data and others for a broken
                 device: like `caller` when a canary sings right after it
    unsupported  the token does not do this at all
    key          the object may not do this
    busy         the token has too much to do: later
    sessions     the token has no session left: with fewer workers
    auth         the login was refused: nobody logs in until an operator acts
    session      the session or what it knew is gone: once more in a new one
    token        the token is away or broken
    module       the module itself is unusable
    unknown      none of these; treated like token

Codes are from PKCS#11 v2.40 section 11.1 and v3.0 section 5.1. What a code means for one operation
only is in `BY_OPERATION`, a vendor's deviations are in `OVERRIDES`.
"""

import re
from typing import Final

__all__ = [
    "BY_OPERATION",
    "CLASSES",
    "NAMES",
    "OVERRIDES",
    "UNKNOWN_CODE",
    "class_of",
    "code_of",
    "name_of",
]

_TABLE: Final[dict[str, tuple[tuple[int, str, str], ...]]] = {
    "caller": (
        (0x20, "DATA_INVALID", "DataInvalid"),
        (0x21, "DATA_LEN_RANGE", "DataLenRange"),
        (0x40, "ENCRYPTED_DATA_INVALID", "EncryptedDataInvalid"),
        (0x41, "ENCRYPTED_DATA_LEN_RANGE", "EncryptedDataLenRange"),
    ),
    "key": (
        (0x10, "ATTRIBUTE_READ_ONLY", "AttributeReadOnly"),
        (0x11, "ATTRIBUTE_SENSITIVE", "AttributeSensitive"),
        (0x12, "ATTRIBUTE_TYPE_INVALID", "AttributeTypeInvalid"),
        (0x13, "ATTRIBUTE_VALUE_INVALID", "AttributeValueInvalid"),
        (0x1B, "ACTION_PROHIBITED", ""),
        (0x62, "KEY_SIZE_RANGE", "KeySizeRange"),
        (0x63, "KEY_TYPE_INCONSISTENT", "KeyTypeInconsistent"),
        (0x64, "KEY_NOT_NEEDED", "KeyNotNeeded"),
        (0x65, "KEY_CHANGED", ""),
        (0x66, "KEY_NEEDED", "KeyNeeded"),
        (0x67, "KEY_INDIGESTIBLE", "KeyIndigestible"),
        (0x68, "KEY_FUNCTION_NOT_PERMITTED", ""),
        (0x69, "KEY_NOT_WRAPPABLE", "KeyNotWrappable"),
        (0x6A, "KEY_UNEXTRACTABLE", "KeyUnextractable"),
        (0x70, "MECHANISM_INVALID", "MechanismInvalid"),
        (0x71, "MECHANISM_PARAM_INVALID", "MechanismParamInvalid"),
        (0xC0, "SIGNATURE_INVALID", "SignatureInvalid"),
        (0xC1, "SIGNATURE_LEN_RANGE", "SignatureLenRange"),
        (0xD0, "TEMPLATE_INCOMPLETE", "TemplateIncomplete"),
        (0xD1, "TEMPLATE_INCONSISTENT", "TemplateInconsistent"),
        (0xF0, "UNWRAPPING_KEY_HANDLE_INVALID", "UnwrappingKeyHandleInvalid"),
        (0xF1, "UNWRAPPING_KEY_SIZE_RANGE", "UnwrappingKeySizeRange"),
        (0xF2, "UNWRAPPING_KEY_TYPE_INCONSISTENT", "UnwrappingKeyTypeInconsistent"),
        (0x110, "WRAPPED_KEY_INVALID", "WrappedKeyInvalid"),
        (0x112, "WRAPPED_KEY_LEN_RANGE", "WrappedKeyLenRange"),
        (0x113, "WRAPPING_KEY_HANDLE_INVALID", "WrappingKeyHandleInvalid"),
        (0x114, "WRAPPING_KEY_SIZE_RANGE", "WrappingKeySizeRange"),
        (0x115, "WRAPPING_KEY_TYPE_INCONSISTENT", "WrappingKeyTypeInconsistent"),
        (0x170, "INFORMATION_SENSITIVE", ""),
        (0x1B9, "PUBLIC_KEY_INVALID", "PublicKeyInvalid"),
        (0x203, "KEY_EXHAUSTED", ""),
    ),
    "unsupported": (
        (0x54, "FUNCTION_NOT_SUPPORTED", "FunctionNotSupported"),
        (0xE2, "TOKEN_WRITE_PROTECTED", "TokenWriteProtected"),
        (0x130, "DOMAIN_PARAMS_INVALID", "DomainParamsInvalid"),
        (0x140, "CURVE_NOT_SUPPORTED", ""),
    ),
    "busy": (
        (0x06, "FUNCTION_FAILED", "FunctionFailed"),
        (0x31, "DEVICE_MEMORY", "DeviceMemory"),
        (0x50, "FUNCTION_CANCELED", "FunctionCancelled"),
        (0x201, "TOKEN_RESOURCE_EXCEEDED", ""),
    ),
    "sessions": ((0xB1, "SESSION_COUNT", "SessionCount"),),
    "session": (
        (0x60, "KEY_HANDLE_INVALID", "KeyHandleInvalid"),
        (0x82, "OBJECT_HANDLE_INVALID", "ObjectHandleInvalid"),
        (0x90, "OPERATION_ACTIVE", "OperationActive"),
        (0x91, "OPERATION_NOT_INITIALIZED", "OperationNotInitialized"),
        (0xB0, "SESSION_CLOSED", "SessionClosed"),
        (0xB3, "SESSION_HANDLE_INVALID", "SessionHandleInvalid"),
        (0xB5, "SESSION_READ_ONLY", "SessionReadOnly"),
        (0xB6, "SESSION_EXISTS", "SessionExists"),
        (0xB7, "SESSION_READ_ONLY_EXISTS", "SessionReadOnlyExists"),
        (0xB8, "SESSION_READ_WRITE_SO_EXISTS", "SessionReadWriteSOExists"),
        (0x150, "BUFFER_TOO_SMALL", ""),
        (0x202, "OPERATION_CANCEL_FAILED", ""),
    ),
    "auth": (
        (0xA0, "PIN_INCORRECT", "PinIncorrect"),
        (0xA1, "PIN_INVALID", "PinInvalid"),
        (0xA2, "PIN_LEN_RANGE", "PinLenRange"),
        (0xA3, "PIN_EXPIRED", "PinExpired"),
        (0xA4, "PIN_LOCKED", "PinLocked"),
        (0x102, "USER_PIN_NOT_INITIALIZED", "UserPinNotInitialized"),
        (0x1B8, "PIN_TOO_WEAK", "PinTooWeak"),
    ),
    "token": (
        (0x02, "HOST_MEMORY", "HostMemory"),
        (0x05, "GENERAL_ERROR", "GeneralError"),
        (0x30, "DEVICE_ERROR", "DeviceError"),
        (0x32, "DEVICE_REMOVED", "DeviceRemoved"),
        (0xE0, "TOKEN_NOT_PRESENT", "TokenNotPresent"),
        (0xE1, "TOKEN_NOT_RECOGNIZED", "TokenNotRecognised"),
        (0x100, "USER_ALREADY_LOGGED_IN", "UserAlreadyLoggedIn"),
        (0x101, "USER_NOT_LOGGED_IN", "UserNotLoggedIn"),
        (0x103, "USER_TYPE_INVALID", ""),
        (0x104, "USER_ANOTHER_ALREADY_LOGGED_IN", "AnotherUserAlreadyLoggedIn"),
        (0x105, "USER_TOO_MANY_TYPES", "UserTooManyTypes"),
        (0x121, "RANDOM_NO_RNG", "RandomNoRNG"),
        (0x1B6, "FIPS_SELF_TEST_FAILED", ""),
    ),
    "module": (
        (0x01, "CANCEL", ""),
        (0x03, "SLOT_ID_INVALID", "SlotIDInvalid"),
        (0x07, "ARGUMENTS_BAD", "ArgumentsBad"),
        (0x08, "NO_EVENT", "NoEvent"),
        (0x09, "NEED_TO_CREATE_THREADS", ""),
        (0x0A, "CANT_LOCK", ""),
        (0x51, "FUNCTION_NOT_PARALLEL", ""),
        (0xB4, "SESSION_PARALLEL_NOT_SUPPORTED", ""),
        (0x120, "RANDOM_SEED_NOT_SUPPORTED", "RandomSeedNotSupported"),
        (0x160, "SAVED_STATE_INVALID", ""),
        (0x180, "STATE_UNSAVEABLE", ""),
        (0x190, "CRYPTOKI_NOT_INITIALIZED", ""),
        (0x191, "CRYPTOKI_ALREADY_INITIALIZED", ""),
        (0x1A0, "MUTEX_BAD", ""),
        (0x1A1, "MUTEX_NOT_LOCKED", ""),
        (0x1B5, "EXCEEDED_MAX_ITERATIONS", "ExceededMaxIterations"),
        (0x1B7, "LIBRARY_LOAD_FAILED", ""),
        (0x200, "FUNCTION_REJECTED", "FunctionRejected"),
    ),
}

"""By class: code, its name without CKR_, and python-pkcs11's exception for it or ""."""

CLASSES: Final[dict[int, str]] = {row[0]: name for name, rows in _TABLE.items() for row in rows}

NAMES: Final[dict[int, str]] = {row[0]: row[1] for rows in _TABLE.values() for row in rows}

BY_OPERATION: Final[dict[tuple[str, int], str]] = {
    **{
        ("generate", code): "unsupported"
        for code in (0x10, 0x12, 0x13, 0x62, 0x63, 0x70, 0x71, 0xD0, 0xD1)
    },
    **{("put data", code): "unsupported" for code in (0x10, 0x12, 0x13, 0xD0, 0xD1)},
    **{("sign", code): "unsupported" for code in (0x07, 0x70, 0x71)},
    # An encryption's input has no form that could be invalid.
    **{("encrypt", code): "unknown" for code in (0x40, 0x41)},
    **{("sign", code): "unknown" for code in (0x40, 0x41)},
}
"""(operation, code) that means something of its own with every vendor."""

OVERRIDES: Final[dict[str, dict[tuple[str, int], str]]] = {
    # A wrong tag and a short ciphertext: SoftHSM 2.6.1. A worker finds out by itself which code
    # its module gives for a wrong tag; this is for the others it may give.
    "SoftHSM": {("decrypt", 0x05): "suspect", ("generate", 0x06): "token"},
}
"""By the beginning of a manufacturer's name: (operation, code) that means something else there."""

UNKNOWN_CODE: Final = 0xFFFFFFFF
"""Stands for a code that python-pkcs11 does not tell."""

_CODES: Final[dict[str, int]] = {
    row[2]: row[0] for rows in _TABLE.values() for row in rows if row[2]
}
_UNMAPPED: Final = re.compile(r"Unmapped error code (0x[0-9a-f]+)$")


def code_of(error: Exception) -> int:
    """The return code behind an exception of python-pkcs11.

    Its exceptions carry no code: their classes stand for one each, and the rest has the number in
    its text.
    """
    code = _CODES.get(type(error).__name__)
    if code is not None:
        return code
    found = _UNMAPPED.match(str(error))
    return int(found[1], 16) if found else UNKNOWN_CODE


def name_of(code: int) -> str:
    """A code for people: its name, or its number."""
    return NAMES.get(code, f"0x{code:x}")


def class_of(code: int, operation: str, manufacturer: str) -> str:
    """The class of a return code.

    Args:
        code: A CK_RV other than CKR_OK.
        operation: What was done, such as "decrypt".
        manufacturer: As the token names it.
    """
    for vendor, table in OVERRIDES.items():
        if manufacturer.startswith(vendor) and (operation, code) in table:
            return table[operation, code]
    return BY_OPERATION.get((operation, code)) or CLASSES.get(code, "unknown")
