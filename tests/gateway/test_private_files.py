"""Secrets and directories that are not this user's alone: every verb refuses them alike."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_gateway import command
from hsmux_gateway.audit.checkpoints import CheckpointFile
from hsmux_gateway.dev import dev_gateway
from hsmux_gateway.errors import OperatorError
from hsmux_gateway.private_files import check_directory, check_secret
from tests.gateway.hardware import write_hardware_config

NOBODY = 65534

VERBS: dict[str, Callable[[Path], object]] = {
    "check-config": command.check_config,
    "init": command.init,
    "serve": command.serve,
    "hsm init-token": lambda config: command.hsm_init_token(config, None),
    "hsm probe": lambda config: command.hsm_probe(config, None),
}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_refuses_a_pin_that_others_read(tmp_path: Path, name: str) -> None:
    config = write_hardware_config(tmp_path)
    (tmp_path / "pin").chmod(0o660)
    with pytest.raises(OperatorError) as refused:
        VERBS[name](config)
    assert refused.value.text.endswith(f"(mode 0660): chmod 600 {tmp_path}/pin")
    assert refused.value.exit_code == 8
    assert not (tmp_path / "instance").exists()


@pytest.mark.parametrize("name", ["check-config", "init", "serve"])
def test_every_verb_refuses_records_that_others_write(tmp_path: Path, name: str) -> None:
    audit = tmp_path / "audit"
    config = write_hardware_config(tmp_path, f'[audit]\ndirectory = "{audit}"\n')
    audit.mkdir()
    audit.chmod(0o777)
    with pytest.raises(OperatorError) as refused:
        VERBS[name](config)
    assert "configuration: audit.directory" in refused.value.text
    assert refused.value.text.endswith(f"(mode 0777): chmod 700 {audit}")


@pytest.mark.parametrize("name", ["init", "serve", "hsm probe"])
def test_every_verb_refuses_a_state_that_others_write(tmp_path: Path, name: str) -> None:
    config = write_hardware_config(tmp_path)
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance").chmod(0o770)
    with pytest.raises(OperatorError, match=r"instance_dir.*\(mode 0770\): chmod 700"):
        VERBS[name](config)
    assert not list((tmp_path / "instance").glob("pin-*"))


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_for_its_owner_alone_is_fine(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "pin"
    path.touch(mode)
    check_secret("pin", path)


def test_what_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    # Root can give a directory away; everybody else finds one of root's.
    directory = tmp_path if os.geteuid() == 0 else Path("/usr")
    if os.geteuid() == 0:
        secret = tmp_path / "pin"
        secret.touch(mode=0o600)
        os.chown(secret, NOBODY, -1)
        with pytest.raises(
            OperatorError, match="belongs to nobody: run this as nobody, or chown root "
        ):
            check_secret("pin", secret)
        os.chown(directory, NOBODY, -1)
    with pytest.raises(
        OperatorError, match=r"must belong to this user .* run this as \w+, or chown \w+ "
    ):
        check_directory("--state", directory)


def _start_dev(state: Path) -> None:
    with dev_gateway(state, 0):
        raise AssertionError("it was taken")


def test_dev_refuses_a_directory_that_others_write(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(state)
    for path in (state, link):
        with pytest.raises(OperatorError, match=rf"--state: {state} is writable for others"):
            _start_dev(path)
    assert not list(state.iterdir())


def test_dev_follows_no_link_to_its_log(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious\n")
    (tmp_path / "gateway.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OperatorError, match=r"gateway\.log cannot be written"):
        _start_dev(tmp_path)
    assert (tmp_path / "victim").read_text() == "precious\n"


def test_checkpoints_follow_no_link(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path / "victim")
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(OSError):
        CheckpointFile(tmp_path / "checkpoints", key)
    assert not (tmp_path / "victim").exists()


def test_a_token_that_is_there_gets_no_officers_pin(tmp_path: Path) -> None:
    config = write_hardware_config(tmp_path)
    with pytest.raises(
        OperatorError, match="there is a token with label 'test' already"
    ) as refused:
        command.hsm_init_token(config, None)
    assert refused.value.exit_code == 6
    assert not (tmp_path / "pin.officer").exists()


def test_a_module_that_does_not_start_is_told_in_words(tmp_path: Path) -> None:
    config = write_hardware_config(tmp_path)
    (tmp_path / "softhsm").rename(tmp_path / "elsewhere")
    with pytest.raises(OperatorError) as refused:
        command.hsm_init_token(config, None)
    assert "the module answered 'general error'; check" in refused.value.text
    assert "SOFTHSM2_CONF" in refused.value.text
