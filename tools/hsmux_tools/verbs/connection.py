"""The client that verbs work through."""

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from hsmux_protocol.errors import InvalidArgument

from ..settings import Settings

if TYPE_CHECKING:
    from hsmux import Client

__all__ = ["connect"]


def connect(settings: Settings) -> "AbstractContextManager[Client]":
    """A client with the profile and the timeout of the global options.

    Raises:
        HsmuxError: What `Client.connect` raises; what is wrong with files names their profile.
    """
    from hsmux import Client
    from hsmux.profiles import default_profile

    try:
        if settings.timeout_s is None:
            return Client.connect(profile=settings.profile)
        return Client.connect(profile=settings.profile, timeout_s=settings.timeout_s)
    except InvalidArgument as error:
        if error.text.startswith("profile "):
            raise
        # It may be a default of long ago, which the caller did not name.
        chosen = settings.profile or os.environ.get("HSMUX_PROFILE") or default_profile()
        raise InvalidArgument(f"profile {chosen}: {error.text}") from None
