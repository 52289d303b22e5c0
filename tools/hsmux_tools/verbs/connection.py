"""The client that verbs work through."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ..settings import Settings

if TYPE_CHECKING:
    from hsmux import Client

__all__ = ["connect"]


def connect(settings: Settings) -> "AbstractContextManager[Client]":
    """A client with the profile and the timeout of the global options."""
    from hsmux import Client

    if settings.timeout_s is None:
        return Client.connect(profile=settings.profile)
    return Client.connect(profile=settings.profile, timeout_s=settings.timeout_s)
