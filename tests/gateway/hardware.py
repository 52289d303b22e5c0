"""The configuration of a gateway over a SoftHSM token of its own."""

import os
import secrets
import subprocess
from pathlib import Path

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "1234567890"


def write_hardware_config(directory: Path, extra: str = "", *, workers: int = 2) -> Path:
    """A new token, and a configuration with root and CA in it."""
    tokens, conf, pin = directory / "softhsm", directory / "softhsm2.conf", directory / "pin"
    tokens.mkdir()
    conf.write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n")
    pin.touch(mode=0o600)
    pin.write_text(PIN)
    command = ["softhsm2-util", "--init-token", "--free", "--label", "test"]
    subprocess.run(
        [*command, "--pin", PIN, "--so-pin", secrets.token_hex(8)],
        env={**os.environ, "SOFTHSM2_CONF": str(conf)},
        check=True,
        capture_output=True,
    )
    path = directory / "hsmux.toml"
    path.write_text(
        f'instance_dir = "{directory}/instance"\n[server]\nlisten = ["127.0.0.1:0"]\n'
        f'[health]\nlisten = "127.0.0.1:0"\n[root]\ntoken = "soft"\n'
        f'[hsm.soft]\nmodule = "{SOFTHSM}"\ntoken_label = "test"\npin_file = "{pin}"\n'
        f'workers = {workers}\nenvironment = {{ SOFTHSM2_CONF = "{conf}" }}\n{extra}'
    )
    return path
