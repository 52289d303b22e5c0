"""`hsmux hsm init-token`: a label, a security officer's PIN and a user PIN for an empty token.

It runs in a process of its own, like everything that calls a vendor's module. A token that
already has a user PIN is refused: initialising it again would destroy its keys. python-pkcs11 does
not offer C_InitToken, so that one function is called through the module's function list.
"""

import ctypes
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from hsmux_native import adapter_path

from ..instance import write_file
from ..private_files import check_secret
from .errors import TokenError, TokenExists, TokenUnavailable
from .settings import TokenSettings

__all__ = ["initialise_token"]

TIMEOUT_S: Final = 60

_INIT_TOKEN: Final = 9  # place of C_InitToken in CK_FUNCTION_LIST, PKCS#11 v2.40 section 3.4
_INITIALISED: Final = 0x400  # CKF_TOKEN_INITIALIZED
_PIN_SET: Final = 0x8  # CKF_USER_PIN_INITIALIZED
_LABEL_SIZE: Final = 32
_EXISTS: Final = 3
"""Exit code of the process where a token with the label is there already."""


def initialise_token(settings: TokenSettings) -> Path:
    """Initialise the first token that is empty; the PIN is what the PIN file holds.

    Returns:
        The file, mode 0600 beside the PIN file, with the security officer's PIN that was made.

    Raises:
        TokenError: There is a token with that label, no empty one, or the module refused.
    """
    officer = settings.pin_path().with_name(f"{settings.pin_path().name}.officer")
    if not settings.pin_path().exists():
        raise TokenError(f"{settings.pin_path()} is not there: write the user PIN you want into it")
    is_new = not officer.exists()
    if is_new:
        write_file(officer, secrets.token_hex(16).encode())
    check_secret("the security officer's PIN", officer)
    environment = {**os.environ, **settings.environment, "HSMUX_ADAPTER_MODULE": settings.module}
    if settings.parameters:
        environment["HSMUX_ADAPTER_PARAMETERS"] = settings.parameters
    arguments = [adapter_path(), settings.token_label, str(settings.pin_path()), str(officer)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hsmux_gateway.hsm.initialise_token", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TokenUnavailable("the module did not answer") from None
    if done.returncode == _EXISTS and is_new:
        # No token has this PIN.
        officer.unlink()
    if done.returncode:
        kind = TokenExists if done.returncode == _EXISTS else TokenError
        raise kind(done.stderr.strip().rpartition("\n")[2] or "the module crashed")
    return officer


def _init_token(module: str, slot_id: int, pin: bytes, label: str) -> int:
    get: Any = ctypes.CDLL(module).C_GetFunctionList
    functions = ctypes.POINTER(ctypes.c_void_p)()
    get(ctypes.byref(functions))
    call = ctypes.CFUNCTYPE(
        ctypes.c_ulong, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
    )(functions[1 + _INIT_TOKEN])
    return int(call(slot_id, pin, len(pin), label.encode().ljust(_LABEL_SIZE)))


def _main() -> None:
    import pkcs11

    try:
        _initialise()
    except pkcs11.PKCS11Error as error:
        # The binding names its classes after the codes: CKR_GENERAL_ERROR is GeneralError.
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type(error).__name__).lower()
        sys.exit(
            f"the module answered {words!r}; check module, parameters and environment "
            "(SOFTHSM2_CONF for SoftHSM) of the token's section"
        )


def _initialise() -> None:
    import pkcs11

    module, label, pin_file, officer_file = sys.argv[1:]
    pin, officer = (Path(path).read_text().strip() for path in (pin_file, officer_file))
    slots = pkcs11.lib(module).get_slots(token_present=True)
    tokens = [(slot, slot.get_token()) for slot in slots]
    if any(token.label.strip("\0 ") == label for _, token in tokens):
        print(
            f"there is a token with label {label!r} already; it was left as it is", file=sys.stderr
        )
        sys.exit(_EXISTS)
    empty = [slot for slot, token in tokens if not int(token.flags) & (_INITIALISED | _PIN_SET)]
    if not empty:
        sys.exit("there is no empty token; free one with the vendor's tools")
    code = _init_token(module, empty[0].slot_id, officer.encode(), label)
    if code:
        sys.exit(f"C_InitToken answered 0x{code:x}")
    for slot in pkcs11.lib(module).get_slots(token_present=True):
        token = slot.get_token()
        if token.label.strip("\0 ") == label:
            with token.open(rw=True, so_pin=officer) as session:
                session.init_pin(pin)
            return
    sys.exit("the token vanished after it was initialised")


if __name__ == "__main__":
    _main()
