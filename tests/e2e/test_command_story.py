"""An operator and an application with the `hsmux` command alone, on a real token: from an empty
directory to a revoked client key. Each step stands on the ones before, so it is one test.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Place:
    """A directory with a configuration, and the command as it is run there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        tokens = directory / "tokens"
        tokens.mkdir()
        (directory / "softhsm2.conf").write_text(f"directories.tokendir = {tokens}\n")
        (directory / "pin").write_text("24681357\n")
        (directory / "pin").chmod(0o600)
        self.config = directory / "hsmux.toml"
        self.config.write_text(
            f'instance_dir = "{directory}/instance"\n'
            f'[server]\nlisten = ["127.0.0.1:{free_port()}"]\n[health]\nlisten = "127.0.0.1:0"\n'
            f'[root]\ntoken = "main"\n[hsm.main]\nmodule = "{SOFTHSM}"\ntoken_label = "main"\n'
            f'pin_file = "{directory}/pin"\nworkers = 2\n'
            f'environment = {{ SOFTHSM2_CONF = "{directory}/softhsm2.conf" }}\n'
        )

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name != "HSMUX_PROFILE"},
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "PYTHONWARNINGS": "error",
        }

    def run(
        self, *words: object, input: bytes = b"", code: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """One command line that must end with an exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "hsmux_tools.main", *map(str, words)],
            input=input,
            capture_output=True,
            env=self.environment,
            cwd=self.directory,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr
        return done

    def json(self, *words: object, **arguments: Any) -> Any:
        """What a command line prints with `-o json`."""
        return json.loads(self.run(*words, "-o", "json", **arguments).stdout)

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[str]]:
        """`hsmux serve` until the block ends, then SIGTERM; the profile points to it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "hsmux_tools.main", "serve", "--config", str(self.config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert process.stderr is not None
        try:
            if not any(line.startswith("hsmux: serving on ") for line in process.stderr):
                raise AssertionError(f"serve ended with {process.wait(START_TIMEOUT_S)}")
            # Somebody must read the log, or it would fill the pipe.
            with (self.directory / "gateway.log").open("wb") as log:
                drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_TIMEOUT_S) == 0
            drain.wait(STOP_TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stderr.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def openssl(*words: object) -> bytes:
    return subprocess.run(
        ["openssl", *map(str, words)], capture_output=True, check=True, timeout=60
    ).stdout


def _initialise(place: Place) -> None:
    config = ("--config", place.config)
    assert b"in order" in place.run("check-config", *config).stderr
    place.run("hsm", "init-token", *config)
    # A token that has a PIN is never initialised again.
    assert b"already" in place.run("hsm", "init-token", *config, code=8).stderr
    assert place.json("hsm", "probe", *config)["token"] == "main"
    made = place.json("init", *config)
    again = place.json("init", *config)
    assert made == again and made["profile"] == "administrator"
    assert Path(made["private_key"]).stat().st_mode & 0o077 == 0


def _use_keys(place: Place) -> None:
    (place.directory / "record.json").write_bytes(b'{"iban": "DE00"}')
    key = place.json("key", "create", "--spec", "AES_256", "--storage", "hsm", "--alias", "alias/a")
    assert (key["protection"], key["storage"], key["token"]) == ("hardware", "hsm", "main")
    context = ("-c", "table=users", "-c", "row=7")
    place.run("encrypt", "alias/a", *context, "record.json", "--out", "record.hsmux")
    assert place.run("decrypt", *context, "record.hsmux").stdout == b'{"iban": "DE00"}'
    assert b"does not open" in place.run("decrypt", "record.hsmux", code=7).stderr
    found = place.json("inspect", "record.hsmux")
    assert (found["suite"], found["key_id"]) == ("AES-GCM", key["key_id"])
    place.run("key", "create", "--spec", "EC_P256", "--storage", "hsm", "--alias", "alias/s")
    sign = ("alias/s", "--algorithm", "ECDSA_SHA_256", "record.json")
    place.run("sign", *sign, "--out", "record.sig")
    assert place.run("verify", *sign, "--signature", "record.sig").stdout == b"valid\n"
    place.run("key", "public", "alias/s", "--out", "s.pem")
    here = place.directory
    verify = ("dgst", "-sha256", "-verify", here / "s.pem", "-signature", here / "record.sig")
    assert openssl(*verify, here / "record.json") == b"Verified OK\n"
    assert len(place.run("random", 32).stdout) == 32
    assert b"alias/none" in place.run("key", "show", "alias/none", code=3).stderr
    assert (
        b"taken"
        in place.run("key", "create", "--spec", "AES_256", "--alias", "alias/a", code=6).stderr
    )


def _manage_access(place: Place) -> None:
    here = place.directory
    place.run("access-point", "create", "billing")
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out",
            here / "billing.key")  # fmt: skip
    openssl("req", "-new", "-key", here / "billing.key", "-subj", "/CN=whoever", "-out",
            here / "billing.csr")  # fmt: skip
    issued = place.json("client-key", "create", "--access-point", "billing", "--csr", "billing.csr",
                        "--out", "billing", "--profile-name", "billing")  # fmt: skip
    assert place.json("--profile", "billing", "key", "show", "alias/a")["state"] == "Enabled"
    identifier = issued["client_key_id"]
    assert place.json("client-key", "revoke", identifier)["state"] == "Revoked"
    refused = place.run("--profile", "billing", "key", "list", code=4)
    assert b"not accepted" in refused.stderr
    states = {key["client_key_id"]: key["state"] for key in place.json("client-key", "list")}
    assert states.pop(identifier) == "Revoked" and set(states.values()) == {"Enabled"}


def test_from_an_empty_directory_to_a_revoked_client_key(place: Place) -> None:
    _initialise(place)
    with place.serving() as gateway:
        _use_keys(place)
        _manage_access(place)
        second = place.run("serve", "--config", place.config, code=8)
        assert f"process {gateway.pid}".encode() in second.stderr
        status = place.json("status")
        assert status["root"] == "token main" and status["tokens"][0]["workers"] == 2
    assert place.run("status", "--timeout", 2, code=5).stderr.startswith(b"hsmux: ")
    log = (place.directory / "gateway.log").read_text()
    ends = [json.loads(line) for line in log.splitlines() if "a worker ended" in line]
    assert len(ends) == 2 and {end["level"] for end in ends} == {"info"}
    with place.serving():
        context = ("-c", "table=users", "-c", "row=7")
        assert place.run("decrypt", *context, "record.hsmux").stdout == b'{"iban": "DE00"}'


def test_a_wrong_pin_is_tried_once_however_often_the_gateway_is_started(place: Place) -> None:
    """4 workers, 5 starts: one C_Login, counted by the adapter that stands before the module."""
    from hsmux_native.faults import Counters

    counters, rules = place.directory / "counters", place.directory / "rules"
    rules.write_text("")
    place.run("hsm", "init-token", "--config", place.config)
    place.run("init", "--config", place.config)
    text = place.config.read_text().replace("workers = 2", "workers = 4")
    place.config.write_text(
        text.replace(
            "environment = {",
            f'environment = {{ HSMUX_ADAPTER_RULES = "{rules}", '
            f'HSMUX_ADAPTER_COUNTERS = "{counters}",',
        )
    )
    (place.directory / "pin").write_text("not the PIN\n")
    for _ in range(5):
        refused = place.run("serve", "--config", place.config, code=8)
        assert b"hsmux hsm clear-pin" in refused.stderr
    assert Counters(counters).count("C_Login") == 1
    (place.directory / "pin").write_text("24681357\n")
    with place.serving():
        assert place.json("status")["tokens"][0]["state"] == "up"
