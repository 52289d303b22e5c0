"""PKCS#11 return codes as classes: what a code says about whose fault it was and what helps.

The classes, and what the worker and the pool do with them:

    caller    the data or arguments of this one item; the session goes on
    suspect   a decrypt's code that some modules give for bad data and others for a broken device;
              blamed on the caller after a canary operation succeeded, on the token otherwise
    key       the object is missing or may not do this; the session goes on
    busy      the token has too much to do; try later
    session   the session is gone; open a new one and try once more
    token     the token is away or broken; the worker ends and a new one takes its place
    auth      the login was refused; nobody logs in until an operator acts
    module    the module itself is unusable; the worker ends
    unknown   none of these; treated like token

Codes are from PKCS#11 v2.40 section 11.1. A vendor's deviations go into `OVERRIDES`.
"""

from typing import Final

__all__ = ["CLASSES", "CODE_OF_EXCEPTION", "DEVICE_CLASSES", "OVERRIDES", "class_of"]

_NAMES: Final[dict[str, tuple[tuple[int, str], ...]]] = {
    "caller": (
        (0x20, "DataInvalid"),  # CKR_DATA_INVALID
        (0x21, "DataLenRange"),  # CKR_DATA_LEN_RANGE
        (0x40, "EncryptedDataInvalid"),  # CKR_ENCRYPTED_DATA_INVALID
        (0x41, "EncryptedDataLenRange"),  # CKR_ENCRYPTED_DATA_LEN_RANGE
        (0xC0, "SignatureInvalid"),  # CKR_SIGNATURE_INVALID
        (0xC1, "SignatureLenRange"),  # CKR_SIGNATURE_LEN_RANGE
    ),
    "key": (
        (0x60, "KeyHandleInvalid"),  # CKR_KEY_HANDLE_INVALID
        (0x62, "KeySizeRange"),  # CKR_KEY_SIZE_RANGE
        (0x63, "KeyTypeInconsistent"),  # CKR_KEY_TYPE_INCONSISTENT
        (0x68, "KeyFunctionNotPermitted"),  # CKR_KEY_FUNCTION_NOT_PERMITTED
        (0x70, "MechanismInvalid"),  # CKR_MECHANISM_INVALID
        (0x71, "MechanismParamInvalid"),  # CKR_MECHANISM_PARAM_INVALID
        (0x82, "ObjectHandleInvalid"),  # CKR_OBJECT_HANDLE_INVALID
    ),
    "busy": (
        (0x06, "FunctionFailed"),  # CKR_FUNCTION_FAILED
        (0x31, "DeviceMemory"),  # CKR_DEVICE_MEMORY
        (0xB1, "SessionCount"),  # CKR_SESSION_COUNT
    ),
    "session": (
        (0x90, "OperationActive"),  # CKR_OPERATION_ACTIVE
        (0x91, "OperationNotInitialized"),  # CKR_OPERATION_NOT_INITIALIZED
        (0xB0, "SessionClosed"),  # CKR_SESSION_CLOSED
        (0xB3, "SessionHandleInvalid"),  # CKR_SESSION_HANDLE_INVALID
        (0xB5, "SessionReadOnly"),  # CKR_SESSION_READ_ONLY
    ),
    "token": (
        (0x02, "HostMemory"),  # CKR_HOST_MEMORY
        (0x05, "GeneralError"),  # CKR_GENERAL_ERROR
        (0x30, "DeviceError"),  # CKR_DEVICE_ERROR
        (0x32, "DeviceRemoved"),  # CKR_DEVICE_REMOVED
        (0xE0, "TokenNotPresent"),  # CKR_TOKEN_NOT_PRESENT
        (0xE1, "TokenNotRecognised"),  # CKR_TOKEN_NOT_RECOGNIZED
        (0x101, "UserNotLoggedIn"),  # CKR_USER_NOT_LOGGED_IN
    ),
    "auth": (
        (0xA0, "PinIncorrect"),  # CKR_PIN_INCORRECT
        (0xA1, "PinInvalid"),  # CKR_PIN_INVALID
        (0xA2, "PinLenRange"),  # CKR_PIN_LEN_RANGE
        (0xA3, "PinExpired"),  # CKR_PIN_EXPIRED
        (0xA4, "PinLocked"),  # CKR_PIN_LOCKED
        (0x102, "UserPinNotInitialized"),  # CKR_USER_PIN_NOT_INITIALIZED
    ),
    "module": (
        (0x03, "SlotIDInvalid"),  # CKR_SLOT_ID_INVALID
        (0x07, "ArgumentsBad"),  # CKR_ARGUMENTS_BAD
        (0x54, "FunctionNotSupported"),  # CKR_FUNCTION_NOT_SUPPORTED
        (0x190, "-"),  # CKR_CRYPTOKI_NOT_INITIALIZED
    ),
}

CLASSES: Final[dict[int, str]] = {code: name for name, rows in _NAMES.items() for code, _ in rows}

CODE_OF_EXCEPTION: Final[dict[str, int]] = {
    exception: code for rows in _NAMES.values() for code, exception in rows if exception != "-"
}
"""Return codes by the names of python-pkcs11's exceptions, which do not carry them."""

DEVICE_CLASSES: Final = frozenset({"token", "module", "unknown"})
"""Classes that speak of the device: the worker ends, and the breaker counts them."""

OVERRIDES: Final[dict[str, dict[tuple[str, int], str]]] = {
    # A wrong tag and a short ciphertext: SoftHSM 2.6.1.
    "SoftHSM": {("decrypt", 0x05): "suspect"},
}
"""By the beginning of a manufacturer's name: (operation, code) that means something else there."""


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
    return CLASSES.get(code, "unknown")
