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


def initialise(place: Place) -> None:
    config = ("--config", place.config)
    assert b"in order" in place.run("check-config", *config).stderr
    place.run("hsm", "init-token", *config)
    # A token that has a PIN is never initialised again.
    assert b"already" in place.run("hsm", "init-token", *config, code=6).stderr
    assert place.json("hsm", "probe", *config)["token"] == "main"
    made = place.json("init", *config)
    again = place.json("init", *config)
    assert made == again and made["profile"] == "administrator"
    assert Path(made["private_key"]).stat().st_mode & 0o077 == 0


CONTEXT = ("-c", "table=users", "-c", "row=7")
POLICY = """
description = "uses the keys of records, from this machine"

[[statements]]
effect = "allow"
role = "crypto-user"
resources = ["alias/records/*"]
conditions = { network_rule = "here" }

[[statements]]
effect = "allow"
operations = ["generate_random"]
resources = ["*"]
"""


def _make_keys(place: Place) -> dict[str, Any]:
    """The administrator makes keys and does not use them."""
    made: dict[str, Any] = place.json(
        *("key", "create", "--spec", "AES_256", "--storage", "hsm"), "--alias", "alias/records/a"
    )
    assert (made["protection"], made["storage"], made["token"]) == ("hardware", "hsm", "main")
    sign = ("key", "create", "--spec", "EC_P256", "--storage", "hsm", "--alias")
    place.run(*sign, "alias/records/s")
    assert b"taken" in place.run(*sign, "alias/records/s", code=6).stderr
    (place.directory / "record.json").write_bytes(b'{"iban": "DE00"}')
    refused = place.run("encrypt", "alias/records/a", "record.json", "--base64", code=4).stderr
    assert b"administrator may not encrypt alias/records/a" in refused
    return made


def make_application(place: Place, name: str, *policies: str) -> str:
    """An access point with a client key for a request of its own; the client key."""
    here = place.directory
    options = [word for policy in policies for word in ("--policy", policy)]
    place.run("access-point", "create", name, *options)
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out",
            here / f"{name}.key")  # fmt: skip
    openssl("req", "-new", "-key", here / f"{name}.key", "-subj", "/CN=whoever", "-out",
            here / f"{name}.csr")  # fmt: skip
    issued = place.json("client-key", "create", "--access-point", name, "--csr", f"{name}.csr",
                        "--out", name, "--profile-name", name)  # fmt: skip
    identifier: str = issued["client_key_id"]
    assert place.json("client-key", "show", identifier)["state"] == "Enabled"
    return identifier


def _give_access(place: Place) -> str:
    """A policy, a network rule and two applications, one of them without policies."""
    (place.directory / "records.toml").write_text(POLICY)
    assert (
        b"no network rule here"
        in place.run("policy", "put", "records", "records.toml", code=3).stderr
    )
    place.run("network-rule", "put", "here", "127.0.0.0/8")
    assert place.json("policy", "put", "records", "records.toml")["statements"] == 2
    client_key = make_application(place, "billing", "records")
    make_application(place, "other")
    listed = place.run("policy", "list", "--field", "name").stdout.split()
    assert listed == [b"administrator", b"records"]
    return client_key


def _use_keys(place: Place, key: dict[str, Any]) -> None:
    """What the application may do, and the other may not."""
    app, other = ("--profile", "billing"), ("--profile", "other")
    encrypt = ("encrypt", "alias/records/a", *CONTEXT, "record.json", "--out", "record.hsmux")
    place.run(*app, *encrypt)
    assert place.run(*app, "decrypt", *CONTEXT, "record.hsmux").stdout == b'{"iban": "DE00"}'
    assert b"does not open" in place.run(*app, "decrypt", "record.hsmux", code=7).stderr
    found = place.json("inspect", "record.hsmux")
    assert (found["suite"], found["key_id"]) == ("AES-GCM", key["key_id"])
    sign = ("alias/records/s", "--algorithm", "ECDSA_SHA_256", "record.json")
    place.run(*app, "sign", *sign, "--out", "record.sig")
    assert place.run(*app, "verify", *sign, "--signature", "record.sig").stdout == b"valid\n"
    place.run(*app, "key", "public", "alias/records/s", "--out", "s.pem")
    here = place.directory
    verify = ("dgst", "-sha256", "-verify", here / "s.pem", "-signature", here / "record.sig")
    assert openssl(*verify, here / "record.json") == b"Verified OK\n"
    assert len(place.run(*app, "random", 32).stdout) == 32
    missing = place.run(*app, "key", "show", "alias/records/none", code=3).stderr
    assert b"alias/records/none" in missing
    for words in (("key", "list"), ("decrypt", *CONTEXT, "record.hsmux"), encrypt[:-2]):
        refused = place.run(*other, *words, "--base64" if words[0] != "key" else "-ojson", code=4)
        assert b"access point other may not" in refused.stderr


def _explain(place: Place) -> None:
    """Why the other application was refused, and what it would need."""
    asked = ("policy", "test", "--operation", "encrypt", "--resource", "alias/records/a")
    found = place.run(*asked, "--access-point", "other", "-o", "json", code=4)
    assert json.loads(found.stdout)["statement"] == "no statement allows it"
    found = place.run(*asked, "--access-point", "billing", "-o", "json", code=4)
    (wanted,) = json.loads(found.stdout)["missing"]
    assert wanted == "records statement 1: wants an address inside network rule here"
    assert place.json(*asked, "--access-point", "billing", "--from", "127.0.0.1")["allowed"]


def _take_access(place: Place, client_key: str) -> None:
    """What holds at once: a revoked client key, a disabled access point."""
    assert place.json("client-key", "revoke", client_key)["state"] == "Revoked"
    refused = place.run("--profile", "billing", "random", 8, "--hex", code=4)
    assert b"not accepted" in refused.stderr
    states = {key["client_key_id"]: key["state"] for key in place.json("client-key", "list")}
    assert states.pop(client_key) == "Revoked" and set(states.values()) == {"Enabled"}
    assert place.json("access-point", "update", "other", "--disable")["state"] == "Disabled"
    assert b"own" in place.run("access-point", "delete", "administrator", code=4).stderr
    place.run("policy", "delete", "records", code=6)
    place.run("access-point", "update", "billing", "--remove-policy", "records")
    place.run("policy", "delete", "records")


def test_from_an_empty_directory_to_a_revoked_client_key(place: Place) -> None:
    initialise(place)
    with place.serving() as gateway:
        key = _make_keys(place)
        client_key = _give_access(place)
        _use_keys(place, key)
        _explain(place)
        second = place.run("serve", "--config", place.config, code=8)
        assert f"process {gateway.pid}".encode() in second.stderr
        status = place.json("status")
        assert status["root"] == "token main" and status["tokens"][0]["workers"] == 2
    assert place.run("status", "--timeout", 2, code=5).stderr.startswith(b"hsmux: ")
    log = (place.directory / "gateway.log").read_text()
    ends = [json.loads(line) for line in log.splitlines() if "a worker ended" in line]
    assert len(ends) == 2 and {end["level"] for end in ends} == {"info"}
    with place.serving():
        opened = place.run(*("--profile", "billing"), "decrypt", *CONTEXT, "record.hsmux")
        assert opened.stdout == b'{"iban": "DE00"}'
        _take_access(place, client_key)


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
