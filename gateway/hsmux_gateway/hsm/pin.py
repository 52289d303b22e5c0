"""PIN marks: one wrong PIN is one failed login, however many processes and restarts try.

A token counts failed logins and locks itself, and a daemon that is restarted by its supervisor
would use up the count in seconds. So the instance directory keeps a mark for each token serial: a
salted scrypt hash of the PIN and what came of it. A mark is made durable before C_Login:

    trying     a login with this PIN was begun; left by a crash, it is tried again only if the
               token shows no sign of failed logins
    ok         the token accepted it
    refused    the token refused it: no login by anybody until the PIN changes or an operator clears
               the mark with `hsmux hsm clear-pin`

A PIN that is not proven is never a token's last try. Whoever asks here holds the lock under which
workers start, so two processes do not try one PIN at a time.

The PIN is read here for its hash alone and is not kept; each worker reads it for itself.
"""

import hashlib
import hmac
import json
import re
import secrets
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ..instance import write_file
from .errors import PinRefused

__all__ = ["PinMarks"]

SCRYPT_COST: Final = 2**13
"""scrypt's N: 8 MiB of memory, some 30 ms."""

_COUNT_LOW: Final = 0x00010000  # CKF_USER_PIN_COUNT_LOW
_FINAL_TRY: Final = 0x00020000  # CKF_USER_PIN_FINAL_TRY
_LOCKED: Final = 0x00040000  # CKF_USER_PIN_LOCKED
_WARNINGS: Final = _COUNT_LOW | _FINAL_TRY | _LOCKED


class _Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a PIN."""

    salt: str
    hash: str
    outcome: Literal["trying", "ok", "refused"]


class PinMarks:
    """The marks of one instance directory; every method blocks.

    Args:
        directory: Where marks are kept.
        token: The token's configured name, for messages.
    """

    def __init__(self, directory: Path, token: str) -> None:
        self._directory = directory
        self._token = token

    def _path(self, serial: str) -> Path:
        return self._directory / f"pin-{re.sub('[^A-Za-z0-9]', '_', serial)}.json"

    def _read(self, serial: str) -> dict[str, Any] | None:
        path = self._path(serial)
        try:
            mark = msgspec.json.decode(path.read_bytes(), type=_Mark)
            bytes.fromhex(mark.salt)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, ValueError):
            raise PinRefused(
                f"the PIN mark {path} is not what hsmux wrote; if the token accepts the PIN, run "
                f"`hsmux hsm clear-pin --config FILE --token {self._token}`"
            ) from None
        return msgspec.structs.asdict(mark)

    def _write(self, serial: str, salt: str, digest: str, outcome: str) -> None:
        mark = {"salt": salt, "hash": digest, "outcome": outcome}
        write_file(self._path(serial), json.dumps(mark).encode())

    @staticmethod
    def _hash(pin_file: Path, salt: str) -> str:
        pin = pin_file.read_bytes().rstrip(b"\r\n")
        if not pin:
            raise PinRefused(f"the PIN file {pin_file} is empty; put the token's user PIN there")
        return hashlib.scrypt(pin, salt=bytes.fromhex(salt), n=SCRYPT_COST, r=8, p=1).hex()

    def begin(self, serial: str, flags: int, pin_file: Path) -> None:
        """Ask whether to log in, and mark it durably if this PIN was not proven yet.

        Args:
            serial: The token's.
            flags: CK_TOKEN_INFO flags, read before any login.
            pin_file: Holds the PIN.

        Raises:
            PinRefused: Nobody may log in; the text says what to do.
        """
        mark = self._read(serial)
        try:
            salt = mark["salt"] if mark else secrets.token_hex(16)
            digest = self._hash(pin_file, salt)
        except OSError as error:
            raise PinRefused(f"the PIN file {pin_file} cannot be read: {error.strerror}") from None
        outcome = mark["outcome"] if mark and hmac.compare_digest(mark["hash"], digest) else ""
        if outcome == "ok" and not flags & _LOCKED:
            return
        if outcome == "refused":
            raise PinRefused(
                f"the token refused the PIN in {pin_file} before, and nobody tries it again; put "
                "the right PIN there, or run "
                f"`hsmux hsm clear-pin --config FILE --token {self._token}` once the token "
                "accepts it"
            )
        if flags & (_LOCKED | _FINAL_TRY) or (outcome == "trying" and flags & _WARNINGS):
            raise PinRefused(
                "the token's PIN is locked or was entered wrongly before; check it with the "
                "vendor's tools, then run "
                f"`hsmux hsm clear-pin --config FILE --token {self._token}`"
            )
        self._write(serial, salt, digest, "trying")

    def finish(self, serial: str, pin_file: Path, *, accepted: bool) -> None:
        """Note durably what came of the login."""
        mark = self._read(serial)
        if mark is None or (accepted and mark["outcome"] == "ok"):
            return
        digest = self._hash(pin_file, mark["salt"])
        self._write(serial, mark["salt"], digest, "ok" if accepted else "refused")

    def clear(self) -> int:
        """Forget every mark; how many there were."""
        marks = list(self._directory.glob("pin-*.json"))
        for path in marks:
            path.unlink()
        return len(marks)
