"""How one token is reached and how much it may be asked."""

import os
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["TokenSettings"]

QUEUE_ITEMS_MAX: Final = 65536


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one token; see `docs/configuration.md` for their meaning and limits.

    Attributes:
        name: As configured.
        module: Path of the vendor's PKCS#11 module.
        token_label: The token's label.
        pin_file: File that holds the user PIN; each worker reads it for itself.
        pin_credential: systemd credential that holds it instead.
        parameters: LibraryParameters for C_Initialize.
        environment: Environment variables of the worker processes.
        workers: Worker processes.
        queue_items_max: Items that may wait; more are Busy.
        sessions_max: Sessions the token has for this gateway, where it does not say so itself; 0:
            what it says.
        verify_every: Of so many results one is verified: a ciphertext is decrypted, a plaintext
            decrypted once more, a signature checked. 1: all.
        keep_alive_s: Seconds after which a worker's sessions are used, so that the token does not
            close them: some do after 30 s.
        age_s: Seconds after which a worker and its sessions are replaced.
    """

    name: str
    module: str
    token_label: str
    pin_file: str = ""
    pin_credential: str = ""
    parameters: str = ""
    environment: dict[str, str] = {}
    workers: int = 2
    queue_items_max: int = QUEUE_ITEMS_MAX
    sessions_max: int = 0
    verify_every: int = 256
    keep_alive_s: float = 10.0
    age_s: float = 4 * 3600.0

    def pin_path(self) -> Path:
        """Where the PIN is read."""
        if self.pin_file:
            return Path(self.pin_file)
        return Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / self.pin_credential
