"""The example of docs/access.md, played as it stands: two approvers and a new administrator."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hsmux.profiles import Profile, save_profile
from hsmux_protocol.errors import ApprovalsMissing
from tests.documents.markdown import blocks
from tests.documents.sections import ROOT
from tests.gateway.aging import make_old
from tests.gateway.running import Running, running_gateway, write_config

from .test_command_story import free_port

HEADING = "\n## Quorum\n"


def example() -> tuple[str, list[str]]:
    """The policy of the example, and its scripts in order."""
    text = (ROOT / "docs" / "access.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    (policy,) = [block.text for block in blocks(text, "toml")]
    return policy, [block.text for block in blocks(text, "sh")]


def save(running: Running) -> None:
    """The administrator's profile, the default one."""
    certificate, private_key, ca = (
        str(running.administrator / name)
        for name in ("administrator.pem", "administrator.key", "ca.pem")
    )
    addresses = (running.address,)
    save_profile("administrator", Profile(addresses, certificate, private_key, ca, "localhost"))


class Shell:
    """A shell in a directory of its own, in which `hsmux` is the command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        command = directory / "bin" / "hsmux"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m hsmux_tools.main "$@"\n')
        command.chmod(0o700)
        path = f"{command.parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path}

    def run(self, script: str, code: int = 0) -> str:
        """Run a script that ends with an exit code; what it prints, or says of its failure."""
        done = subprocess.run(
            ["sh", "-ec", script],
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self.environment,
        )
        assert done.returncode == code, (script, done.stdout, done.stderr)
        return done.stderr if code else done.stdout

    def json(self, line: str) -> Any:
        return json.loads(self.run(f"{line} -o json"))


def test_the_example_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HSMUX_PROFILE", raising=False)
    policy, (make, turn_on, ask, approve, again) = example()
    (tmp_path / "approver.toml").write_text(policy)
    config, shell = write_config(tmp_path), Shell(tmp_path)
    # The same one after a restart: profiles name it.
    listen = f'[server]\nlisten = ["127.0.0.1:{free_port()}"]'
    config.write_text(config.read_text().replace('[server]\nlisten = ["127.0.0.1:0"]', listen))
    with running_gateway(config) as running:
        save(running)
        shell.run(make)
    make_old(config)
    with running_gateway(config, init=False) as running:
        assert "carol" in shell.run(turn_on)
        said = shell.run(ask, code=ApprovalsMissing.exit_code)
        (waiting,) = shell.json("hsmux request list")
        assert f"lacks 2: others have to approve request {waiting['request']}" in said
        assert (waiting["operation"], waiting["touches"]) == ("create_access_point", ["erin"])
        shown = shell.json(f"hsmux request show {waiting['request']}")
        assert shown["arguments"]["policies"] == ["administrator"] and shown["missing"] == 2
        assert "carol,dave" in shell.run(approve)
        assert "erin" in shell.run(again)
        assert shell.json("hsmux request list") == []
        assert shell.json("hsmux quorum show")["approvals"] == 2
        # One that is refused by an approver waits no longer.
        shell.run("hsmux access-point delete erin", code=4)
        (waiting,) = shell.json("hsmux request list")
        shell.run(f"hsmux --profile dave request withdraw {waiting['request']}")
        assert shell.json("hsmux request list") == []
        name = waiting["request"]
        assert "no such request" in shell.run(f"hsmux request show {name}", code=3)
        assert "64 hexadecimal digits" in shell.run("hsmux request approve 12", code=2)
    log = tmp_path / "instance" / "audit"
    records = [json.loads(line) for line in shell.run(f"hsmux audit export {log}").splitlines()]
    made = [
        r["statement"]
        for r in records
        if r.get("operation") == "create_access_point" and r["resource"] == "erin"
    ]
    assert "lacks 2 of 2 approvals" in made[0] and made[1].endswith("approved by carol, dave")
