"""What a configuration names outside of itself: files, directories, a database.

`hsmux check-config` looks at them without changing any, so that a mistake shows before a restart.
The gateway finds the same when it starts; what it opens then may still have changed.
"""

import os
import stat
from pathlib import Path

from .config import Config
from .errors import OperatorError
from .store import StoreError, check_url
from .tls import load_identity, new_server_context

__all__ = ["check_named"]


def check_named(config: Config) -> None:
    """Check everything that a configuration names.

    Raises:
        OperatorError: It cannot be used; names the setting, what it names and the remedy.
    """
    _check_instance(Path(config.instance_dir))
    for name, hsm in config.hsm.items():
        _check_file(f"hsm.{name}.module", hsm.module)
        if hsm.pin_file:
            _check_secret(f"hsm.{name}.pin_file", hsm.pin_file)
    if config.root.file:
        _check_root_file(Path(config.root.file))
    if config.tls.certificate:
        _check_file("tls.certificate", config.tls.certificate)
        _check_secret("tls.private_key", config.tls.private_key)
        certificate, private_key = Path(config.tls.certificate), Path(config.tls.private_key)
        load_identity(new_server_context(), certificate, private_key)
    if config.audit.directory:
        _check_directory("audit.directory", Path(config.audit.directory))
    if config.store.url:
        _check_store(config.store.url)


def _fail(setting: str, text: str) -> OperatorError:
    return OperatorError(f"configuration: {setting}: {text}")


def _check_file(setting: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        raise _fail(setting, f"{path} cannot be read: {error.strerror}") from None


def _check_secret(setting: str, path: str) -> None:
    _check_file(setting, path)
    if stat.S_IMODE(os.stat(path).st_mode) & 0o007:
        raise _fail(setting, f"{path} is open to everybody: chmod 600 {path}")


def _check_root_file(path: Path) -> None:
    if path.exists():
        _check_secret("root.file", str(path))
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise _fail("root.file", f"{path} is not there and cannot be made in {path.parent}")


def _check_directory(setting: str, path: Path) -> None:
    if not path.is_dir():
        raise _fail(setting, f"{path} is no directory: make it")
    if not os.access(path, os.W_OK | os.X_OK):
        raise _fail(setting, f"{path} is not writable for this user")


def _check_instance(path: Path) -> None:
    """The directory, or the nearest one that is there: `init` makes the rest."""
    if path.is_dir():
        _check_directory("instance_dir", path)
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
        raise _fail("store.url", str(error)) from None
