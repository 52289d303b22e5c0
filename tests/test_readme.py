"""README.md, section "Run it": its steps, done as they stand, lead to an encrypted and audited
request. On the gateway that they made, so does the example of docs/access.md.

They run in a directory that stands in for the root of the file system, on a free port; nothing else
is changed.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.documents.markdown import blocks
from tests.documents.sections import ROOT
from tests.e2e.test_command_story import START_TIMEOUT_S, STOP_TIMEOUT_S, free_port

PLACES = re.compile(r"/(?:etc|var/lib|var/log)/hsmux")


def _steps(root: Path) -> tuple[str, str, str, str]:
    """What makes the directories, the configuration, the gateway, and an application's access."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("\n## Run it\n")[2].partition("\n| command |")[0]
    shown = PLACES.sub(lambda place: f"{root}{place[0]}", section)
    directories, config, gateway, application = (block.text for block in blocks(shown))
    config = config.replace("0.0.0.0:7411", f"127.0.0.1:{free_port()}")
    return directories, config + '[health]\nlisten = "127.0.0.1:0"\n', gateway, application


def _example(name: str) -> tuple[str, str, str]:
    """The example of docs/access.md for an application of another name: preparation, a decision
    that allows and one that denies, and what ends it.
    """
    text = (ROOT / "docs" / "access.md").read_text().replace("billing", name)
    section = text.partition("\n## One example\n")[2].partition("\n## ")[0]
    policy, request, access, decisions, archive, end = (block.text for block in blocks(section))
    file = f"cat > {name}.toml <<'END'\n{policy}END\n"
    return file + request + access + archive, decisions, end


def test_the_steps_lead_to_an_audited_request(tmp_path: Path) -> None:
    directories, config, gateway, application = _steps(tmp_path)
    *prepared, serve = gateway.splitlines()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "SOFTHSM2_CONF"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    for name in ("etc", "var/lib", "var/log"):
        (tmp_path / name).mkdir(parents=True)
    run(directories)
    (tmp_path / "etc/hsmux/hsmux.toml").write_text(config)
    run("\n".join(prepared))
    log = tmp_path / "log"
    words = serve.partition("#")[0].split()
    assert words[:2] == ["hsmux", "serve"]
    with (
        log.open("wb") as file,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=file, env=environment) as process,
    ):
        try:
            run(
                f"timeout {START_TIMEOUT_S} tail -n +1 -f --pid={process.pid} {log} "
                "| grep -q -m 1 '^hsmux: serving on '"
            )
            said = run(application)
            environment["HSMUX_PROFILE"] = "administrator"
            prepared_access, decisions, end = _example("freight")
            run(prepared_access)
            allows, denies = decisions.splitlines()
            assert "freight statement invoices" in run(allows)
            denied = run(f"{denies} || test $? = 4")
            assert "freight statement invoices: wants in the context tenant=freight" in denied
            run(end)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_TIMEOUT_S) == 0
    assert "the log is whole" in said
    assert (tmp_path / "hello.hsmux").read_bytes().startswith(b"hX")
