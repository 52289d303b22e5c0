"""The configuration: every refusal names the place and the remedy."""

import random
import subprocess
from pathlib import Path

import pytest

from hsmux_gateway.command import check_config
from hsmux_gateway.config import Config, parse_config, restart_settings
from hsmux_gateway.errors import OperatorError
from hsmux_gateway.instance import Instance
from tests.gateway.outside import make_root, pem_of

GOOD = 'instance_dir = "/var/lib/hsmux"\n[root]\nfile = "/etc/hsmux/root.key"\n'
TOKEN = '[hsm.main]\nmodule = "/usr/lib/m.so"\ntoken_label = "t"\npin_file = "/etc/pin"\n'

REFUSED = {
    "not TOML": ("instance_dir = ", "not TOML"),
    "unknown section": (GOOD + "[sever]\n", "did you mean 'server'"),
    "unknown key": (GOOD + "[server]\nlitsen = []\n", "server.litsen: unknown; did you mean"),
    "unknown key of a token": (
        GOOD.replace('file = "/etc/hsmux/root.key"', 'token = "main"') + TOKEN + "pin = 1\n",
        r"hsm\.main\.pin: unknown",
    ),
    "wrong type": (GOOD + "[server]\ndrain_s = 'x'\n", r"drain_s"),
    "out of range": (GOOD + "[hsm.x]\nmodule='m'\ntoken_label='t'\nworkers=0\n", "workers"),
    "no instance_dir": ("[root]\nfile = 'x'\n", "instance_dir"),
    "no root": ('instance_dir = "/x"\n', "exactly one of token"),
    "two roots": (GOOD.replace("[root]\n", '[root]\ntoken = "main"\n') + TOKEN, "exactly one"),
    "unknown token": ('instance_dir = "/x"\n[root]\ntoken = "other"\n' + TOKEN, "there are: main"),
    "no PIN": (
        'instance_dir = "/x"\n[root]\ntoken = "main"\n' + TOKEN.replace("pin_file", "#"),
        "exactly one of pin_file",
    ),
    "half a certificate": (GOOD + '[tls]\ncertificate = "/c"\n', "both certificate and"),
    "address without port": (GOOD + '[server]\nlisten = ["localhost"]\n', "host:port"),
    "port out of range": (GOOD + '[health]\nlisten = "localhost:70000"\n', "host:port"),
    "empty listen": (GOOD + "[server]\nlisten = []\n", r"server\.listen: expected"),
    "no host": (
        GOOD + '[server]\nlisten = [":7411"]\n',
        r"server\.listen\[0\]: ':7411' is no addr",
    ),
    "half a bracket": (GOOD + '[server]\nlisten = ["[::1:1"]\n', "no address"),
    "bare IPv6": (GOOD + '[server]\nlisten = ["::1:7411"]\n', "no address"),
    "huge port": (GOOD + f'[server]\nlisten = ["h:{"9" * 5000}"]\n', "no address"),
    "NaN": (GOOD + "[server]\ndrain_s = nan\n", r"server\.drain_s: nan is not a number"),
    "infinity": (GOOD + "[store]\nstale_s = inf\n", r"store\.stale_s: inf is not a number"),
    "boolean for a number": (
        GOOD + "[limits]\nconnections_max = true\n",
        r"limits\.connections_max: expected `int`",
    ),
    "huge number": (GOOD + f"[limits]\nrequests_max = {'9' * 400}\n", r"limits\.requests_max"),
    "NUL in a path": (
        GOOD + '[audit]\ndirectory = "/a\\u0000b"\n',
        r"audit\.directory: must be one",
    ),
    "two lines": (GOOD + '[tls]\ncertificate = "/a\\nb"\n', r"tls\.certificate: must be one line"),
    "no module": (
        GOOD + "[hsm.main]\ntoken_label = 't'\npin_file = '/p'\n",
        r"hsm\.main\.module: is missing",
    ),
    "token that is no table": (GOOD + "[hsm]\nmain = 1\n", r"hsm\.main: expected `object`"),
    "token without a name": (
        GOOD + TOKEN.replace("hsm.main", 'hsm.""'),
        r"hsm\.'': a token's name is",
    ),
    "too many tokens": (
        GOOD + "".join(TOKEN.replace("main", f"t{number}") for number in range(17)),
        "17 tokens; at most 16",
    ),
    "both PINs": (
        'instance_dir = "/x"\n[root]\ntoken = "main"\n' + TOKEN + 'pin_credential = "pin"\n',
        "exactly one of pin_file",
    ),
    "a name that is none": (GOOD + '[server]\nnames = ["a b"]\n', "neither a DNS name nor an IP"),
    "a name beyond ASCII": (GOOD + '[server]\nnames = ["höst"]\n', "neither a DNS name"),
    "a password in the store's URL": (
        GOOD + '[store]\nurl = "postgresql://hsmux:s3cret@db/hsmux"\n',
        r"store\.url: a password has no place here.*passfile",
    ),
    "a password in the URL's query": (
        GOOD + '[store]\nurl = "postgresql://db/hsmux?password=s3cret"\n',
        "a password has no place here",
    ),
    "another database": (GOOD + '[store]\nurl = "mysql://db/hsmux"\n', "sqlite:// or postgresql"),
    "large buffers too small": (
        GOOD + "[limits]\nlarge_buffer_bytes_max = 1048576\n",
        r"limits\.large_buffer_bytes_max: expected `int` >= 16777216",
    ),
    "a port twice": (
        GOOD + '[server]\nlisten = ["127.0.0.1:1", "127.0.0.1:1"]\n',
        r"server\.listen\[1\]: 127\.0\.0\.1:1 is what server\.listen\[0\] listens on",
    ),
    "a port for applications and health": (
        GOOD + '[server]\nlisten = ["0.0.0.0:7412"]\n',
        r"health\.listen: 127\.0\.0\.1:7412 is what server\.listen\[0\] listens on",
    ),
    "a port of every host": (
        GOOD + '[server]\nlisten = ["[::1]:1"]\n[health]\nlisten = "[::]:1"\n',
        r"health\.listen: \[::\]:1 is what",
    ),
    "nested too deep": ("a = " + "[" * 5000, "not TOML"),
}


def test_a_good_file_is_taken() -> None:
    config = parse_config(GOOD, {})
    assert config.root.file == "/etc/hsmux/root.key"
    assert config.store.stale_s == 30.0


@pytest.mark.parametrize("other", ["127.0.0.2:1", "[::1]:1", "127.0.0.1:2"])
def test_addresses_that_do_not_clash_are_taken(other: str) -> None:
    parse_config(GOOD + f'[server]\nlisten = ["127.0.0.1:1", "{other}"]\n', {})
    parse_config(GOOD + '[server]\nlisten = ["127.0.0.1:0", "127.0.0.1:0"]\n', {})


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_names_the_place_and_the_remedy(name: str) -> None:
    text, expected = REFUSED[name]
    with pytest.raises(OperatorError, match=expected) as refused:
        parse_config(text, {})
    assert refused.value.exit_code == 2
    assert "\n" not in refused.value.text.removesuffix("\n")
    assert refused.value.text.startswith("configuration: ")
    assert "s3cret" not in refused.value.text


def test_the_environment_overrides_one_value() -> None:
    environment = {
        "HSMUX_GATEWAY__SERVER__DRAIN_S": "2.5",
        "HSMUX_GATEWAY__STORE__URL": "postgresql+psycopg://db/hsmux",
        "HSMUX_GATEWAY__SERVER__LISTEN": '["[::1]:1"]',
        "OTHER": "x",
    }
    config = parse_config(GOOD, environment)
    assert config.server.drain_s == 2.5
    assert config.store.url == "postgresql+psycopg://db/hsmux"
    assert config.server.listen == ["[::1]:1"]


def test_an_override_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(OperatorError, match="did you mean 'drain_s'"):
        parse_config(GOOD, {"HSMUX_GATEWAY__SERVER__DRAIN": "1"})
    with pytest.raises(OperatorError, match="is a value"):
        parse_config(GOOD, {"HSMUX_GATEWAY__INSTANCE_DIR__X": "1"})


def test_a_workers_environment_keeps_its_names() -> None:
    text = 'instance_dir = "/x"\n[root]\ntoken = "main"\n' + TOKEN
    environment = {"HSMUX_GATEWAY__HSM__MAIN__ENVIRONMENT__SOFTHSM2_CONF": "/etc/softhsm2.conf"}
    config = parse_config(text, environment)
    assert config.hsm["main"].environment == {"SOFTHSM2_CONF": "/etc/softhsm2.conf"}


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_read_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    whole = GOOD + TOKEN + '[server]\nlisten = ["127.0.0.1:0"]\ndrain_s = 2.5\n'
    for _ in range(100):
        text = list(whole)
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice("\"'[]={}\n\t \0a1.-ü\U0001f600")
        try:
            assert isinstance(parse_config("".join(text), {}), Config)
        except OperatorError as error:
            assert error.exit_code == 2


def _named(tmp_path: Path, **files: str) -> Path:
    """A configuration whose every named thing is there, but for those given."""
    with Instance(tmp_path / "instance"):
        pass
    (tmp_path / "audit").mkdir()
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x"
    subprocess.run(
        [*command.split(), "-keyout", tmp_path / "server.key", "-out", tmp_path / "server.pem"],
        check=True,
        capture_output=True,
    )
    named = {
        "instance_dir": f"{tmp_path}/instance",
        "root": f"{tmp_path}/root.key",
        "certificate": f"{tmp_path}/server.pem",
        "private_key": f"{tmp_path}/server.key",
        "audit": f"{tmp_path}/audit",
        "module": f"{tmp_path}/module.so",
        "pin": f"{tmp_path}/pin",
        "softhsm": f"{tmp_path}/softhsm2.conf",
        "url": f"sqlite:///{tmp_path}/instance/store.db",
        **files,
    }
    for name in ("module.so", "pin", "root.key", "softhsm2.conf"):
        (tmp_path / name).touch(mode=0o600)
    path = tmp_path / "hsmux.toml"
    path.write_text(
        f'instance_dir = "{named["instance_dir"]}"\n[root]\nfile = "{named["root"]}"\n'
        f'[tls]\ncertificate = "{named["certificate"]}"\nprivate_key = "{named["private_key"]}"\n'
        f'[audit]\ndirectory = "{named["audit"]}"\n[store]\nurl = "{named["url"]}"\n'
        f'[hsm.main]\nmodule = "{named["module"]}"\ntoken_label = "t"\n'
        f'pin_file = "{named["pin"]}"\nenvironment = {{ SOFTHSM2_CONF = "{named["softhsm"]}" }}\n'
    )
    return path


def test_a_configuration_whose_files_are_there_is_fine(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    check_config(_named(tmp_path))
    made = set(tmp_path.rglob("*")) - set(before)
    assert not any(path.name == "store.db" or path.parent.name == "audit" for path in made)


MISSING = {
    "instance_dir": ("/dev/null/x", r"instance_dir: /dev/null/x is no directory"),
    "root": ("/nowhere/root.key", r"root\.file: /nowhere/root.key is not there and cannot"),
    "certificate": ("/nowhere.pem", r"tls\.certificate: /nowhere.pem cannot be read: No such file"),
    "private_key": ("/nowhere.key", r"tls\.private_key: /nowhere.key cannot be read"),
    "audit": ("/nowhere", r"audit\.directory: /nowhere is no directory: make it"),
    "module": ("/nowhere.so", r"hsm\.main\.module: /nowhere.so cannot be read"),
    "pin": ("/nowhere", r"hsm\.main\.pin_file: /nowhere cannot be read"),
    "softhsm": ("/nowhere", r"hsm\.main\.environment\.SOFTHSM2_CONF: /nowhere cannot be read"),
    "url": ("sqlite:///relative.db", r"^configuration: store\.url: SQLite needs an absolute path"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_a_configuration_names_must_be_there(tmp_path: Path, name: str) -> None:
    value, expected = MISSING[name]
    with pytest.raises(OperatorError, match=expected) as refused:
        check_config(_named(tmp_path, **{name: value}))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("name", ["pin", "root.key", "server.key"])
@pytest.mark.parametrize("mode", [0o644, 0o660, 0o640, 0o601])
def test_a_secret_that_others_can_use_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    path = _named(tmp_path)
    (tmp_path / name).chmod(mode)
    with pytest.raises(OperatorError, match=rf"\(mode {mode:04o}\): chmod 600 .*{name}"):
        check_config(path)


@pytest.mark.parametrize("name", ["audit", "instance"])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, name: str) -> None:
    path = _named(tmp_path)
    (tmp_path / name).chmod(0o770)
    with pytest.raises(OperatorError, match=rf"\(mode 0770\): chmod 700 .*{name}"):
        check_config(path)


def test_what_names_outside_cas_is_checked(tmp_path: Path) -> None:
    path, roots = _named(tmp_path), tmp_path / "roots.pem"
    before = path.read_text()
    path.write_text(before + f'[tls.outside_cas]\ncorporate = "{roots}"\n')
    gone = r"tls\.outside_cas\.corporate: .* cannot be read"
    with pytest.raises(OperatorError, match=gone) as refused:
        check_config(path)
    assert refused.value.exit_code == 2
    roots.write_bytes(pem_of(make_root().issue().chain[0]))
    with pytest.raises(OperatorError, match=r"tls\.outside_cas\.corporate: certificate 1 of"):
        check_config(path)
    roots.write_bytes(pem_of(make_root().certificate))
    check_config(path)
    path.write_text(before + f'[tls.outside_cas]\n"a b" = "{roots}"\n')
    with pytest.raises(OperatorError, match="a CA's name is"):
        check_config(path)


def test_what_needs_a_restart_is_named_to_the_setting() -> None:
    text = 'instance_dir = "/i"\n[root]\ntoken = "a"\n'
    token = '[hsm.{}]\nmodule = "m"\ntoken_label = "l"\npin_file = "p"\nworkers = {}\n'
    old = parse_config(text + token.format("a", 2) + token.format("b", 2), {})
    changed = text.replace("/i", "/j") + token.format("a", 3) + token.format("c", 2)
    new = parse_config(changed + '[tls.outside_cas]\nx = "/x"\n[store]\npoll_ms = 300\n', {})
    assert restart_settings(old, new) == [
        *("instance_dir", "hsm.b", "hsm.c", "hsm.a.workers", "store.poll_ms"),
    ]
    assert restart_settings(old, old) == []


def test_a_certificate_of_another_key_is_refused(tmp_path: Path) -> None:
    path = _named(tmp_path)
    command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]
    subprocess.run([*command, tmp_path / "server.key"], check=True, capture_output=True)
    with pytest.raises(OperatorError, match="cannot be loaded"):
        check_config(path)


def test_an_encrypted_private_key_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    path = _named(tmp_path)
    command = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256 -pass pass:x"
    subprocess.run(
        [*command.split(), "-out", tmp_path / "server.key"], check=True, capture_output=True
    )
    with pytest.raises(OperatorError, match="cannot be loaded"):
        check_config(path)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hsmux.toml"
    with pytest.raises(OperatorError, match="cannot be read") as refused:
        check_config(path)
    assert refused.value.exit_code == 2
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(OperatorError, match="cannot be read"):
        check_config(path)
