"""`init`: it can be killed anywhere and run again, and mends what is missing."""

import datetime
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from hsmux_gateway.config import load_config
from hsmux_gateway.daemon import run_init
from hsmux_gateway.errors import OperatorError
from hsmux_gateway.initialise import ADMINISTRATOR, FirstAdministrator, Initialised
from hsmux_protocol import errors
from tests.documents.sections import ROOT
from tests.gateway.aging import end_client_keys, make_old
from tests.gateway.hardware import PIN, SOFTHSM, write_hardware_config
from tests.gateway.journals import records_in
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running, running_gateway, write_config

RUNS = [
    pytest.param("chain", 5, id="one-by-one"),
    pytest.param("each", 20, id="each-border", marks=pytest.mark.long),
]


@pytest.mark.parametrize("root", ["file", "softhsm"])
@pytest.mark.parametrize(("mode", "least"), RUNS)
def test_init_is_killed_at_its_borders_and_mended(
    tmp_path: Path, root: str, mode: str, least: int
) -> None:
    command = [sys.executable, "-m", "tests.gateway.init_until", root, mode, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least


def _init(config: Path) -> Initialised:
    return trio.run(run_init, load_config(config))


def test_init_again_changes_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    made = _init(config)
    files = {path: path.read_bytes() for path in made.ca.parents[1].rglob("*.[pk]e[my]")}
    assert len(files) == 6
    assert "the CA" in made.made and "the root key" in made.made
    assert _init(config) == replace(made, made=())
    assert files == {path: path.read_bytes() for path in files}


Damage = Callable[[Path], object]


def _delete(name: str) -> Damage:
    return lambda instance: (instance / name).unlink()


def _truncate(name: str) -> Damage:
    return lambda instance: (instance / name).write_bytes(b"")


def _foreign_server(instance: Path) -> None:
    """A certificate of another CA, as one that was left from another store is."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), 1, now, now.replace(year=now.year + 2)
        )
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, format_ = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(encoding, format_, serialization.NoEncryption())
    (instance / "tls" / "server.key").write_bytes(pem)
    (instance / "tls" / "server.pem").write_bytes(certificate.public_bytes(encoding))


DAMAGE: dict[str, Damage] = {
    "no server certificate": _delete("tls/server.pem"),
    "no server key": _delete("tls/server.key"),
    "an empty server key": _truncate("tls/server.key"),
    "a foreign server certificate": _foreign_server,
    "no administrator certificate": _delete("administrator/administrator.pem"),
    "no administrator key": _delete("administrator/administrator.key"),
    "an empty administrator key": _truncate("administrator/administrator.key"),
    "no CA certificate": _delete("administrator/ca.pem"),
}


def test_init_makes_what_is_missing_or_spoilt(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    made = _init(config)
    for damage in DAMAGE.values():
        damage(made.ca.parents[1])
        _init(config)
    with running_gateway(config, init=False) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            points, _ = client.call("list_access_points", b"", 100)
            keys, _ = client.call("list_client_keys", b"", 100)
    assert [point.name for point in points] == ["administrator"]
    assert len(keys) == 1 + sum("administrator" in name or "CA" in name for name in DAMAGE)


def test_a_revoked_administrator_gets_another_client_key(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with running_gateway(config) as running:
        before = (running.administrator / "administrator.pem").read_bytes()
        context = client_context(running.administrator)
        with connect(running.address, context) as client:
            (first,), _ = client.call("list_client_keys", b"", 100)
            client.call("create_access_point", "second", "", ["administrator"], [], None)
            certificate, private_key = client.call("create_client_key", "second", None, 30)[1::2]
            other = tmp_path / "other.pem"
            der = x509.load_der_x509_certificate(certificate)
            other.write_bytes(der.public_bytes(serialization.Encoding.PEM) + private_key)
        context.load_cert_chain(other)
        with connect(running.address, context) as client:
            client.call("revoke_client_key", first.client_key_id)
        assert running.stop() == 0
    made = _init(config)
    assert made.certificate.read_bytes() != before
    with running_gateway(config, init=False) as running:
        with connect(running.address, client_context(running.administrator)) as client:
            assert client.call("generate_random", 8)


def test_other_names_make_another_server_certificate(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    _init(config)
    text = config.read_text().replace(
        "[server]\n", '[server]\nnames = ["localhost", "gw.example"]\n'
    )
    config.write_text(text)
    made = _init(config)
    server = made.ca.parents[1] / "tls" / "server.pem"
    certificate = x509.load_pem_x509_certificate(server.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "gw.example"]


def test_another_root_than_the_stores_is_refused(tmp_path: Path) -> None:
    config = write_hardware_config(tmp_path)
    _init(config)
    text = config.read_text().replace('[root]\ntoken = "soft"', f'[root]\nfile = "{tmp_path}/r"')
    config.write_text(text)
    with pytest.raises(OperatorError, match=r"not initialised with root .*/r"):
        _init(config)


def test_a_wrong_pin_is_one_line_for_the_operator(tmp_path: Path) -> None:
    config = write_hardware_config(tmp_path)
    (tmp_path / "pin").write_text(PIN[::-1])
    with pytest.raises(OperatorError, match=r"token soft: .*clear-pin") as refused:
        _init(config)
    assert refused.value.exit_code == 8
    assert PIN[::-1] not in refused.value.text


def test_a_token_that_is_not_there_is_for_the_operator(tmp_path: Path) -> None:
    config = write_hardware_config(tmp_path)
    config.write_text(config.read_text().replace('token_label = "test"', 'token_label = "gone"'))
    with pytest.raises(
        OperatorError, match="no token has the label 'gone', only 'test'"
    ) as refused:
        _init(config)
    assert refused.value.exit_code == 8
    assert "hsmux hsm init-token" in refused.value.text
    assert refused.value.text.endswith(f"SOFTHSM2_CONF leads, {tmp_path}/softhsm2.conf")


def test_a_module_that_does_not_start_may_be_tried_again(tmp_path: Path) -> None:
    config = write_hardware_config(tmp_path)
    (tmp_path / "softhsm").rename(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match=r"libsofthsm2\.so answers GENERAL_ERROR") as refused:
        _init(config)
    assert refused.value.exit_code == 5
    assert refused.value.text.endswith(f"SOFTHSM2_CONF leads, {tmp_path}/softhsm2.conf")


def test_what_is_no_module_is_for_the_operator(tmp_path: Path) -> None:
    config = write_hardware_config(tmp_path)
    config.write_text(config.read_text().replace(SOFTHSM, str(config)))
    with pytest.raises(OperatorError, match="its module cannot be loaded") as refused:
        _init(config)
    assert refused.value.exit_code == 8


def test_a_token_that_lost_its_root_is_one_line_for_the_operator(tmp_path: Path) -> None:
    config = write_hardware_config(tmp_path)
    _init(config)
    for path in (tmp_path / "softhsm").rglob("*.object"):
        if path.name != "token.object":
            path.unlink()
    with pytest.raises(OperatorError, match="token soft does not open this store's root key"):
        _init(config)


def _second_administrator(running: Running, directory: Path) -> ssl.SSLContext:
    with connect(running.address, client_context(running.administrator)) as first:
        first.call("create_access_point", "second", "", ["administrator"], [], None)
        _, certificate, ca, private_key = first.call("create_client_key", "second", None, 30)
    (directory / "administrator.pem").write_text(ssl.DER_cert_to_PEM_cert(certificate))
    (directory / "administrator.key").write_bytes(private_key)
    (directory / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(ca))
    return client_context(directory)


def lacking(client: RawClient) -> list[str]:
    """What the status warns of approvals."""
    status = client.call("show_status")
    return [w.partition(":")[0] for w in status[-2] if "approvals are wanted" in w]


def test_the_glass_can_be_broken_when_nobody_can_approve(tmp_path: Path) -> None:
    """It wants no approvals any more, and is recorded once by the next gateway."""
    config = write_config(tmp_path)
    approves = {"effect": "allow", "role": "approver", "resources": ["*"]}
    with running_gateway(config) as running:
        with connect(running.address, client_context(running.administrator)) as first:
            first.call("put_policy", "approver", json.dumps({"statements": [approves]}))
            first.call("create_access_point", "second", "", ["approver"], [], None)
            first.call("create_client_key", "second", None, 30)
    make_old(config)
    with running_gateway(config, init=False) as running:
        with connect(running.address, client_context(running.administrator)) as first:
            first.call("set_quorum", 1)
            assert lacking(first) == []
    end_client_keys(config, "second")
    with running_gateway(config, init=False) as running:
        with connect(running.address, client_context(running.administrator)) as first:
            with pytest.raises(errors.ApprovalsMissing):
                first.call("set_quorum", 0)
            assert lacking(first) == ["1 approvals are wanted, and 0 can be given"]
    trio.run(run_init, load_config(config), FirstAdministrator(restored=True))
    for _ in range(2):
        with running_gateway(config, init=False) as running:
            with connect(running.address, client_context(running.administrator)) as first:
                assert first.call("show_quorum")[0].approvals == 0
                assert first.call("set_quorum", 0)
    records = records_in(running.directory / "audit")
    (restored,) = [one for one in records if one["kind"] == "administrator_restored"]
    assert restored["approvals"] == 1 and restored["restored_at"] < restored["at"]


@pytest.mark.parametrize("loss", ["Disabled", "Deleted", "policy"])
def test_the_glass_can_be_broken(tmp_path: Path, loss: str) -> None:
    """An administrator that another one locked out has its state and its policy again."""
    config = write_config(tmp_path)
    nothing: list[list[str]] = [[] for _ in range(6)]
    with running_gateway(config) as running:
        with connect(running.address, _second_administrator(running, tmp_path)) as second:
            if loss == "Deleted":
                second.call("delete_access_point", ADMINISTRATOR)
            elif loss == "Disabled":
                second.call("update_access_point", ADMINISTRATOR, None, loss, *nothing, None)
            else:
                gone = [[], [ADMINISTRATOR], *nothing[2:]]
                second.call("update_access_point", ADMINISTRATOR, None, None, *gone, None)
    with capture_logs() as logs:
        _init(config)
    assert any("--restore-administrator" in entry["event"] for entry in logs)
    trio.run(run_init, load_config(config), FirstAdministrator(restored=True))
    with capture_logs() as logs:
        _init(config)
    assert not any("--restore-administrator" in entry["event"] for entry in logs)
    with running_gateway(config, init=False) as running:
        with connect(running.address, client_context(running.administrator)) as first:
            record = first.call("show_access_point", ADMINISTRATOR)[0]
            assert (record.state, record.policies) == ("Enabled", [ADMINISTRATOR])
            with pytest.raises(errors.Denied):
                first.call("generate_random", 1)
