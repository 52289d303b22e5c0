"""What a configuration names outside of itself: files, directories, a database.

`hsmux check-config` looks at them without changing any, so that a mistake shows before a restart.
Whoever uses them looks first as well (`init`, `serve`; the verbs on a token at its own), so that
one mistake has one text and one exit code in every verb: 2 where what is named is not there or
cannot be read, 8 where somebody else can use it. What is opened then may still have changed. No
token is asked anything here.
"""

import datetime
import os
from pathlib import Path

from .access.trust import read_outside_cas
from .config import Config, Hsm
from .errors import EXIT_CONFIGURATION, EXIT_OPERATOR, OperatorError
from .hsm.softhsm import VARIABLE as SOFTHSM_VARIABLE
from .hsm.softhsm import is_softhsm
from .private_files import check_directory, check_secret
from .store import StoreError, check_url
from .tls import load_identity, new_server_context

__all__ = ["check_named", "check_token"]


def check_named(config: Config) -> None:
    """Check everything that a configuration names.

    Raises:
        OperatorError: It cannot be used; names the setting, what it names and the remedy.
    """
    _check_instance(Path(config.instance_dir))
    for name, hsm in config.hsm.items():
        check_token(name, hsm)
    _check_guarded(config)
    if config.root.file:
        _check_root_file(Path(config.root.file))
    if config.tls.certificate:
        _check_file("tls.certificate", config.tls.certificate)
        certificate, private_key = Path(config.tls.certificate), Path(config.tls.private_key)
        load_identity(new_server_context(), certificate, private_key)
    read_outside_cas(config.tls.outside_cas, None, at=datetime.datetime.now(datetime.UTC))
    if config.audit.directory:
        _check_writable("audit.directory", Path(config.audit.directory))
    if config.store.url:
        _check_store(config.store.url)


def _check_guarded(config: Config) -> None:
    """Check that nobody else reads the secrets or writes the records of a configuration."""
    if config.root.file and os.path.lexists(config.root.file):
        check_secret("configuration: root.file", Path(config.root.file))
    if config.tls.private_key:
        check_secret("configuration: tls.private_key", Path(config.tls.private_key))
    if config.audit.directory:
        check_directory("configuration: audit.directory", Path(config.audit.directory))


def check_token(name: str, hsm: Hsm) -> None:
    """Check what the section of a token names; a credential is guarded by systemd.

    Args:
        name: The token's.
        hsm: Its section.

    Raises:
        OperatorError: Something is not there, or somebody else reads the PIN.
    """
    _check_file(f"hsm.{name}.module", hsm.module)
    if SOFTHSM_VARIABLE in hsm.environment:
        setting = f"hsm.{name}.environment.{SOFTHSM_VARIABLE}"
        _check_file(setting, hsm.environment[SOFTHSM_VARIABLE])
    elif is_softhsm(hsm.module) and SOFTHSM_VARIABLE in os.environ:
        setting = f"hsm.{name}.module: SoftHSM needs the file that {SOFTHSM_VARIABLE} names"
        _check_file(setting, os.environ[SOFTHSM_VARIABLE])
    if hsm.pin_file:
        check_secret(f"configuration: hsm.{name}.pin_file", Path(hsm.pin_file))


def _fail(setting: str, text: str, exit_code: int = EXIT_CONFIGURATION) -> OperatorError:
    return OperatorError(f"configuration: {setting}: {text}", exit_code=exit_code)


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
        raise _fail(setting, f"{path} is not writable for this user", EXIT_OPERATOR)


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
        text = f"{path} is not there and cannot be made in {parent}"
        raise _fail("instance_dir", text, EXIT_OPERATOR)


def _check_store(url: str) -> None:
    try:
        check_url(url)
    except StoreError as error:
        raise _fail("store.url", str(error).removeprefix("store.url").lstrip(": ")) from None
