"""What a configuration names outside of itself: files, directories, a database.

`hsmux check-config` looks at them without changing any, so that a mistake shows before a restart.
The gateway finds the same when it starts; what it opens then may still have changed. Who else could
read a secret or write into a directory is looked at by everybody who uses them (`check_guarded`):
such a mistake does not show otherwise.
"""

import os
from pathlib import Path
from typing import Final

from .config import Config, Hsm
from .errors import OperatorError
from .private_files import check_directory, check_secret
from .store import StoreError, check_url
from .tls import load_identity, new_server_context

__all__ = ["check_guarded", "check_named", "check_pin_file"]

SOFTHSM_VARIABLE: Final = "SOFTHSM2_CONF"
"""Names SoftHSM's configuration; without the file it has no token and says nothing of why."""


def check_named(config: Config) -> None:
    """Check everything that a configuration names.

    Raises:
        OperatorError: It cannot be used; names the setting, what it names and the remedy.
    """
    _check_instance(Path(config.instance_dir))
    for name, hsm in config.hsm.items():
        _check_file(f"hsm.{name}.module", hsm.module)
        if SOFTHSM_VARIABLE in hsm.environment:
            path = hsm.environment[SOFTHSM_VARIABLE]
            _check_file(f"hsm.{name}.environment.{SOFTHSM_VARIABLE}", path)
    check_guarded(config)
    if config.root.file:
        _check_root_file(Path(config.root.file))
    if config.tls.certificate:
        _check_file("tls.certificate", config.tls.certificate)
        certificate, private_key = Path(config.tls.certificate), Path(config.tls.private_key)
        load_identity(new_server_context(), certificate, private_key)
    if config.audit.directory:
        _check_writable("audit.directory", Path(config.audit.directory))
    if config.store.url:
        _check_store(config.store.url)


def check_guarded(config: Config) -> None:
    """Check that nobody else reads the secrets or writes the records of a configuration.

    Raises:
        OperatorError: Somebody else can; names the setting, what it names and the remedy.
    """
    for name, hsm in config.hsm.items():
        check_pin_file(name, hsm)
    if config.root.file and os.path.lexists(config.root.file):
        check_secret("configuration: root.file", Path(config.root.file))
    if config.tls.private_key:
        check_secret("configuration: tls.private_key", Path(config.tls.private_key))
    if config.audit.directory:
        check_directory("configuration: audit.directory", Path(config.audit.directory))


def check_pin_file(name: str, hsm: Hsm) -> None:
    """Check that nobody else reads a token's PIN; a credential is guarded by systemd.

    Args:
        name: The token's.
        hsm: Its section.

    Raises:
        OperatorError: Somebody else can.
    """
    if hsm.pin_file:
        check_secret(f"configuration: hsm.{name}.pin_file", Path(hsm.pin_file))


def _fail(setting: str, text: str) -> OperatorError:
    return OperatorError(f"configuration: {setting}: {text}")


def _check_file(setting: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        raise _fail(setting, f"{path} cannot be read: {error.strerror}") from None


def _check_root_file(path: Path) -> None:
    if not path.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise _fail("root.file", f"{path} is not there and cannot be made in {path.parent}")


def _check_writable(setting: str, path: Path) -> None:
    if not os.access(path, os.W_OK | os.X_OK):
        raise _fail(setting, f"{path} is not writable for this user")


def _check_instance(path: Path) -> None:
    """The directory, or the nearest one that is there: `init` makes the rest."""
    if path.is_dir():
        check_directory("configuration: instance_dir", path)
        _check_writable("instance_dir", path)
        return
    parent = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    if path.exists() or not parent.is_dir():
        raise _fail("instance_dir", f"{path} is no directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _fail("instance_dir", f"{path} is not there and cannot be made in {parent}")


def _check_store(url: str) -> None:
    try:
        check_url(url)
    except StoreError as error:
        raise _fail("store.url", str(error).removeprefix("store.url").lstrip(": ")) from None
