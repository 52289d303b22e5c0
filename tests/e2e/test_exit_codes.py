"""The table of exit codes, walked: each example in it is brought about in every verb it concerns.

`WALK` has one entry for each example of `failure.EXIT_CODES`; it brings the state about and yields
what the command ended with. An error is one line on standard error and nothing on standard output.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmux_tools.failure import EXIT_CODES
from hsmux_tools.main import command

from .test_command_story import SOFTHSM, Place, free_port

Verbs = tuple[tuple[str, ...], ...]
ECDSA = ("--algorithm", "ECDSA_SHA_256")
CONFIGURED = (
    *(("check-config",), ("init",), ("serve",), ("hsm", "probe"), ("hsm", "init-token")),
    *(("hsm", "clear-pin"), ("store", "status"), ("store", "migrate")),
)
"""The verbs that read a configuration."""

TALKING = {"`policy test` of what would be denied", "a changed audit log"}
"""Examples of the two verbs that answer all the same."""


@dataclass
class Site:
    """A gateway that serves, and one that is initialised and does not."""

    running: Place
    stopped: Place

    def run(self, *words: object, place: Place | None = None, input: bytes = b"") -> Result:
        """One command line in this process."""
        chosen = place or self.running
        environment = {"XDG_CONFIG_HOME": str(chosen.directory / "config"), "HSMUX_PROFILE": None}
        line = [str(word) for word in words]
        return CliRunner().invoke(command(), line, input=input, env=environment)

    def with_config(self, old: str, new: str, verbs: Verbs) -> Iterator[Result]:
        """Verbs over the stopped gateway's configuration with one text replaced."""
        text = self.stopped.config.read_text()
        assert old in text
        path = self.stopped.directory / "changed.toml"
        path.write_text(text.replace(old, new))
        for words in verbs:
            yield self.run(*words, "--config", path, place=self.stopped)

    def profile(self, name: str, **changes: object) -> Result:
        """Save a profile that is the administrator's but for what is changed."""
        shown = json.loads(self.run("profile", "show", "administrator", "-o", "json").stdout)
        shown = {**shown, **changes}
        files = [
            word
            for option in ("certificate", "private-key", "ca")
            for word in (f"--{option}", shown[option.replace("-", "_")])
        ]
        address = shown["addresses"][0]
        return self.run("profile", "add", name, "--replace", "--address", address, *files)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both gateways; the running one has two keys, an envelope and a signature."""
    running, stopped = (Place(tmp_path_factory.mktemp(name)) for name in ("running", "stopped"))
    for place in (running, stopped):
        place.run("hsm", "init-token", "--config", place.config)
        place.run("init", "--config", place.config)
    with running.serving():
        made = Site(running, stopped)
        _prepare(made, running.directory)
        yield made


def _prepare(site: Site, directory: Path) -> None:
    """An application that may use keys, two keys, an envelope and a signature."""
    message = directory / "message"
    message.write_bytes(b"message")
    (directory / "policy").write_text(
        'statements = [{effect = "allow", operations = ["encrypt", "decrypt", "sign", "verify"], '
        'resources = ["*"]}]\n'
    )
    user = ("--profile", "user")
    out = ("--out", directory / "user", "--profile-name", "user")
    lines: tuple[tuple[object, ...], ...] = (
        ("policy", "put", "use", directory / "policy"),
        ("access-point", "create", "user", "--policy", "use"),
        ("client-key", "create", "--access-point", "user", *out),
        ("key", "create", "--spec", "AES_256", "--alias", "alias/a"),
        ("key", "create", "--spec", "EC_P256", "--alias", "alias/s"),
        (*user, "encrypt", "alias/a", message, "-c", "a=b", "--out", directory / "envelope"),
        (*user, "sign", "alias/s", *ECDSA, message, "--out", directory / "signature"),
    )
    for words in lines:
        done = site.run(*words)
        assert done.exit_code == 0, done.output


def _verify(site: Site, message: str) -> Result:
    directory = site.running.directory
    signed = ("--signature", directory / "signature", directory / message)
    return site.run("--profile", "user", "verify", "alias/s", *ECDSA, *signed)


# 0 and 1


def _valid(site: Site) -> Iterator[Result]:
    yield _verify(site, "message")


def _ended(site: Site) -> Iterator[Result]:
    with site.stopped.serving():
        pass
    # `serving` has looked at the exit code of SIGTERM.
    yield site.run("store", "status", "--config", site.stopped.config)


def _full(site: Site) -> Iterator[Result]:
    yield site.run("key", "public", "alias/s", "--out", "/dev/full")


# 2


def _unknown(site: Site) -> Iterator[Result]:
    for words in (("key", "list", "--colour"), ("kye", "list"), ("key", "lits"), ("sign", "a")):
        yield site.run(*words)
    yield site.run("access-point", "update", "user")


def _no_file(site: Site) -> Iterator[Result]:
    nowhere = site.running.directory / "nowhere"
    yield site.run("encrypt", "alias/a", nowhere)
    yield site.run("policy", "put", "p", nowhere)
    yield site.profile("other", certificate=nowhere)
    yield site.run("audit", "verify", nowhere, "--public-key", nowhere)
    for words in CONFIGURED:
        yield site.run(*words, "--config", nowhere)


def _no_envelope(site: Site) -> Iterator[Result]:
    for verb in ("decrypt", "inspect"):
        yield site.run("--profile", "user", verb, site.running.directory / "message")


def _open_key(site: Site) -> Iterator[Result]:
    path = site.running.directory / "open.key"
    path.write_bytes((site.running.directory / "user.key").read_bytes())
    path.chmod(0o644)
    yield site.profile("open", private_key=path)
    path.chmod(0o600)
    certificate = site.running.directory / "user.pem"
    assert site.profile("open", private_key=path, certificate=certificate).exit_code == 0
    path.chmod(0o640)
    yield site.run("--profile", "open", "status")


def _faulty(site: Site) -> Iterator[Result]:
    yield from site.with_config("workers = 2", "wokers = 2", CONFIGURED)


def _misnamed(site: Site) -> Iterator[Result]:
    directory = site.stopped.directory
    for old in (
        f"{directory}/pin",
        SOFTHSM,
        f"{directory}/softhsm2.conf",
    ):
        yield from site.with_config(f'"{old}"', '"/nowhere"', CONFIGURED)


# 3 and 4


def _no_key(site: Site) -> Iterator[Result]:
    yield site.run("key", "show", "alias/nobody")
    yield site.run("--profile", "user", "encrypt", "alias/nobody", input=b"x")


def _no_profile(site: Site) -> Iterator[Result]:
    yield site.run("--profile", "nobody", "status")
    yield site.run("profile", "use", "nobody")


def _revoked(site: Site) -> Iterator[Result]:
    out = site.running.directory / "gone"
    words = ("--access-point", "user", "--out", out, "--profile-name", "gone", "--field")
    made = site.run("client-key", "create", *words, "client_key_id")
    assert site.run("client-key", "revoke", made.stdout.strip()).exit_code == 0
    yield site.run("--profile", "gone", "status")


def _not_allowed(site: Site) -> Iterator[Result]:
    yield site.run("--profile", "user", "key", "list")
    yield site.run("encrypt", "alias/a", input=b"x")


def _would_be_denied(site: Site) -> Iterator[Result]:
    yield site.run("policy", "test", "--access-point", "user", "--operation", "list_keys")


def _another_ca(site: Site) -> Iterator[Result]:
    other = site.stopped.directory / "instance" / "administrator" / "ca.pem"
    assert site.profile("stranger", ca=other).exit_code == 0
    yield site.run("--profile", "stranger", "status")


# 5 and 6


def _not_running(site: Site) -> Iterator[Result]:
    assert site.profile("closed", addresses=[f"127.0.0.1:{free_port()}"]).exit_code == 0
    yield site.run("--profile", "closed", "status", "--timeout", 1)


def _hsm_away(site: Site) -> Iterator[Result]:
    tokens = site.stopped.directory / "tokens"
    tokens.rename(tokens.with_name("away"))
    try:
        for words in (("serve",), ("init",), ("hsm", "probe")):
            yield site.run(*words, "--config", site.stopped.config, place=site.stopped)
    finally:
        tokens.with_name("away").rename(tokens)


def _name_taken(site: Site) -> Iterator[Result]:
    yield site.run("key", "create", "--spec", "AES_256", "--alias", "alias/a")
    yield site.run("access-point", "create", "user")


def _profile_taken(site: Site) -> Iterator[Result]:
    out = ("--out", site.running.directory / "more", "--profile-name", "user")
    yield site.run("client-key", "create", "--access-point", "user", *out)


def _file_taken(site: Site) -> Iterator[Result]:
    out = ("--out", site.running.directory / "user")
    yield site.run("client-key", "create", "--access-point", "user", *out)


def _token_taken(site: Site) -> Iterator[Result]:
    yield site.run("hsm", "init-token", "--config", site.running.config)


# 7


def _other_context(site: Site) -> Iterator[Result]:
    envelope = site.running.directory / "envelope"
    yield site.run("--profile", "user", "decrypt", envelope)
    yield site.run("--profile", "user", "decrypt", "-c", "a=c", envelope)


def _changed_file(site: Site) -> Iterator[Result]:
    (site.running.directory / "changed").write_bytes(b"messagf")
    yield _verify(site, "changed")


def _changed_log(site: Site) -> Iterator[Result]:
    log = site.running.directory / "instance" / "audit"
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    other = site.running.directory / "other.pem"
    other.write_bytes(
        key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    yield site.run("audit", "verify", log, "--public-key", other)


# 8


def _no_label(site: Site) -> Iterator[Result]:
    verbs = (("serve",), ("init",), ("hsm", "probe"))
    for result in site.with_config('token_label = "main"', 'token_label = "mian"', verbs):
        assert "hsmux hsm init-token" in result.stderr and "SOFTHSM2_CONF" in result.stderr
        yield result


def _refused_pin(site: Site) -> Iterator[Result]:
    wrong = site.stopped.directory / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("1111")
    old = f'pin_file = "{site.stopped.directory}/pin"'
    try:
        verbs = (("serve",), ("init",), ("hsm", "probe"))
        yield from site.with_config(old, f'pin_file = "{wrong}"', verbs)
    finally:
        cleared = site.run("hsm", "clear-pin", "--config", site.stopped.config)
        assert cleared.exit_code == 0, cleared.output


def _open_secret(site: Site) -> Iterator[Result]:
    path = site.stopped.directory / "open"
    path.write_text("24681357")
    path.chmod(0o644)
    old = f'pin_file = "{site.stopped.directory}/pin"'
    yield from site.with_config(old, f'pin_file = "{path}"', CONFIGURED)
    root = site.stopped.directory / "rootkey.toml"
    root.write_text(f'instance_dir = "{path.parent}/instance"\n[root]\nfile = "{path}"\n')
    for verb in ("check-config", "init", "serve"):
        yield site.run(verb, "--config", root, place=site.stopped)


def _in_use(site: Site) -> Iterator[Result]:
    for verb in ("serve", "init"):
        yield site.run(verb, "--config", site.running.config)
    address = site.run("profile", "show", "administrator", "--field", "addresses").stdout.strip()
    text = site.stopped.config.read_text()
    old = text[text.index("listen = [") : text.index("]", text.index("listen = ["))]
    yield from site.with_config(old, f'listen = ["{address}"', (("serve",),))


def _never_made(site: Site) -> Iterator[Result]:
    old = f'instance_dir = "{site.stopped.directory}/instance"'
    new = f'instance_dir = "{site.stopped.directory}/fresh"'
    yield from site.with_config(old, new, (("serve",), ("store", "status"), ("store", "migrate")))


def _not_installed(site: Site) -> Iterator[Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hsmux_gateway", None)
        for words in CONFIGURED:
            yield site.run(*words, "--config", site.stopped.config)


WALK: dict[str, Callable[[Site], Iterator[Result]]] = {
    "a signature is valid": _valid,
    "`serve` ended in order": _ended,
    "the disk is full": _full,
    "an unknown option or verb": _unknown,
    "a file that is not there": _no_file,
    "`decrypt` of what is no envelope": _no_envelope,
    "a profile's private key that others can use": _open_key,
    "a fault in the configuration": _faulty,
    "the configuration names a PIN file, a module or a SoftHSM configuration that is not there": (
        _misnamed
    ),
    "no such key": _no_key,
    "no such profile": _no_profile,
    "a revoked client key": _revoked,
    "no policy allows it": _not_allowed,
    "`policy test` of what would be denied": _would_be_denied,
    "the gateway's certificate is not of the profile's CA": _another_ca,
    "the gateway does not run": _not_running,
    "the HSM does not answer when the gateway starts": _hsm_away,
    "an alias or the name of an access point is taken": _name_taken,
    "a profile is there already": _profile_taken,
    "a file to write is there already": _file_taken,
    "the token to make is there already": _token_taken,
    "`decrypt` with another context": _other_context,
    "`verify` of a changed file": _changed_file,
    "a changed audit log": _changed_log,
    "no token has the label": _no_label,
    "a refused PIN": _refused_pin,
    "a PIN or a root key that others read": _open_secret,
    "an `instance_dir` or address in use": _in_use,
    "a store that was never made": _never_made,
    "the gateway is not installed": _not_installed,
}

ELSEWHERE = {"Ctrl-C"}
"""Examples that are brought about elsewhere: see test_ctrl_c."""

EXAMPLES = {example: code for code, exit_ in EXIT_CODES.items() for example in exit_.examples}


def test_every_example_is_walked() -> None:
    assert EXAMPLES.keys() == WALK.keys() | ELSEWHERE


@pytest.mark.parametrize("example", WALK)
def test_an_example_ends_as_the_table_says(example: str, site: Site) -> None:
    results = list(WALK[example](site))
    assert results
    for result in results:
        assert result.exit_code == EXAMPLES[example], (result.output, result.exc_info)
        if result.exit_code and example not in TALKING:
            assert result.stdout == ""
            assert result.stderr.startswith("hsmux: ") and result.stderr.count("\n") == 1
            assert "Errno" not in result.stderr and "\\" not in result.stderr


def test_ctrl_c(tmp_path: Path) -> None:
    """While the command reads, which it does once it has opened a pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    line = [sys.executable, "-m", "hsmux_tools.main", "inspect", str(pipe)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE)
    # Opening it waits for the reader.
    with open(pipe, "wb"):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, b"")
