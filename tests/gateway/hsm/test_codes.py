"""The table of return codes against the standard's header and what python-pkcs11 raises."""

import re
from pathlib import Path

import pkcs11
import pytest

from hsmux_gateway.hsm.codes import (
    BY_OPERATION,
    CLASSES,
    NAMES,
    OVERRIDES,
    UNKNOWN_CODE,
    class_of,
    code_of,
    name_of,
)

HEADER = Path(__file__).parents[3] / "native" / "adapter" / "pkcs11.h"
OK, VENDOR_DEFINED = 0, 0x80000000

KNOWN = {
    "caller",
    "suspect",
    "unsupported",
    "key",
    "busy",
    "sessions",
    "auth",
    "session",
    "token",
    "module",
    "unknown",
}


def standard() -> dict[int, str]:
    """Return codes by number, as the header has them."""
    found = re.findall(r"X\(CKR_(\w+), (0x[0-9a-fA-F]+)ul\)", HEADER.read_text())
    return {int(number, 16): name for name, number in found}


def test_every_code_of_the_standard_has_a_class() -> None:
    codes = standard()
    assert len(codes) > 80
    assert CLASSES.keys() >= codes.keys() - {OK, VENDOR_DEFINED}
    assert all(codes.get(code, name) == name for code, name in NAMES.items())
    assert len(set(NAMES.values())) == len(NAMES) == len(CLASSES)


def test_there_are_no_other_classes() -> None:
    found = set(CLASSES.values()) | set(BY_OPERATION.values())
    for table in OVERRIDES.values():
        found |= set(table.values())
    assert found <= KNOWN


def test_every_exception_has_its_code() -> None:
    without = {"PKCS11Error"}
    raised = {
        name
        for name, value in vars(pkcs11.exceptions).items()
        if isinstance(value, type) and issubclass(value, pkcs11.exceptions.PKCS11Error)
    }
    # These it raises by itself, for no return code.
    own = {"MultipleObjectsReturned", "MultipleTokensReturned", "NoSuchKey", "NoSuchToken"}
    unknown = {
        name
        for name in raised - without - own
        if code_of(getattr(pkcs11.exceptions, name)()) == UNKNOWN_CODE
    }
    assert not unknown


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Unmapped error code 0x140", 0x140),
        ("Unmapped error code 0x80000001", 0x80000001),
        ("Buffer was too small. Should never see this.", UNKNOWN_CODE),
        ("0x5", UNKNOWN_CODE),
    ],
)
def test_a_code_without_an_exception_is_in_the_text(text: str, code: int) -> None:
    assert code_of(pkcs11.exceptions.PKCS11Error(text)) == code


@pytest.mark.parametrize(
    ("code", "operation", "manufacturer", "expected"),
    [
        (0x05, "decrypt", "SoftHSM project", "suspect"),
        (0x05, "encrypt", "SoftHSM project", "token"),
        (0x05, "decrypt", "Mozilla Foundation", "token"),
        (0x70, "generate", "any", "unsupported"),
        (0x70, "encrypt", "any", "key"),
        (0x07, "sign", "any", "unsupported"),
        (0x07, "encrypt", "any", "module"),
        (0x40, "decrypt", "any", "caller"),
        (0x40, "encrypt", "any", "unknown"),
        (0x80000001, "sign", "any", "unknown"),
        (0x12345, "sign", "any", "unknown"),
    ],
)
def test_what_a_code_says(code: int, operation: str, manufacturer: str, expected: str) -> None:
    assert class_of(code, operation, manufacturer) == expected


def test_codes_have_names_for_people() -> None:
    assert (name_of(0x30), name_of(0x80000001)) == ("DEVICE_ERROR", "0x80000001")
