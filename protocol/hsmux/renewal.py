"""Renewing the client key in a profile's files when somebody asks for it.

Clients do it by themselves when two thirds of its life are over.
"""

from typing import TYPE_CHECKING

from hsmux_protocol.errors import Busy

from ._pair import LockHeld
from ._renewal import renew_files
from .profiles import Profile

if TYPE_CHECKING:
    from .results import IssuedClientKey

__all__ = ["renew_profile"]


def renew_profile(
    profile: Profile, *, force: bool = False, timeout_s: float | None = None
) -> "IssuedClientKey":
    """Replace the client key in a profile's files by a renewed one, so that a crash at any moment
    leaves a pair that works.

    The private key is made here if `cryptography` can be imported, and by the gateway otherwise,
    unless `renewal` of the profile is "own-key".

    Args:
        profile: Whose files.
        force: Even if it was renewed within the last hour; a policy has to allow it.
        timeout_s: Seconds for the request.

    Raises:
        Busy: Another process is renewing it.
        Conflict: It was renewed just now, or its access point has too many client keys.
        InvalidArgument: The private key is to be made here, and cannot be.
        OSError: The files cannot be replaced; nothing was issued.
    """
    try:
        issued = renew_files(profile, is_due=lambda _: True, force=force, timeout_s=timeout_s)
    except LockHeld:
        raise Busy(f"another process is renewing {profile.certificate}; ask again") from None
    assert issued is not None
    return issued
