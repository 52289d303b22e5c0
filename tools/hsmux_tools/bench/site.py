"""Where it is measured: a gateway of the bench's own, with a token and one worker."""

import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from hsmux import Client
from hsmux.profiles import Profile, load_profile

from ..failure import Failure
from ..own_gateway import own_gateway, workers_of
from .clocks import split_cores
from .yardstick import check_gateway

__all__ = ["PROFILE", "Site", "check_installed", "open_site"]

PROFILE: Final = "dev"
"""The profile of the gateway that is measured."""

_ENVIRONMENT: Final = {"HSMUX_GATEWAY__HSM__DEV__WORKERS": "1"}


@dataclass(frozen=True)
class Site:
    """A running gateway and what the measurements need to know of it.

    Attributes:
        directory: The bench's own, with the gateway's state in `state`.
        gateway_pid: The gateway's process id.
        profile: Of its administrator.
    """

    directory: Path
    gateway_pid: int
    profile: Profile

    @property
    def config(self) -> Path:
        """The gateway's configuration."""
        return self.directory / "state" / "hsmux.toml"

    @property
    def worker_pid(self) -> int:
        """The process id of its one worker."""
        (pid,) = workers_of(self.gateway_pid)
        return pid

    @cached_property
    def cores(self) -> tuple[Set[int], Set[int]]:
        """Cores for the generator, and for what it measures."""
        return split_cores()

    @cached_property
    def software_key(self) -> str:
        """A software-protected AES key."""
        return self._make_key("software")

    @cached_property
    def hardware_key(self) -> str:
        """A hardware-protected AES key, the only one in the token."""
        return self._make_key("hardware")

    def _make_key(self, protection: str) -> str:
        storage = "hsm" if protection == "hardware" else None
        with Client.connect(profile=PROFILE) as client:
            return client.create_key(spec="AES_256", protection=protection, storage=storage).key_id


def check_installed() -> None:
    """Find out before anything is started whether everything is there.

    Raises:
        Failure: Something is not installed; says what.
    """
    check_gateway()
    if shutil.which("softhsm2-util") is None:
        raise Failure("the bench needs a token: apt-get install softhsm2")


@contextmanager
def open_site(directory: Path) -> Iterator[Site]:
    """Start a gateway and end it.

    It is started twice: the first makes token, store and client key, and has loaded what that
    needs. The second is a gateway as it runs from then on.

    Args:
        directory: Empty, the bench's own.

    Raises:
        Failure: It does not start.
    """
    configuration = directory / "config"
    environment = {**_ENVIRONMENT, "XDG_CONFIG_HOME": str(configuration)}
    with own_gateway(directory, environment):
        pass
    with own_gateway(directory, environment) as pid, _configuration_in(configuration):
        yield Site(directory, pid, load_profile(PROFILE))


@contextmanager
def _configuration_in(directory: Path) -> Iterator[None]:
    """This process' profiles come from a directory for a while."""
    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(directory)
    try:
        yield
    finally:
        del os.environ["XDG_CONFIG_HOME"]
        if before is not None:
            os.environ["XDG_CONFIG_HOME"] = before
