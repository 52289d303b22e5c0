"""The demo does its job, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path


def test_demo(tmp_path: Path) -> None:
    profiles = tmp_path / "hsmux" / "profiles.toml"
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "XDG_CONFIG_HOME": str(tmp_path)}
    environment |= {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "hsmux_tools.demo"]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "demo ok"
    assert "HSM workers killed and replaced" in run.stdout
    assert not profiles.exists()
    assert list(tmp_path.iterdir()) == []
