"""Tokens to test with: SoftHSM and NSS softokn, each in directories of its own."""

import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hsmux_gateway.hsm.settings import TokenSettings
from hsmux_native import Arena

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
SOFTOKN = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
PIN = "1234567890"


@pytest.fixture
def arena() -> Arena:
    """Key memory."""
    return Arena(1 << 20)


def softhsm_settings(directory: Path) -> TokenSettings:
    """A new SoftHSM token."""
    tokens, conf = directory / "softhsm", directory / "softhsm2.conf"
    tokens.mkdir()
    conf.write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n")
    (directory / "pin").touch(mode=0o600)
    (directory / "pin").write_text(PIN + "\n")
    command = ["softhsm2-util", "--init-token", "--free", "--label", "test"]
    environment = {**os.environ, "SOFTHSM2_CONF": str(conf)}
    subprocess.run(
        [*command, "--pin", PIN, "--so-pin", secrets.token_hex(8)],
        env=environment,
        check=True,
        capture_output=True,
    )
    return TokenSettings(
        name="test",
        module=SOFTHSM,
        token_label="test",
        pin_file=str(directory / "pin"),
        environment={"SOFTHSM2_CONF": str(conf)},
    )


def softokn_settings(directory: Path) -> TokenSettings:
    """A new NSS softokn database."""
    database = directory / "nss"
    database.mkdir()
    (directory / "pin").touch(mode=0o600)
    (directory / "pin").write_text(PIN + "\n")
    subprocess.run(
        ["certutil", "-N", "-d", f"sql:{database}", "-f", str(directory / "pin")],
        check=True,
        capture_output=True,
    )
    return TokenSettings(
        name="test",
        module=SOFTOKN,
        token_label="NSS Certificate DB",
        pin_file=str(directory / "pin"),
        parameters=f"configdir='sql:{database}' certPrefix='' keyPrefix='' "
        "secmod='secmod.db' flags=",
    )


MAKERS: dict[str, Callable[[Path], TokenSettings]] = {
    "softhsm": softhsm_settings,
    "softokn": softokn_settings,
}


@pytest.fixture
def softhsm(tmp_path: Path) -> TokenSettings:
    """Settings of a SoftHSM token."""
    (tmp_path / "hsm").mkdir()
    return softhsm_settings(tmp_path)
